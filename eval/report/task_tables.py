"""A table for each task that is not in the paper: every model and baseline against the student."""

from collections.abc import Mapping
from typing import Any

from cluster.telemetry.formatting import NOTHING, signed
from eval.highlights.rows import models, name_of, title
from eval.highlights.unasked import lost_scores
from eval.report.paper_tables import SCORE_NOTE, differences_in, score_cell
from eval.report.table import Cell, Row, Table
from eval.results.schema import STUDENT, TEACHER
from eval.results.score_values import BAG, source

Report = Mapping[str, Any]

_COLUMNS = ("Model", "Score", "Student minus it", "Student is", "Examples")
_TONES = {"better": "passed", "worse": "missed", "equal": "unclear"}


def tables(report: Report) -> list[Table]:
    """One table a task, the teacher and the student first."""
    return [_table(report, row) for row in report["other_tasks"]]


def _table(report: Report, row: Mapping[str, Any]) -> Table:
    known, task = models(report), row["task"]
    scores = {each["model"]: each for each in report["scores"] if each["task"] == task}
    others = sorted((name for name in scores if name not in (TEACHER, STUDENT)), key=lambda name: -_score(scores[name]))
    names = [*(name for name in (TEACHER, STUDENT) if name in scores), *others]
    rows = []
    for name in names:
        own, found = row.get(name) if name in (TEACHER, STUDENT) else None, scores[name]
        score = score_cell(own, NOTHING) if own else Cell(f"{_score(found):.1f}", _seeds(found), source(name, task))
        rows.append(_row(row, name, name_of(known[name]) if name in others and name in known else name, score))
    failed = sorted(name for name, of in lost_scores(report) if of == task and name not in scores)
    rows += [Row((Cell(name), score_cell(None, NOTHING, failed=True), *(Cell(NOTHING),) * 3)) for name in failed]
    if row["bag_of_words"] is not None:
        rows.append(_row(row, BAG, "a bag of words", score_cell(row["bag_of_words"], NOTHING)))
    if row["majority"] is not None:
        common = (Cell("always the most common answer"), Cell(f"{row['majority']:.1f}"), *(Cell(NOTHING),) * 3)
        rows.append(Row(common))
    notes = (f"{str(row['metric']).capitalize()}, in percent. {SCORE_NOTE} Equal: within twice the error.",)
    caption = f"{title(row)}: every model and baseline against the student"
    return Table(_COLUMNS, tuple(rows), frozenset({"Model"}), differences_in(row), notes, caption).dense("Score")


def _score(found: Mapping[str, Any]) -> float:
    return float(found["score"])


def _seeds(found: Mapping[str, Any]) -> str:
    return "one seed" if len(found["seeds"]) == 1 else f"{found['low']:.1f}–{found['high']:.1f}"


def _row(row: Mapping[str, Any], name: str, shown: str, score: Cell) -> Row:
    against = row["versus"].get(name)
    word = against["word"] if against else None
    texts = (
        Cell(shown, name if shown != name and name != BAG else ""),
        score,
        Cell(NOTHING) if against is None else _difference(against),
        Cell(word or NOTHING, tone=_TONES.get(str(word), "")),
        Cell(f"{row['dev_examples']:,}" if row["dev_examples"] else NOTHING, "subset" if row["subset"] else ""),
    )
    return Row(texts, "main" if name == STUDENT else "")


def _difference(against: Mapping[str, Any]) -> Cell:
    error = against["error"]
    return Cell(signed(against["difference"]), "" if error is None else f"± {error:.1f}, {against['pairing']}")
