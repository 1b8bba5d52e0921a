"""Scores beside the teacher's and the paper's: the values of tables 1 (GLUE) and 2 (IMDb, SQuAD).

A share is only taken of two scores on the same examples by the same metric, a mean only over tasks where both were
measured. Every row of the paper is there, also where nothing was measured.
"""

import dataclasses
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from eval.results import paper
from eval.results.collect import Results
from eval.results.paper import PaperScore
from eval.results.schema import STUDENT, TEACHER, ScoreResult
from eval.results.verdicts import keeps, keeps_mean


def glue(results: Results) -> dict[str, Any]:
    """Table 1: the nine tasks, and their means by the paper's definition, without WNLI, and over what was measured."""
    rows = [_row(published, results) for published in paper.GLUE]
    measured = [row for row in rows if row["kept"] is not None]
    means = [
        _mean("nine", "Mean, all nine", rows, results, paper.MACRO),
        _mean("without-trap", "Mean, no WNLI", [row for row in rows if row["task"] != paper.TRAP], results),
    ]
    if 0 < len(measured) < len(rows):
        means.insert(0, _mean("measured", "Mean, measured", measured, results))
    return {"rows": rows, "means": means}


def downstream(results: Results) -> dict[str, Any]:
    """Table 2: IMDb and SQuAD 1.1, with the second step."""
    return {"rows": [_row(published, results) for published in paper.DOWNSTREAM]}


def others(results: Results) -> list[dict[str, Any]]:
    """Tasks that the paper has no numbers of, in the same columns."""
    tasks = sorted({task for found in results.scores.values() for task in found if not paper.find(task)})
    return [{"title": task, **_ours(task, None, results), "paper": None} for task in tasks]


def everything(results: Results) -> list[dict[str, Any]]:
    """Every model on every task, with all metrics, seeds and settings."""
    order = {row.task: number for number, row in enumerate((*paper.GLUE, *paper.DOWNSTREAM))}
    found = [
        {"model": model, "source": source(model, task), **dataclasses.asdict(score)}
        for model, tasks in results.scores.items()
        for task, score in tasks.items()
    ]
    return sorted(
        found, key=lambda row: (order.get(paper.key(row["task"]), len(order)), row["task"], *_rank(row["model"]))
    )


def source(model: str, task: str) -> str:
    """Where the artifact of a score lies below the results."""
    return f"finetune/{model}/{task}"


def share(score: ScoreResult | None, teacher: ScoreResult | None, metric: str | None = None) -> float | None:
    """Percent of the teacher's score that is kept; None unless both were measured on the same examples."""
    if score is None or teacher is None or not same_examples(score, teacher):
        return None
    ours, of = _values(score, metric)[0], _values(teacher, metric)[0]
    return 100 * ours / of if of > 0 else None


def same_examples(one: ScoreResult, other: ScoreResult) -> bool:
    """Whether two scores can be compared: the same metric on the same examples."""
    first, second = ((score.metric, score.dev_examples, score.dev_files, score.data) for score in (one, other))
    return first == second


def trained_alike(one: ScoreResult | None, other: ScoreResult | None) -> bool | None:
    """Whether two models were fine-tuned on the same examples with the same settings; None unless both were."""
    if one is None or other is None:
        return None
    return (one.train_examples, one.settings) == (other.train_examples, other.settings)


def _row(published: PaperScore, results: Results) -> dict[str, Any]:
    ours = _ours(published.task, published.metric, results)
    return {
        "key": f"{published.task}/{published.metric}" if published.metric else published.task,
        "title": published.title,
        **ours,
        "paper": {
            "elmo": published.elmo,
            "teacher": published.bert_base,
            "teacher_in_means": published.teacher,
            "student": published.distilbert,
            "second_step": published.second_step,
            "kept": published.kept,
        },
        "difference": ours["student"] and ours["student"]["score"] - published.distilbert,
        "verdict": keeps(ours, published.kept).resolved(),
        "note": published.note,
    }


def _ours(task: str, metric: str | None, results: Results) -> dict[str, Any]:
    """What was measured of a task: teacher, student, the student of the second step, and every model's median."""
    found = {model: _find(tasks, task) for model, tasks in results.scores.items()}
    known = {model: score for model, score in found.items() if score is not None}
    teacher, student = known.get(TEACHER), known.get(STUDENT)
    taught = results.suite.second_step or ""
    first = next(iter(known.values()), None)
    measure = teacher or student or first
    return {
        "task": task,
        "metric": metric or (first.metric if first else None),
        "teacher": _measured(teacher, TEACHER, metric),
        "student": _measured(student, STUDENT, metric),
        "second_step": _measured(known.get(taught), taught, metric),
        "kept": share(student, teacher, metric),
        "error": _share_error(teacher, student, metric),
        "kept_second_step": share(known.get(taught), teacher, metric),
        "scores": {model: _values(score, metric)[0] for model, score in known.items()},
        "comparable": [model for model, score in known.items() if measure and same_examples(score, measure)],
        "majority": first.majority if first and metric is None else None,
        "at_chance": {model: model in known and _at_chance(known[model], metric) for model in (TEACHER, STUDENT)},
        "trained_alike": trained_alike(teacher, student),
        "second_step_alike": trained_alike(known.get(taught), student),
        "dev_examples": first.dev_examples if first else None,
        "subset": any(score.subset for score in known.values()),
    }


