"""Tables 1 (GLUE) and 2 (IMDb, SQuAD) of the paper: our scores, the share of the teacher's score, and verdicts.

A share needs two scores by the same metric on the same examples, a mean all of its tasks. Every row of the paper is
there, also without a measurement.
"""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from eval.results import paper
from eval.results.collect import BAGS, Results
from eval.results.paper import PaperScore
from eval.results.schema import STUDENT, TEACHER, ScoreResult, model_order
from eval.results.uncertainty import Measured, Pairs, mean_versus, share_range, versus
from eval.results.verdicts import keeps, keeps_mean

BAG = "bag_of_words"
"""The bag of words among the models that a score is compared with."""


def glue(results: Results) -> dict[str, Any]:
    """Table 1: the nine tasks, their mean as in the paper, the mean without WNLI, and the mean of measured tasks."""
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
    """Tasks that are not in the paper, in the same columns."""
    tasks = sorted({task for scores in results.scores.values() for task in scores if not paper.find(task)})
    return [{"title": task, **_ours(task, None, results), "paper": None} for task in tasks]


def everything(results: Results) -> list[dict[str, Any]]:
    """Every model on every task, with all metrics, seeds and settings."""
    order = {row.task: number for number, row in enumerate((*paper.GLUE, *paper.DOWNSTREAM))}
    rows = [
        {"model": model, "source": source(model, task), **dataclasses.asdict(score)}
        | with_examples(results, model, task).errors()
        for model, tasks in results.scores.items()
        for task, score in tasks.items()
    ]
    return sorted(
        rows, key=lambda row: (order.get(paper.key(row["task"]), len(order)), row["task"], *model_order(row["model"]))
    )


def bags(results: Results) -> list[dict[str, Any]]:
    """The bag of words of every task that has one."""
    return [
        {"task": task, "metric": score.metric, "features": score.settings.get("features"), "seconds": score.seconds}
        | _measured(Measured(score, results.examples.get(bag_source(task))), bag_source(task), None)
        for task, score in sorted(results.bags.items())
    ]


def with_examples(results: Results, model: str, task: str) -> Measured:
    """A model's score on a task, with the values of its examples."""
    return Measured(results.scores[model][task], results.examples.get(source(model, task)))


def source(model: str, task: str) -> str:
    """Path of a score's artifact below the results."""
    return f"finetune/{model}/{task}"


def bag_source(task: str) -> str:
    """Path of the artifact of a task's bag of words below the results."""
    return f"{BAGS}/{task}"


def share(score: ScoreResult | None, teacher: ScoreResult | None, metric: str | None = None) -> float | None:
    """Percent of the teacher's score that the model keeps; None unless both are on the same examples."""
    if score is None or teacher is None or not same_examples(score, teacher):
        return None
    ours, of = _values(score, metric)[0], _values(teacher, metric)[0]
    return 100 * ours / of if of > 0 else None


def same_examples(one: ScoreResult, other: ScoreResult) -> bool:
    """Whether two scores can be compared: the same metric on the same examples."""
    first, second = ((score.metric, score.dev_examples, score.dev_files, score.data) for score in (one, other))
    return first == second


def trained_alike(one: ScoreResult | None, other: ScoreResult | None) -> bool | None:
    """Whether two models were fine-tuned on as many examples with the same settings; None unless both were."""
    if one is None or other is None:
        return None
    return (one.train_examples, one.settings) == (other.train_examples, other.settings)


def _row(published: PaperScore, results: Results) -> dict[str, Any]:
    ours = _ours(published.task, published.metric, results)
    against = _against(_pairs([ours], results), published.metric, published.kept) if ours["kept"] is not None else None
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
        "versus_paper": against,
        "verdict": keeps(ours, against).resolved(),
        "note": published.note,
    }


def _ours(task: str, metric: str | None, results: Results) -> dict[str, Any]:
    """Our scores of a task: teacher, student, student of the second step, and every model's median."""
    found = _found(task, results)
    scores = {model: each.score for model, each in found.items()}
    bag = next((score for name, score in results.bags.items() if task in (name, paper.key(name))), None)
    if bag is not None:
        found[BAG] = Measured(bag, results.examples.get(bag_source(bag.task)))
    teacher, student = scores.get(TEACHER), scores.get(STUDENT)
    distilled = results.suite.second_step or ""
    first = next(iter(scores.values()), None)
    measure = teacher or student or first
    kept = share(student, teacher, metric)
    return {
        "task": task,
        "metric": metric or (first.metric if first else None),
        **{
            side: _measured(found[model], _path(model, found[model]), metric) if model in found else None
            for side, model in (
                (TEACHER, TEACHER),
                (STUDENT, STUDENT),
                ("second_step", distilled),
                ("bag_of_words", BAG),
            )
        },
        "versus": _versus(found, STUDENT, metric),
        "teacher_versus_bag": _versus(found, TEACHER, metric).get(BAG),
        "second_step_versus": _versus(found, distilled, metric).get(STUDENT),
        "kept": kept,
        **_kept_range([(found[STUDENT], found[TEACHER])] if kept is not None else [], metric),
        "kept_second_step": share(scores.get(distilled), teacher, metric),
        "scores": {model: _values(score, metric)[0] for model, score in scores.items()},
        "comparable": [model for model, score in scores.items() if measure and same_examples(score, measure)],
        "majority": first.majority if first and metric is None else None,
        "at_chance": {
            model: model in scores and metric is None and scores[model].at_chance for model in (TEACHER, STUDENT)
        },
        "trained_alike": trained_alike(teacher, student),
        "second_step_alike": trained_alike(scores.get(distilled), student),
        "dev_examples": first.dev_examples if first else None,
        "subset": any(score.subset for score in scores.values()),
    }


