"""Size and speed: table 3 of the paper measured here, and the latency of teacher, student and exports."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

from eval.results import paper
from eval.results.collect import Results
from eval.results.export_formats import TITLES
from eval.results.schema import STUDENT, TEACHER, LatencyResult, Timing
from eval.results.verdicts import at_least

Row: TypeAlias = dict[str, Any]

_CONDITIONS = ("machine", "settings", "fit", "unfit")
SHARES = ("others_share_of_machine", "others_share_of_pinned_cores", "throttled_seconds")


def baselines(results: Results) -> dict[str, Any]:
    """Table 3: parameters, bytes and one pass over STS-B, sentence pair by sentence pair.

    From the baselines' benchmark, else from the exports' benchmark where that has pairs.
    """
    benchmarks = (("baselines", results.baselines), ("latency", results.latency))
    measured = ((name, benchmark, _passes(benchmark)) for name, benchmark in benchmarks if benchmark is not None)
    source, benchmark, passes = next((each for each in measured if each[2]), (None, None, {}))
    published = {paper.key(row.model): row for row in paper.SPEEDS}
    doubt = "" if benchmark is None or benchmark.fit else "the machine was not quiet"
    return {
        "rows": [_row(key, passes.get(key), published.get(key), doubt) for key in {**published, **passes}],
        "pairs": paper.PAIRS,
        "own": _own(passes.get(TEACHER), passes.get(STUDENT), doubt),
        **(dict.fromkeys(_CONDITIONS) if benchmark is None else _conditions(benchmark)),
        "source": source,
    }


def _passes(benchmark: LatencyResult) -> dict[str, Timing]:
    """By model, its pass over pairs in eager PyTorch on the fewest threads."""
    rows = [row for row in benchmark.rows if row.workload == "pairs" and row.form == "pytorch"]
    fewest = min((row.threads for row in rows), default=0)
    return {paper.key(row.model): row for row in rows if row.threads == fewest}


def latency(results: Results) -> dict[str, Any] | None:
    """Rows by workload and threads with the ratio to the teacher in the same form, and the fastest form of each.

    ``first`` has the rows for the headline and the chart: pairs if measured, else the shortest length, on the fewest
    threads.
    """
    benchmark = results.latency
    if benchmark is None or not benchmark.rows:
        return None
    ordered = sorted(benchmark.rows, key=lambda row: row.place)
    teachers = {(row.form, row.place): row for row in ordered if row.model == TEACHER}
    rows = [_timing(row, teachers.get((row.form, row.place))) for row in ordered]
    return {
        **_conditions(benchmark),
        "rows": rows,
        "first": [row for row, timing in zip(rows, ordered, strict=True) if timing.place == ordered[0].place],
        "wins": list(_wins(rows)),
        "energy": benchmark.energy.get("absent"),
    }


def _timing(row: Timing, teacher: Timing | None) -> Row:
    same = None
    if teacher is not None and row.model == STUDENT:
        same = teacher.p50_ms / row.p50_ms if row.workload == "lengths" else teacher.seconds / row.seconds
    titles = {"pairs": "STS-B pairs", "questions": f"SQuAD, {row.length} tokens", "lengths": f"{row.length} tokens"}
    return {
        **dataclasses.asdict(row),
        "how": TITLES.get(row.form, row.form),
        "where": titles[row.workload],
        "ratio_same_form": same,
    }


def _wins(rows: Sequence[Row]) -> Iterator[Row]:
    """The student's fastest form for each workload and threads for which it has several."""
    for _, group in itertools.groupby(rows, key=lambda row: (row["where"], row["threads"])):
        forms = [row for row in group if row["model"] == STUDENT]
        if len(forms) > 1:
            yield min(forms, key=lambda row: (row["seconds"], row["p50_ms"]))


def _conditions(benchmark: LatencyResult) -> dict[str, Any]:
    """The machine with its worst conditions during the benchmark."""
    shares = {key: [each[key] for each in benchmark.conditions if each.get(key) is not None] for key in SHARES}
    worst = {key: max(values) for key, values in shares.items() if values}
    return {key: getattr(benchmark, key) for key in _CONDITIONS} | {"machine": {**benchmark.machine, **worst}}


def _row(key: str, row: Timing | None, published: paper.PaperSpeed | None, doubt: str) -> dict[str, Any]:
    ratio = row.ratio_to_bert_base if row else None
    aim = published.ratio if published else None
    return {
        "key": key,
        "model": published.model if published else (row.title or row.model) if row else key,
        "measured": row and dataclasses.asdict(row) | {"pairs": row.inputs, "pair_ms": 1000 * row.seconds / row.inputs},
        "ratio": ratio,
        "paper": published
        and {
            "parameters": published.parameters,
            "seconds": published.seconds,
            "pair_ms": 1000 * published.seconds / paper.PAIRS,
            "ratio": aim,
        },
        "difference": None if ratio is None or aim is None else ratio - aim,
        # The paper claims DistilBERT's speed; the other rows are for comparison.
        "verdict": at_least(ratio, aim, doubt).resolved() if key == "distilbert" and aim else None,
    }


def _own(teacher: Timing | None, student: Timing | None, doubt: str) -> dict[str, Any]:
    """How much faster the student is than its own teacher."""
    ratio = teacher.seconds / student.seconds if teacher and student and teacher.inputs == student.inputs else None
    return {"ratio": ratio, "verdict": at_least(ratio, paper.SPEEDS[2].ratio, doubt).resolved()}