def _find(tasks: Mapping[str, ScoreResult], key: str) -> ScoreResult | None:
    return next((score for task, score in tasks.items() if key in (task, paper.key(task))), None)


def _measured(score: ScoreResult | None, model: str, metric: str | None) -> dict[str, Any] | None:
    if score is None:
        return None
    median, low, high = _values(score, metric)
    return {
        "score": median,
        "low": low,
        "high": high,
        "seeds": len(score.seeds),
        "error": score.error(metric),
        "source": source(model, score.task),
    }


def _values(score: ScoreResult, metric: str | None) -> tuple[float, float, float]:
    """Median, lowest and highest over seeds: of the task's one number, or of one of its metrics."""
    if metric is None:
        return score.score, score.low, score.high
    spread = score.metrics[metric]
    return spread.median, spread.low, spread.high


def _share_error(teacher: ScoreResult | None, student: ScoreResult | None, metric: str | None) -> float | None:
    """Standard error of the share that is kept, in percent of the teacher's score; None where one had one seed."""
    kept = share(student, teacher, metric)
    if teacher is None or student is None or kept is None or kept <= 0:
        return None
    relative = [
        error / _values(score, metric)[0] for score in (teacher, student) if (error := score.error(metric)) is not None
    ]
    return kept * math.hypot(*relative) if len(relative) == 2 else None


def _at_chance(score: ScoreResult, metric: str | None) -> bool:
    return metric is None and (score.below_majority or (score.majority or 0) >= score.score)


def _mean(
    key: str,
    title: str,
    rows: Sequence[Mapping[str, Any]],
    results: Results,
    published: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """The mean over ``rows`` of every model that was measured, comparably, on all of them."""
    whole = [model for model in _order(results.scores) if all(model in row["comparable"] for row in rows)]
    means = {model: _average(row["scores"][model] for row in rows) for model in whole}
    taught = results.suite.second_step or ""
    teacher, student = means.get(TEACHER), means.get(STUDENT)
    # The printed mean where the paper has one, so that no rounding and no misprint enters twice.
    bert = published["bert_base"] if published else _average(row["paper"]["teacher_in_means"] for row in rows)
    distilbert = published["distilbert"] if published else _average(row["paper"]["student"] for row in rows)
    kept = {model: 100 * mean / teacher for model, mean in means.items()} if teacher else {}
    return {
        "key": key,
        "title": title,
        "tasks": [row["title"] for row in rows],
        "teacher": teacher,
        "student": student,
        "second_step": means.get(taught),
        "kept": kept.get(STUDENT),
        "kept_second_step": kept.get(taught),
        "scores": means,
        "subset": any(row["subset"] for row in rows),
        "paper": {
            "elmo": published["elmo"] if published else _average(row["paper"]["elmo"] for row in rows),
            "teacher": bert,
            "student": distilbert,
            "second_step": None,
            "kept": 100 * distilbert / bert,
        },
        "difference": None if student is None else student - distilbert,
        "verdict": keeps_mean(kept.get(STUDENT), _error_of_share(rows, means), rows).resolved(),
    }


def _error_of_share(rows: Sequence[Mapping[str, Any]], means: Mapping[str, float]) -> float | None:
    """Standard error of the share of a mean that is kept, of those tasks that have several seeds; None without any."""
    if not means.get(TEACHER) or not means.get(STUDENT):
        return None
    errors = [[row[model]["error"] for row in rows if row[model]["error"] is not None] for model in (TEACHER, STUDENT)]
    if not all(errors):
        return None
    relative = [
        math.hypot(*each) / len(rows) / means[model] for each, model in zip(errors, (TEACHER, STUDENT), strict=True)
    ]
    return 100 * means[STUDENT] / means[TEACHER] * math.hypot(*relative)


def _order(models: Iterable[str]) -> list[str]:
    return sorted(models, key=_rank)


def _rank(model: str) -> tuple[bool, bool, str]:
    return (model != TEACHER, model != STUDENT, model)


def _average(values: Iterable[float]) -> float:
    return statistics.fmean(values)
