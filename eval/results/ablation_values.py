"""Students trained otherwise beside the one that was not: the values of the paper's table 4.

A change is the mean over the tasks that the reference and all of them were measured on, less the reference's.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from eval.results import paper
from eval.results.collect import Results
from eval.results.score_values import same_examples
from eval.results.verdicts import same_sign


def ablations(results: Results) -> dict[str, Any]:
    """Table 4: what each part of the training is worth."""
    told = results.suite.ablations
    reference, names = (told.reference, told.students) if told else (None, [])
    measured = [name for name in names if name in results.scores]
    tasks = _shared(results, [reference, *measured]) if reference in results.scores and measured else []
    titles = {row.student: row.title for row in paper.ABLATIONS} | dict([paper.NO_TEACHER])
    published = {row.student: row.change for row in paper.ABLATIONS}
    order = [*titles, *(name for name in names if name not in titles)]
    rows = []
    for name in order:
        change, error = _change(results, name, str(reference), tasks) if name in measured and tasks else (None, None)
        rows.append(
            {
                "student": name,
                "title": titles.get(name, name),
                "score": _mean(results, name, tasks) if change is not None else None,
                "change": change,
                "error": error,
                "masked_change": _masked_change(results, name, reference),
                "paper": published.get(name),
                "difference": None if change is None or name not in published else change - published[name],
                "same_sign": None if change is None or name not in published else change * published[name] > 0,
                "verdict": same_sign(change, published[name], error).resolved() if name in published else None,
            }
        )
    return {
        "reference": reference,
        "tasks": tasks,
        "score": _mean(results, str(reference), tasks) if tasks else None,
        "rows": rows,
        "order": [row["title"] for row in sorted(_ranked(rows), key=lambda row: float(row["change"]))],
        "paper_order": [row["title"] for row in sorted(_ranked(rows), key=lambda row: float(row["paper"]))],
    }


def _ranked(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [row for row in rows if row["change"] is not None and row["paper"] is not None]


def _shared(results: Results, models: Sequence[str | None]) -> list[str]:
    """Tasks all of them were measured on, on the same examples; those of GLUE where there are any."""
    found = [results.scores[model] for model in models if model is not None]
    tasks = [
        task
        for task, score in found[0].items()
        if all(task in other and same_examples(other[task], score) for other in found)
    ]
    glue = [row.task for row in paper.GLUE]
    return sorted([task for task in tasks if paper.key(task) in glue] or tasks)


def _mean(results: Results, model: str, tasks: Sequence[str]) -> float:
    return statistics.fmean(results.scores[model][task].score for task in tasks)


def _change(results: Results, model: str, reference: str, tasks: Sequence[str]) -> tuple[float, float | None]:
    """Points against the reference, and their standard error; None for the latter where a task had one seed."""
    change = _mean(results, model, tasks) - _mean(results, reference, tasks)
    errors = [results.scores[name][task].error() for name in (model, reference) for task in tasks]
    if any(error is None for error in errors):
        return change, None
    return change, math.sqrt(sum(error**2 for error in errors if error is not None)) / len(tasks)


def _masked_change(results: Results, model: str, reference: str | None) -> float | None:
    """Nats of held-out masked-word loss against the reference's; more is worse."""
    losses = [
        (results.models[name].facts.get("validation") or {}).get("masked") if name in results.models else None
        for name in (model, reference or "")
    ]
    return None if None in losses else float(losses[0]) - float(losses[1])  # type: ignore[arg-type]
