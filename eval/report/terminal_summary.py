"""The report for a terminal: what was measured and how far to trust it, in lines that fit 80 columns."""

import textwrap
from collections.abc import Iterator

from cluster.telemetry import terminal
from eval.highlights.headline import sentence, trust
from eval.highlights.identity import identity
from eval.highlights.measured import Highlight, highlights
from eval.highlights.unasked import unmeasured
from eval.report.measured_tables import Report
from eval.results.comparison import failed
from eval.results.schema import STUDENT

WIDTH = 78
"""``stillhouse inspect`` indents the lines by two columns."""
_LABEL = 12
"""Columns of a label."""


def summary(report: Report) -> str:
    """The end of a run: results first, then what failed, what is impossible here, and what nobody asked for."""
    run = identity(report)
    took = f": done in {run.took}" if run.took else ""
    parts = [f"{run.name}{took}", ""]
    found = sorted(highlights(report), key=lambda each: each.label != "distilled")
    for highlight in found:
        parts += _row(highlight.label, _told(highlight))
    if all(model["name"] != STUDENT for model in report["models"]):
        parts += [f"  {sentence(report)}"]
    if doubts := trust(report):
        parts += ["", *_wrapped(" ".join(doubts))]
    parts += [*_rest(report)]
    for waiting in report["phones"]["waiting"]:
        parts += ["", f"{waiting['name']} waits for a phone until {waiting['until']} (UTC):", f"  {waiting['link']}"]
    lost = failed(report)
    if lost:
        parts += ["", f"{len(lost)} of {len(report['jobs'])} jobs failed"]
    for job in lost:
        parts += _wrapped(f"{job['name']}: {job['error'] or 'no error recorded'}", indent="  ")
    text = "\n".join(terminal.safe(line).rstrip() for line in parts)
    return f"{text.rstrip()}\n"


def _told(highlight: Highlight) -> str:
    """A highlight with its verdict."""
    verdict = f"{highlight.verdict} ({highlight.paper})" if highlight.paper else ""
    return "; ".join(part for part in (highlight.line, verdict, highlight.reason) if part)


def _rest(report: Report) -> Iterator[str]:
    """What was not measured, by reason."""
    missing = unmeasured(report)
    if impossible := [each for each in missing if each.state == "impossible"]:
        yield ""
        for each in impossible:
            yield from _row("impossible", f"{each.name}: {each.reason}")
    if names := [each.name for each in missing if each.state == "not asked for"]:
        yield ""
        yield from _wrapped(f"not asked for: {', '.join(names)} (the report says what to add to the recipe)")


def _row(label: str, text: str) -> list[str]:
    indent = " " * (_LABEL + 3)
    return textwrap.wrap(text, WIDTH, initial_indent=f"  {label:<{_LABEL}} ", subsequent_indent=indent)


def _wrapped(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=indent)
