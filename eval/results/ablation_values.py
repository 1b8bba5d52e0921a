"""Table 4 of the paper: the change of the mean score when a part of the training is left out.

The mean is over the tasks that the reference and all ablations have scores for.
"""

import math
import statistics
from collections.abc import Sequence
from typing import Any

from eval.results import paper
from eval.results.collect import Results
from eval.results.score_values import same_examples
from eval.results.verdicts import same_sign


def ablations(results: Results) -> dict[str, Any]:
    """Table 4: the paper's ablations, then the suite's others."""
    suite = results.suite.ablations
    reference, names = (suite.reference, suite.students) if suite else (None, [])
    measured = [name for name in names if name in results.scores]
    tasks = _shared(results, [reference, *measured]) if reference in results.scores and measured else []
    titles = {row.student: row.title for row in paper.ABLATIONS} | dict([paper.NO_TEACHER])
    order = [*titles, *(name for name in names if name not in titles)]
    rows = [
        {"student": name, "title": titles.get(name, name)}
        | _values(results, name, str(reference), tasks if name in measured else [])
        for name in order
    ]
    ranked = [row for row in rows if row["change"] is not None and row["paper"] is not None]
    return {
        "reference": reference,
        "tasks": tasks,
        "score": _mean(results, str(reference), tasks) if tasks else None,
        "rows": rows,
        "order": [row["title"] for row in sorted(ranked, key=lambda row: float(row["change"]))],
        "paper_order": [row["title"] for row in sorted(ranked, key=lambda row: float(row["paper"]))],
    }


def _values(results: Results, name: str, reference: str, tasks: Sequence[str]) -> dict[str, Any]:
    """Change in points, its standard error (None where a task has one seed), and the paper's change."""
    published = next((row.change for row in paper.ABLATIONS if row.student == name), None)
    score = _mean(results, name, tasks) if tasks else None
    change = None if score is None else score - _mean(results, reference, tasks)
    errors = [results.scores[model][task].error() for model in (name, reference) for task in tasks]
    known = [error for error in errors if error is not None]
    error = math.hypot(*known) / len(tasks) if tasks and len(known) == len(errors) else None
    losses = [_masked_loss(results, model) for model in (name, reference)]
    return {
        "score": score,
        "change": change,
        "error": error,
        "masked_change": None if None in losses else losses[0] - losses[1],
        "paper": published,
        "difference": None if change is None or published is None else change - published,
        "same_sign": None if change is None or published is None else change * published > 0,
        "verdict": None if published is None else same_sign(change, published, error).resolved(),
    }


def _shared(results: Results, models: Sequence[str | None]) -> list[str]:
    """Tasks with scores of all models on the same examples; only those of GLUE where there are any."""
    first, *others = [results.scores[model] for model in models if model is not None]
    tasks = [
        task
        for task, score in first.items()
        if all(task in other and same_examples(other[task], score) for other in others)
    ]
    glue = [row.task for row in paper.GLUE]
    return sorted([task for task in tasks if paper.key(task) in glue] or tasks)


def _mean(results: Results, model: str, tasks: Sequence[str]) -> float:
    return statistics.fmean(results.scores[model][task].score for task in tasks)


def _masked_loss(results: Results, model: str) -> Any:
    """Held-out masked-word loss in nats; None where not measured."""
    return (results.models[model].facts.get("validation") or {}).get("masked") if model in results.models else None
