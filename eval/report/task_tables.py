"""A table for each task that is not in the paper: every model and baseline against the student."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from cluster.telemetry.formatting import NOTHING, plural, signed
from eval.highlights.rows import models, name_of, span, title
from eval.highlights.unasked import lost_scores
from eval.report.paper_tables import SCORE_NOTE, WORDS_NOTE, score_cell
from eval.report.table import Cell, Row, Table
from eval.results.schema import STUDENT, TEACHER
from eval.results.score_values import BAG

Report = Mapping[str, Any]

_COLUMNS = ("Model", "Score", "Student is", "Student minus it")


def tables(report: Report) -> list[Table]:
    """One table a task, the teacher and the student first; the last one explains them."""
    found = [_table(report, row) for row in report["other_tasks"]]
    return [*found[:-1], *(replace(last, notes=(*last.notes, SCORE_NOTE, WORDS_NOTE)) for last in found[-1:])]


def _table(report: Report, row: Mapping[str, Any]) -> Table:
    known, task = models(report), row["task"]
    scores = {each["model"]: each for each in report["scores"] if each["task"] == task}
    others = sorted((name for name in scores if name not in (TEACHER, STUDENT)), key=lambda name: -_score(scores[name]))
    names = [*(name for name in (TEACHER, STUDENT) if name in scores), *others]
    rows = []
    for name in names:
        score = score_cell({**scores[name], "seeds": len(scores[name]["seeds"])}, NOTHING)
        rows.append(_row(row, name, name_of(known[name]) if name in others and name in known else name, score))
    failed = sorted(name for name, of in lost_scores(report) if of == task and name not in scores)
    rows += [Row((Cell(name), score_cell(None, NOTHING, failed=True), *(Cell(NOTHING),) * 2)) for name in failed]
    if row["bag_of_words"] is not None:
        rows.append(_row(row, BAG, "a bag of words", score_cell(row["bag_of_words"], NOTHING)))
    if row["majority"] is not None:
        common = (Cell("always the most common answer"), Cell(f"{row['majority']:.1f}"), *(Cell(NOTHING),) * 2)
        rows.append(Row(common))
    of = f" of {plural(row['dev_examples'], 'example')}" if row["dev_examples"] else ""
    subset = ", a subset" if row["subset"] else ""
    notes = (f"{str(row['metric']).capitalize()}{of}, in percent{subset}.",)
    caption = f"{title(row)}: every model and baseline against the student"
    return Table(_COLUMNS, tuple(rows), frozenset({"Model"}), _finding(row), notes, caption).dense("Score")


def _finding(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Whether the teacher knows more of the task than its words tell: a comparison that the table does not have."""
    against = row["teacher_versus_bag"]
    if against is None:
        return ()
    than = "equal to" if against["word"] == "equal" else f"{against['word']} than"
    if against["word"] == "unclear":
        than = "not clearly better or worse than"
    once = ", one seed" if against["one_seed"] else ""
    told = f"{signed(against['difference'])} points, {span(against)}, {against['pairing']}{once}"
    return (f"The teacher is {than} the bag of words ({told}).",)


def _score(found: Mapping[str, Any]) -> float:
    return float(found["score"])


def _row(row: Mapping[str, Any], name: str, shown: str, score: Cell) -> Row:
    against = row["versus"].get(name)
    texts = (
        Cell(shown, name if shown != name and name != BAG else ""),
        score,
        Cell(NOTHING, _apart(row, name)) if against is None else Cell(against["word"], tone=against["word"]),
        Cell(NOTHING) if against is None else _difference(against),
    )
    return Row(texts, "main" if name == STUDENT else "")


def _apart(row: Mapping[str, Any], name: str) -> str:
    """Why a model with a score is not compared with the student."""
    return "other examples" if row[STUDENT] is not None and name != STUDENT else ""


def _difference(against: Mapping[str, Any]) -> Cell:
    return Cell(signed(against["difference"]), f"{span(against)}, {against['pairing']}")
