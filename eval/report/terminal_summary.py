"""The report for a terminal: the claims, models, scores and speed in at most a hundred columns of plain text."""

import re
import textwrap

from eval.report import measured_tables, paper_tables, phone_tables
from eval.report.measured_tables import Report
from eval.report.pages import sentence
from eval.report.table import NOT_MEASURED, NOTHING, Row, Table
from eval.results.comparison import failed

WIDTH = 100
_MISSING = "?"
_PAPER = re.compile(r" \(paper\)$")


def summary(report: Report) -> str:
    """What a person wants to see when the pipeline ends."""
    parts = _wrapped(sentence(report))
    parts += _section("The paper's claims", paper_tables.claims(report))
    models = measured_tables.models(report)
    shown = ("Model", "Layers", "Parameters", "Weights", "MLM loss", "MLM accuracy", "Agreement", "Device hours")
    parts += _section("Models", models.only(*shown))
    parts += [line for finding in models.findings for line in _wrapped(finding, indent="  ")]
    parts += _scores(report)
    shown = ("Model", "Weights", "Parameters", "Pass, s", "ms a pair", "× BERT-base", "× BERT-base (paper)", "Verdict")
    baselines = paper_tables.size_and_speed(report)
    parts += _measured("Table 3: one pass over STS-B", baselines, baselines.only(*shown), ("× BERT-base",))
    ablations = paper_tables.ablations(report)
    parts += _measured("Table 4: ablations", ablations, ablations.without("Difference"), ("Change",))
    parts += _latency(report)
    parts += _phones(report)
    lost = failed(report)
    if lost:
        parts += ["", f"{len(lost)} of {len(report['jobs'])} jobs failed"]
    for job in lost:
        parts += _wrapped(f"{job['name']}: {job['error'] or 'no error recorded'}", indent="  ")
    if any(line.split().count(_MISSING) for line in parts):
        parts += ["", f"{_MISSING} {NOT_MEASURED}"]
    if any("*" in line for line in parts):
        parts += ["", f"* {report['paper']['source']}"]
    return "\n".join(line.rstrip() for line in parts) + "\n"


def _scores(report: Report) -> list[str]:
    shown = (
        "Task", "Teacher", "Student", "Student (D)", "Kept", "Verdict", "BERT-base (paper)", "DistilBERT (paper)",
        "Kept (paper)",
    )  # fmt: skip
    parts = []
    for title, table in (
        ("Table 1: GLUE, percent, median over seeds", paper_tables.glue(report)),
        ("Table 2: IMDb and SQuAD", paper_tables.downstream(report)),
        ("Other tasks", paper_tables.other_tasks(report)),
    ):
        if table.rows:
            parts += _measured(title, table, table.only(*shown), ("Teacher", "Student"))
    return parts


def _latency(report: Report) -> list[str]:
    """The place the headline tells of; which form is the fastest elsewhere, the sentence below says."""
    table = measured_tables.latency(report)
    shown = table.only("Model", "Runtime", "p50 ms", "Memory", "Size", "× same runtime", "× PyTorch teacher")
    first = [row.cells[:2] for row in table.rows[:1]]
    count = sum([row.cells[:2]] == first for row in table.rows)
    title = "".join(f": {workload}, threads {threads}" for workload, threads in first)
    short = Table(shown.columns, shown.rows[:count], shown.words)
    return _measured(f"Latency{title}", table, short, ("p50 ms",))


def _phones(report: Report) -> list[str]:
    """Links of jobs that wait, and the rows; nothing where neither is there, as on most machines."""
    table = phone_tables.table(report)
    parts = []
    for waiting in report["phones"]["waiting"]:
        parts += ["", f"{waiting['name']} waits for a phone until {waiting['until']} (UTC): {waiting['link']}"]
    if table.rows:
        parts += _section("On a phone", table.only("On", "Model", "p50 ms", "×", "% less time", "Threads", "Tokens"))
        parts += [line for finding in table.findings for line in _wrapped(finding, indent="  ")]
    return parts


def _measured(title: str, table: Table, shown: Table, columns: tuple[str, ...]) -> list[str]:
    """The section, or that nothing in these columns was measured; then what a reader should see in it."""
    told = [cell.text for row in table.only(*columns).rows for cell in row.cells]
    if {*told} <= {NOT_MEASURED, NOTHING}:
        return _section(title, Table((), ()))
    short = Table(
        tuple(_PAPER.sub("*", column) for column in shown.columns),
        shown.rows,
        frozenset(_PAPER.sub("*", column) for column in shown.words),
    )
    return _section(title, short) + [line for finding in table.findings for line in _wrapped(finding, indent="  ")]


def _section(title: str, table: Table) -> list[str]:
    if not table.rows:
        return ["", title, f"  {NOT_MEASURED}"]
    widths = _widths(table)
    words = [place for place, column in enumerate(table.columns) if column in table.words]
    # Only words are cut to fit; a number that is cut is another number.
    while _width(widths) > WIDTH:
        widths[max(words, key=lambda place: widths[place])] -= 1
    rule = "  " + "  ".join("─" * width for width in widths)
    lines = ["", title, _line(table, list(table.columns), widths), rule]
    before = ""
    for row in table.rows:
        lines += [rule] if row.kind == "group" or (row.kind == "total" != before) else []
        lines.append(_line(table, _texts(row), widths))
        before = row.kind
    return lines


def _texts(row: Row) -> list[str]:
    """The cells without their details; in a narrow table a sign stands for what is missing."""
    return [_MISSING if cell.text == NOT_MEASURED else cell.text for cell in row.cells]


def _widths(table: Table) -> list[int]:
    lines = [list(table.columns), *(_texts(row) for row in table.rows)]
    return [max(len(text) for text in column) for column in zip(*lines, strict=True)]


def _width(widths: list[int]) -> int:
    return sum(widths) + 2 * len(widths)


def _line(table: Table, texts: list[str], widths: list[int]) -> str:
    cells = []
    for column, text, width in zip(table.columns, texts, widths, strict=True):
        cut = text if len(text) <= width else f"{text[: width - 1]}…"
        cells.append(cut.ljust(width) if column in table.words else cut.rjust(width))
    return "  " + "  ".join(cells)


def _wrapped(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=indent)