def _found(task: str, results: Results) -> dict[str, Measured]:
    """Every model's score on a task, which the paper may spell otherwise."""
    return {
        model: with_examples(results, model, name)
        for model, tasks in results.scores.items()
        for name in [name for name in tasks if task in (name, paper.key(name))][:1]
    }


def _pairs(rows: Sequence[Mapping[str, Any]], results: Results) -> Pairs:
    """Student and teacher on the tasks of ``rows``."""
    found = [_found(row["task"], results) for row in rows]
    return [(each[STUDENT], each[TEACHER]) for each in found]


def _against(pairs: Pairs, metric: str | None, aim: float) -> dict[str, Any]:
    """The student's score, or mean, minus ``aim`` percent of the teacher's."""
    return mean_versus(pairs, metric, aim / 100).resolved()


def _kept_range(pairs: Pairs, metric: str | None) -> dict[str, float | None]:
    low, high = share_range(pairs, metric) if pairs else (None, None)
    return {"kept_low": low, "kept_high": high}


def _path(model: str, found: Measured) -> str:
    return bag_source(found.score.task) if model == BAG else source(model, found.score.task)


def _measured(found: Measured, place: str, metric: str | None) -> dict[str, Any]:
    median, low, high = _values(found.score, metric)
    return {
        "score": median,
        "low": low,
        "high": high,
        "seeds": len(found.score.seeds),
        "examples": found.score.dev_examples,
        **found.errors(metric),
        "source": place,
    }


def _versus(found: Mapping[str, Measured], model: str, metric: str | None) -> dict[str, dict[str, Any]]:
    """A model's score minus that of every other one, and of the bag of words, on the same examples."""
    if model not in found:
        return {}
    own = found[model]
    others = {
        name: other
        for name, other in found.items()
        if name != model and same_examples(own.score, other.score) and _has(other.score, metric)
    }
    return {name: versus(own, other, metric).resolved() for name, other in others.items()}


def _has(score: ScoreResult, metric: str | None) -> bool:
    return metric is None or metric in score.metrics


def _values(score: ScoreResult, metric: str | None) -> tuple[float, float, float]:
    """Median, lowest and highest over seeds of a metric; None is the headline score."""
    if metric is None:
        return score.score, score.low, score.high
    spread = score.metrics[metric]
    return spread.median, spread.low, spread.high


def _mean(
    key: str,
    title: str,
    rows: Sequence[Mapping[str, Any]],
    results: Results,
    printed: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """The mean over ``rows`` of every model with comparable scores on all of them.

    ``printed`` has the paper's own means where it prints them, free of the rounding of its rows.
    """
    whole = [
        model for model in sorted(results.scores, key=model_order) if all(model in row["comparable"] for row in rows)
    ]
    means = {model: statistics.fmean(row["scores"][model] for row in rows) for model in whole}
    distilled = results.suite.second_step or ""
    teacher, student = means.get(TEACHER), means.get(STUDENT)
    names = {"elmo": "elmo", "bert_base": "teacher_in_means", "distilbert": "student"}
    published = printed or {name: statistics.fmean(row["paper"][of] for row in rows) for name, of in names.items()}
    kept = {model: 100 * mean / teacher for model, mean in means.items()} if teacher else {}
    pairs = _pairs(rows, results) if kept.get(STUDENT) is not None else []
    against = _against(pairs, None, paper.TARGET_PERCENT) if pairs else None
    return {
        "key": key,
        "title": title,
        "tasks": [row["title"] for row in rows],
        "teacher": teacher,
        "student": student,
        "second_step": means.get(distilled),
        "kept": kept.get(STUDENT),
        **_kept_range(pairs, None),
        "kept_second_step": kept.get(distilled),
        "scores": means,
        "subset": any(row["subset"] for row in rows),
        "paper": {
            "elmo": published["elmo"],
            "teacher": published["bert_base"],
            "student": published["distilbert"],
            "second_step": None,
            "kept": 100 * published["distilbert"] / published["bert_base"],
        },
        "difference": None if student is None else student - published["distilbert"],
        "versus_target": against,
        "verdict": keeps_mean(rows, against).resolved(),
    }
