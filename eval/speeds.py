"""Size and speed: the values of the paper's table 3, measured here, and of the latency of teacher, student, exports."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from eval import paper
from eval.records import STUDENT, TEACHER, Baseline
from eval.results import Results
from eval.verdicts import NOT_MEASURED, Verdict, at_least

_BERT = "bertbase"


def baselines(results: Results) -> dict[str, Any]:
    """Table 3: parameters, bytes and one pass over STS-B, sentence pair by sentence pair."""
    found = results.baselines
    measured = {paper.key(row.model): row for row in found.rows} if found else {}
    published = {paper.key(row.model): row for row in paper.SPEEDS}
    doubt = unfit(found)
    rows = [_row(key, measured.get(key), published.get(key), doubt) for key in {**published, **measured}]
    return {
        "rows": rows,
        "pairs": paper.PAIRS,
        "own": _own(measured, doubt),
        **({"machine": None, "settings": None, "fit": None, "unfit": None} if found is None else _conditions(found)),
        "source": "baselines" if found else None,
    }


def unfit(found: Any) -> str:
    """Why times are not to be believed; empty where they are, or where none were taken."""
    return "" if found is None or found.fit else "the machine was not quiet"


def latency(results: Results) -> dict[str, Any] | None:
    """Latency rows by length, with the ratio to the teacher in the same form at the same length."""
    found = results.latency
    if found is None:
        return None
    teachers = {(row.form, row.length): row.p50_ms for row in found.rows if row.who == TEACHER}
    rows = []
    for row in sorted(found.rows, key=lambda row: row.length):
        teacher = teachers.get((row.form, row.length)) if row.who != TEACHER else None
        same = None if teacher is None else teacher / row.p50_ms
        rows.append({**dataclasses.asdict(row), "who": row.who, "form": row.form, "ratio_same_form": same})
    return {**_conditions(found), "rows": rows}


def _conditions(found: Any) -> dict[str, Any]:
    return {key: getattr(found, key) for key in ("machine", "settings", "fit", "unfit")}


def _row(key: str, row: Baseline | None, published: paper.PaperSpeed | None, doubt: str) -> dict[str, Any]:
    bert = next(speed.seconds for speed in paper.SPEEDS if paper.key(speed.model) == _BERT)
    ratio = row.ratio_to_bert_base if row else None
    paper_ratio = bert / published.seconds if published else None
    claimed = key == "distilbert" and paper_ratio is not None
    return {
        "key": key,
        "model": published.model if published else (row.title or row.model) if row else key,
        "measured": None if row is None else dataclasses.asdict(row) | {"pair_ms": 1000 * row.seconds / row.pairs},
        "ratio": ratio,
        "paper": published
        and {
            "parameters": published.parameters,
            "seconds": published.seconds,
            "pair_ms": 1000 * published.seconds / paper.PAIRS,
            "ratio": paper_ratio,
        },
        "difference": None if ratio is None or paper_ratio is None else ratio - paper_ratio,
        # Of the three rows only DistilBERT's is a claim; the others are what it is measured against.
        "verdict": at_least(ratio, paper_ratio, doubt).resolved() if claimed and paper_ratio else None,
    }


def _own(measured: Mapping[str, Baseline], doubt: str) -> dict[str, Any]:
    """How much faster the student passes than its own teacher."""
    teacher, student = measured.get(TEACHER), measured.get(STUDENT)
    if teacher is None or student is None or teacher.pairs != student.pairs:
        return {"ratio": None, "verdict": Verdict(NOT_MEASURED).resolved()}
    ratio = teacher.seconds / student.seconds
    aim = paper.SPEEDS[1].seconds / paper.SPEEDS[2].seconds
    return {"ratio": ratio, "verdict": at_least(ratio, aim, doubt).resolved()}
