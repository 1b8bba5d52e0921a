"""What each development example contributes to a score: the numbers that its standard error follows from.

They are the pseudo-values of the jackknife (Efron and Stein 1981): ``n * score - (n - 1) * score without the example``.
Their mean is the score, for an accuracy exactly; the standard error of their mean is that of the score; and where two
models are scored on the same examples, the differences of their values give the error of the difference.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from eval.tasks.definitions import Task
from eval.tasks.metrics import METRICS, Values

FILE = "examples.parquet"
SCORE = "score"
"""Column of the headline score."""

Columns = Mapping[str, npt.NDArray[Any]]


def contributions(task: Task, predictions: Values, labels: Values) -> Columns:
    """Values ``[examples]`` in percent for the headline and every metric of a task of classes or scores."""
    found: dict[str, Values] = {name: 100.0 * _values(METRICS[name], predictions, labels) for name in task.metrics}
    return with_headline(task, found)


def with_headline(task: Task, found: Columns) -> Columns:
    """The values of every metric, and those of the task's headline, a mean of some of them."""
    return {SCORE: np.mean([found[name] for name in task.headline], axis=0), **found}


def write(folder: Path, columns: Columns) -> None:
    """Write the values beside the scores that they belong to."""
    table = pa.table({name: pa.array(values.astype(np.float32)) for name, values in columns.items()})
    pq.write_table(table, folder / FILE, compression="zstd")


def _values(metric: Callable[[Values, Values], float], predictions: Values, labels: Values) -> npt.NDArray[np.float64]:
    """The jackknife's pseudo-values; examples with the same prediction and label share one."""
    count = len(labels)
    if count < 2:
        return np.full(count, metric(predictions, labels))
    pairs = np.stack([predictions, labels], axis=1)
    _, first, of_example = np.unique(pairs, axis=0, return_index=True, return_inverse=True)
    without = np.array([metric(np.delete(predictions, place), np.delete(labels, place)) for place in first])
    values: npt.NDArray[np.float64] = (
        count * metric(predictions, labels) - (count - 1) * without[of_example.reshape(-1)]
    )
    return values
