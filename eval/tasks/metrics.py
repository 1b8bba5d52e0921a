"""Metrics in percent: accuracy, F1, Matthews, Pearson, Spearman, and their means.

Constant predictions have a defined score, without a warning: F1 is 0 without predicted or real positives; Matthews,
Pearson and Spearman are 0 where predictions or labels are constant.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import stats
from sklearn import metrics

from eval.tasks.definitions import Metric, Task

Values: TypeAlias = npt.NDArray[Any]

# Below this spread, relative to the mean, 64-bit rounding decides a correlation, and scipy warns.
CONSTANT = 1e-11


def accuracy(predictions: Values, labels: Values) -> float:
    return float(metrics.accuracy_score(labels, predictions))


def f1(predictions: Values, labels: Values) -> float:
    """F1 of class 1: the paraphrases of MRPC, the duplicates of QQP."""
    return float(metrics.f1_score(labels, predictions, pos_label=1, zero_division=0.0))


def matthews(predictions: Values, labels: Values) -> float:
    if _is_constant(predictions) or _is_constant(labels):
        return 0.0
    return float(metrics.matthews_corrcoef(labels, predictions))


def pearson(predictions: Values, labels: Values) -> float:
    return _correlation(stats.pearsonr, predictions, labels)


def spearman(predictions: Values, labels: Values) -> float:
    return _correlation(stats.spearmanr, predictions, labels)


METRICS: dict[Metric, Callable[[Values, Values], float]] = {
    "accuracy": accuracy,
    "f1": f1,
    "matthews": matthews,
    "pearson": pearson,
    "spearman": spearman,
}


def measure(task: Task, predictions: Values, labels: Values) -> dict[str, float]:
    """All metrics of a task in percent, and its headline (``accuracy_f1``) where that is a mean.

    ``predictions`` and ``labels`` are ``[examples]``: class numbers, or scores of a regression task.
    """
    values: dict[str, float] = {name: 100.0 * METRICS[name](predictions, labels) for name in task.metrics}
    return values | {task.headline_name: headline(task, values)}


def headline(task: Task, measured: dict[str, float]) -> float:
    """The task's score in percent: the mean of its headline metrics."""
    return float(np.mean([measured[name] for name in task.headline]))


def majority(task: Task, train_labels: Values, dev_labels: Values) -> float:
    """Headline score in percent of predicting the training set's most frequent class, or mean score, for all rows."""
    constant = np.bincount(train_labels).argmax() if task.label_range is None else train_labels.mean()
    return headline(task, measure(task, np.full(len(dev_labels), constant), dev_labels))


def _correlation(of: Callable[[Values, Values], Any], *sides: Values) -> float:
    first, second = (np.asarray(side, dtype=np.float64) for side in sides)
    if _is_constant(first) or _is_constant(second):
        return 0.0
    return float(of(first, second).statistic)


def _is_constant(values: Values) -> bool:
    return bool(np.ptp(values) <= CONSTANT * abs(np.mean(values)))
