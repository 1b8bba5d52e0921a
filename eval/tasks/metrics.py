"""How good predictions are, in percent: accuracy, F1, Matthews, Pearson, Spearman, and their means.

A model that learned nothing often predicts one value for everything. Its score is then defined here, without a
warning: F1 is 0 when no positive is predicted or none exists; Matthews, Pearson and Spearman are 0 whenever
predictions or labels are constant, because knowing a constant says nothing about the other side.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import stats
from sklearn import metrics

from eval.tasks.definitions import Metric, Task

Values: TypeAlias = npt.NDArray[Any]

# Below this spread, relative to the mean, 64-bit rounding decides a correlation (scipy warns there).
CONSTANT = 1e-11


def accuracy(predictions: Values, labels: Values) -> float:
    return float(metrics.accuracy_score(labels, predictions))


def f1(predictions: Values, labels: Values) -> float:
    """F1 of class 1, the paraphrases and duplicates of MRPC and QQP."""
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
    """All metrics of a task, in percent, and the mean that is its headline (``accuracy_f1``) where it is a mean.

    ``predictions`` and ``labels`` are ``[examples]``: class numbers, or scores of a regression task.
    """
    found: dict[str, float] = {name: 100.0 * METRICS[name](predictions, labels) for name in task.metrics}
    return found | {task.headline_name: headline(task, found)}


def headline(task: Task, measured: dict[str, float]) -> float:
    """The task's one number, in percent: the mean of its headline metrics."""
    return float(np.mean([measured[name] for name in task.headline]))


def majority(task: Task, train_labels: Values, dev_labels: Values) -> float:
    """Headline score of always predicting the training set's most frequent class (or mean score), in percent."""
    constant = np.bincount(train_labels).argmax() if task.label_range is None else train_labels.mean()
    return headline(task, measure(task, np.full(len(dev_labels), constant), dev_labels))


def _correlation(of: Callable[[Values, Values], Any], *sides: Values) -> float:
    first, second = (np.asarray(side, dtype=np.float64) for side in sides)
    if _is_constant(first) or _is_constant(second):
        return 0.0
    return float(of(first, second).statistic)


def _is_constant(values: Values) -> bool:
    return bool(np.ptp(values) <= CONSTANT * abs(np.mean(values)))
