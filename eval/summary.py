"""The report for a terminal: models, scores and latency in at most a hundred columns of plain text."""

import textwrap

from eval import tables
from eval.cells import NOT_MEASURED, Row, Table
from eval.pages import sentence
from eval.results import STUDENT, TEACHER
from eval.tables import Report

WIDTH = 100
_MISSING = "?"
_SHORT = {"BERT-base (paper)": "BERT-base*", "DistilBERT (paper)": "DistilBERT*", "Kept (paper)": "Kept*"}


def summary(report: Report) -> str:
    """What a person wants to see when the pipeline ends."""
    parts = _wrapped(sentence(report))
    models = tables.models(report)
    shown = ("Model", "Layers", "Parameters", "Weights", "MLM loss", "MLM accuracy", "Agreement", "Device hours")
    parts += _section("Models", models.only(*shown))
    parts += [line for finding in models.findings for line in _wrapped(finding, indent="  ")]
    parts += _section("Scores (percent, median over seeds)", _scores(report))
    if report["scores"]["tasks"]:
        parts.append(f"  * {report['paper']['source']}")
    shown = ("Tokens", "Model", "Runtime", "p50 ms", "p90 ms", "Size", "× same runtime", "× PyTorch teacher")
    settings = (report["latency"] or {"settings": {}})["settings"]
    conditions = [f"{key} {settings[key]}" for key in ("batch", "threads") if key in settings]
    title = f"Latency ({', '.join(conditions)})" if conditions else "Latency"
    parts += _section(title, tables.latency(report).only(*shown))
    failed = [job for job in report["jobs"] if job["state"] == "failed"]
    if failed:
        parts += ["", f"{len(failed)} of {len(report['jobs'])} jobs failed"]
    for job in failed:
        parts += _wrapped(f"{job['name']}: {job['error'] or 'no error recorded'}", indent="  ")
    if any(line.split().count(_MISSING) for line in parts):
        parts += ["", f"{_MISSING} {NOT_MEASURED}"]
    return "\n".join(line.rstrip() for line in parts) + "\n"


def _scores(report: Report) -> Table:
    """The score table with as many ablations as there is room for."""
    whole = tables.scores(report)
    others = [name for name in report["scores"]["models"] if name not in (TEACHER, STUDENT)]
    for count in range(len(others), -1, -1):
        table = whole.only("Task", "Teacher", "Student", "Kept", *others[:count], "Majority", *_SHORT)
        short = Table(tuple(_SHORT.get(column, column) for column in table.columns), table.rows, table.words)
        if _width(_widths(short)) <= WIDTH:
            break
    return short


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
    for row in table.rows:
        lines += [rule] if row.kind in ("group", "total") else []
        lines.append(_line(table, _texts(row), widths))
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
