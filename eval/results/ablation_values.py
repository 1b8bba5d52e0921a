"""Table 4 of the paper: the change of the mean score when a part of the training is left out.

The mean is over the tasks that the reference and all ablations have scores for.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from eval.results import model_rows, paper
from eval.results.collect import Results
from eval.results.score_values import same_examples, with_examples
from eval.results.uncertainty import mean_versus
from eval.results.verdicts import same_sign


def ablations(results: Results) -> dict[str, Any]:
    """Table 4: the paper's ablations, then the suite's others."""
    suite = results.suite.ablations
    reference = suite.reference if suite else None
    names: list[str] = suite.students if suite else []
    scored = [name for name in names if name in results.scores]
    tasks = _shared(results, [reference, *scored]) if reference in results.scores and scored else []
    titles = {row.student: row.title for row in paper.ABLATIONS} | dict([paper.NO_TEACHER])
    kinds = _kinds(results, names)
    # A row of the paper without such a student is there, too, under its own name.
    absent: list[str] = [kind for kind in titles if kind not in kinds.values()]
    ranked_kinds = [*titles, *model_rows.TITLES]
    order: list[str] = sorted([*absent, *names], key=lambda name: _rank(kinds.get(name) or name, ranked_kinds))
    rows = [
        {"student": name, "kind": (kind := kinds.get(name) or name), "title": _title(name, kind, titles)}
        | _values(results, name, kind, str(reference), tasks if name in scored else [])
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


def _kinds(results: Results, names: Sequence[str]) -> dict[str, str]:
    """What every ablation is, by its recipe; its name where that is not known."""
    found = {name: model_rows.kind(name, model.facts) for name, model in results.models.items() if name in names}
    return {name: found.get(name) or name for name in names}


def _rank(kind: str, ranked: Sequence[str]) -> int:
    return ranked.index(kind) if kind in ranked else len(ranked)


def _title(name: str, kind: str, titles: Mapping[str, str]) -> str:
    return titles.get(kind) or model_rows.TITLES.get(kind, name)


def _values(results: Results, name: str, kind: str, reference: str, tasks: Sequence[str]) -> dict[str, Any]:
    """Change in points, its comparison with the reference, and the paper's change."""
    published = next((row.change for row in paper.ABLATIONS if row.student == kind), None)
    score = _mean(results, name, tasks) if tasks else None
    change = None if score is None else score - _mean(results, reference, tasks)
    against = _versus(results, name, reference, tasks)
    losses = [_masked_loss(results, model) for model in (name, reference)]
    return {
        "score": score,
        "change": change,
        "versus": against,
        "masked_change": None if None in losses else losses[0] - losses[1],
        "paper": published,
        "difference": None if change is None or published is None else change - published,
        "same_sign": None if change is None or published is None else change * published > 0,
        "verdict": None if published is None else same_sign(against, published).resolved(),
    }


def _versus(results: Results, name: str, reference: str, tasks: Sequence[str]) -> dict[str, Any] | None:
    """The change of the mean with its error over examples and seeds, paired where every task is; None without tasks."""
    pairs = [(with_examples(results, name, task), with_examples(results, reference, task)) for task in tasks]
    return mean_versus(pairs).resolved() if pairs else None


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
