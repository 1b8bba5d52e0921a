"""Size and speed: the values of the paper's table 3, measured here, and of the latency of teacher, student, exports."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from eval.results import paper
from eval.results.collect import Results
from eval.results.export_formats import TITLES
from eval.results.schema import STUDENT, TEACHER, LatencyResult, Timing
from eval.results.verdicts import NOT_MEASURED, Verdict, at_least

Row: TypeAlias = dict[str, Any]

_BERT = "bertbase"
_EAGER = "pytorch"
SHARES = ("others_share_of_machine", "others_share_of_pinned_cores", "throttled_seconds")


def baselines(results: Results) -> dict[str, Any]:
    """Table 3: parameters, bytes and one pass over STS-B, sentence pair by sentence pair.

    From its own benchmark, else from the one of the exports, where that has pairs.
    """
    source: str | None = None
    found: LatencyResult | None = None
    passes: Sequence[Timing] = ()
    for name, benchmark in (("baselines", results.baselines), ("latency", results.latency)):
        if benchmark is not None and not passes:
            source, found, passes = name, benchmark, _passes(benchmark)
    if not passes:
        source = found = None
    measured = {paper.key(row.model): row for row in passes}
    published = {paper.key(row.model): row for row in paper.SPEEDS}
    doubt = unfit(found)
    rows = [_row(key, measured.get(key), published.get(key), doubt) for key in {**published, **measured}]
    return {
        "rows": rows,
        "pairs": paper.PAIRS,
        "own": _own(measured, doubt),
        **({"machine": None, "settings": None, "fit": None, "unfit": None} if found is None else _conditions(found)),
        "source": source,
    }


def _passes(found: LatencyResult) -> Sequence[Timing]:
    """Passes over pairs in eager PyTorch, on as few threads as were measured."""
    rows = [row for row in found.rows if row.workload == "pairs" and row.form == _EAGER]
    fewest = min((row.threads for row in rows), default=0)
    return [row for row in rows if row.threads == fewest]


def unfit(found: LatencyResult | None) -> str:
    """Why times are not to be believed; empty where they are, or where none were taken."""
    return "" if found is None or found.fit else "the machine was not quiet"


def latency(results: Results) -> dict[str, Any] | None:
    """Rows by workload and threads, with the ratio to the teacher in the same form; and which form wins where.

    ``first`` is what the headline and the picture tell of: pairs where there are some, else the shortest length, on as
    few threads as were measured.
    """
    found = results.latency
    if found is None or not found.rows:
        return None
    ordered = sorted(found.rows, key=lambda row: row.place)
    teachers = {(row.form, row.place): row for row in ordered if row.model == TEACHER}
    rows = [_told(row, teachers.get((row.form, row.place))) for row in ordered]
    return {
        **_conditions(found),
        "rows": rows,
        "first": [row for row, timing in zip(rows, ordered, strict=True) if timing.place == ordered[0].place],
        "wins": list(_wins(rows)),
        "energy": found.energy.get("absent"),
    }


def _told(row: Timing, teacher: Timing | None) -> Row:
    same = None
    if teacher is not None and row.model == STUDENT:
        same = teacher.p50_ms / row.p50_ms if row.workload == "lengths" else teacher.seconds / row.seconds
    return {
        **dataclasses.asdict(row),
        "how": TITLES.get(row.form, row.form),
        "where": {"pairs": "STS-B pairs", "questions": f"SQuAD, {row.length} tokens"}.get(
            row.workload, f"{row.length} tokens"
        ),
        "ratio_same_form": same,
    }


def _wins(rows: Sequence[Row]) -> list[Row]:
    """The student's fastest form in every place where it has several."""
    found = []
    for _, group in itertools.groupby(rows, key=lambda row: (row["where"], row["threads"])):
        own = [row for row in group if row["model"] == STUDENT]
        if len(own) > 1:
            found.append(min(own, key=lambda row: (row["seconds"], row["p50_ms"])))
    return found


def _conditions(found: LatencyResult) -> dict[str, Any]:
    """The machine with the worst that was seen on it while it measured."""
    worst = {
        key: max(values)
        for key in SHARES
        if (values := [each[key] for each in found.conditions if each.get(key) is not None])
    }
    told = {key: getattr(found, key) for key in ("machine", "settings", "fit", "unfit")}
    return told | {"machine": {**found.machine, **worst}}


def _row(key: str, row: Timing | None, published: paper.PaperSpeed | None, doubt: str) -> dict[str, Any]:
    bert = next(speed.seconds for speed in paper.SPEEDS if paper.key(speed.model) == _BERT)
    ratio = row.ratio_to_bert_base if row else None
    paper_ratio = bert / published.seconds if published else None
    claimed = key == "distilbert" and paper_ratio is not None
    return {
        "key": key,
        "model": published.model if published else (row.title or row.model) if row else key,
        "measured": None
        if row is None
        else dataclasses.asdict(row) | {"pairs": row.inputs, "pair_ms": 1000 * row.seconds / row.inputs},
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


def _own(measured: Mapping[str, Timing], doubt: str) -> dict[str, Any]:
    """How much faster the student passes than its own teacher."""
    teacher, student = measured.get(TEACHER), measured.get(STUDENT)
    if teacher is None or student is None or teacher.inputs != student.inputs:
        return {"ratio": None, "verdict": Verdict(NOT_MEASURED).resolved()}
    ratio = teacher.seconds / student.seconds
    aim = paper.SPEEDS[1].seconds / paper.SPEEDS[2].seconds
    return {"ratio": ratio, "verdict": at_least(ratio, aim, doubt).resolved()}
