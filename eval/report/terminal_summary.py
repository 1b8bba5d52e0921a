"""The report for a terminal: claims, models, scores and speed in at most a hundred columns of plain text."""

import io
import re
import textwrap
from collections.abc import Collection

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table as Grid
from rich.text import Text

from cluster.telemetry import terminal
from cluster.telemetry.formatting import NOT_MEASURED, NOTHING
from eval.report import measured_tables, paper_tables, phone_tables
from eval.report.measured_tables import Report
from eval.report.pages import sentence
from eval.report.table import Table
from eval.results.comparison import failed

WIDTH = 100
_MISSING = "?"
_RULES = box.Box("    \n    \n ── \n    \n ── \n ── \n    \n    \n")
"""A rule under the head and between groups of rows."""
_PAPER = re.compile(r" \(paper\)$")


def summary(report: Report) -> str:
    """The main results, for the end of a run."""
    parts = _wrapped(sentence(report))
    parts += _section("The paper's claims", paper_tables.claims(report))
    models = measured_tables.models(report)
    parts += _section("Models", models.without("Architecture", "Hidden", "Steps", "Tokens"))
    parts += _scores(report)
    shown = ("Model", "Weights", "Parameters", "Pass, s", "ms a pair", "× BERT-base", "× BERT-base (paper)", "Verdict")
    baselines = paper_tables.size_and_speed(report)
    parts += _section("Table 3: one pass over STS-B", baselines, shown, {"× BERT-base"})
    ablations = paper_tables.ablations(report)
    parts += _section("Table 4: ablations", ablations.without("Difference"), measured={"Change"})
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
            parts += _section(title, table, shown, {"Teacher", "Student"})
    return parts


def _latency(report: Report) -> list[str]:
    """The rows of the headline's workload; the finding below names the fastest runtime of the others."""
    table = measured_tables.latency(report)
    first = [row.cells[:2] for row in table.rows[:1]]
    title = "".join(f": {workload}, threads {threads}" for workload, threads in first)
    rows = tuple(row for row in table.rows if row.cells[:2] == first[0])
    shown = ("Model", "Runtime", "p50 ms", "Memory", "Size", "× same runtime", "× PyTorch teacher")
    return _section(f"Latency{title}", Table(table.columns, rows, table.words, table.findings), shown, {"p50 ms"})


def _phones(report: Report) -> list[str]:
    """Links of waiting jobs, and the rows; nothing without both, as on most machines."""
    table = phone_tables.table(report)
    parts = []
    for waiting in report["phones"]["waiting"]:
        parts += ["", f"{waiting['name']} waits for a phone until {waiting['until']} (UTC): {waiting['link']}"]
    if table.rows:
        parts += _section("On a phone", table, ("On", "Model", "p50 ms", "×", "% less time", "Threads", "Tokens"))
    return parts


def _section(title: str, table: Table, shown: tuple[str, ...] = (), measured: Collection[str] = ()) -> list[str]:
    """A title, these columns of a table (all by default) and its findings; "not measured" without rows.

    ``measured`` names columns that must have a value in some row.
    """
    texts = {cell.text for row in table.only(*measured).rows for cell in row.cells}
    if not table.rows or (measured and texts <= {NOT_MEASURED, NOTHING}):
        return ["", title, f"  {NOT_MEASURED}"]
    lines = _drawn(table.only(*shown) if shown else table)
    return ["", title, *lines, *(line for finding in table.findings for line in _wrapped(finding, indent="  "))]


def _drawn(table: Table) -> list[str]:
    """The table without the details of its cells. Only words are cut to fit, never numbers."""
    grid = Grid(box=_RULES, show_edge=False, padding=(0, 1, 0, 0), pad_edge=False)
    for column in table.columns:
        words = column in table.words
        grid.add_column(_text(_PAPER.sub("*", column)), justify="left" if words else "right", no_wrap=not words)
    before = ""
    for row in table.rows:
        if grid.rows and (row.kind == "group" or (row.kind == "total" != before)):
            grid.add_section()
        grid.add_row(*(_text(_MISSING if cell.text == NOT_MEASURED else cell.text) for cell in row.cells))
        before = row.kind
    console = Console(file=io.StringIO(), width=WIDTH, height=24, color_system=None)
    return terminal.render(console, Padding(grid, (0, 0, 0, 2))).splitlines()


def _text(text: str) -> Text:
    return Text(terminal.safe(text), no_wrap=True, overflow="ellipsis")


def _wrapped(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=indent)
