"""Labelled texts of a task, from a folder of files or the Hugging Face hub, checked row by row."""

import dataclasses
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from eval.tasks.definitions import Task
from eval.tasks.file_readers import ExamplesError, SourceTable
from eval.tasks.layouts import SUBSET, Splits, hub, local

LABEL_NAMES = "labels.json"


@dataclass(frozen=True)
class Examples:
    """One split: where it came from, ``columns`` texts a row, and labels ``[rows]`` (int64 classes, float32 scores)."""

    files: tuple[str, ...]
    texts: tuple[tuple[str, ...], ...]
    labels: npt.NDArray[Any]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def is_subset(self) -> bool:
        return any(map(SUBSET.search, self.files))

    def sample(self, limit: int | None) -> "Examples":
        """At most ``limit`` examples, drawn without regard to the seed of training: every seed sees the same ones."""
        if limit is None or limit >= len(self):
            return self
        chosen = np.sort(np.random.default_rng(0).permutation(len(self))[:limit])
        texts = tuple(tuple(column[row] for row in chosen) for column in self.texts)
        return Examples(self.files, texts, self.labels[chosen])


@dataclass(frozen=True)
class TaskData:
    """A task with its label names, its training examples, and one or two sets to score on."""

    task: Task
    train: Examples
    dev: tuple[Examples, ...]

    def sample(self, train_limit: int | None, dev_limit: int | None) -> "TaskData":
        """At most so many examples of each set."""
        dev = tuple(examples.sample(dev_limit) for examples in self.dev)
        return TaskData(self.task, self.train.sample(train_limit), dev)


def from_folder(task: Task, folder: Path) -> TaskData:
    """All splits of a task from local files.

    Raises:
        ExamplesError: a split or column is not there, or a row has no text or no label of this task.
    """
    return _data(_named(task, folder), local(task, folder))


def dev_from_folder(task: Task, folder: Path) -> tuple[Task, list[Examples]]:
    """The sets to score on alone, and the task with the label names that the data brings.

    Raises:
        ExamplesError: as :func:`from_folder`.
    """
    task = _named(task, folder)
    splits = local(task, folder)
    return task, [_examples(task, splits(names)) for names in task.dev]


def from_hub(task: Task, name: str) -> TaskData:
    """All splits of a task from the hub; ``name`` is ``owner/name`` or ``owner/name:configuration``.

    Raises:
        ExamplesError: it cannot be fetched, or as :func:`from_folder`.
    """
    return _data(task, hub(task, name))


def _data(task: Task, splits: Splits) -> TaskData:
    train, *dev = (_examples(task, splits(names)) for names in (task.train, *task.dev))
    return TaskData(task, train, tuple(dev))


def _named(task: Task, folder: Path) -> Task:
    """The task with the label names that its data brings, where the table has none."""
    if task.label_names or task.label_range is not None:
        return task
    path = folder / LABEL_NAMES
    if not path.is_file():
        raise ExamplesError(f"{folder} has no {LABEL_NAMES}: make the {task.name} data with stillhouse provenance")
    names = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(names, list) or len(names) < 2 or not all(isinstance(name, str) for name in names):
        raise ExamplesError(f"{path} is not a list of two or more label names: make it again")
    return dataclasses.replace(task, label_names=tuple(names))


def _examples(task: Task, tables: Sequence[SourceTable]) -> Examples:
    texts = tuple(
        tuple(text for table in tables for text in _texts(table, _column(table, names))) for names in task.columns
    )
    labels = [label for table in tables for label in _labels(task, table, _column(table, task.label_columns))]
    if not labels:
        raise ExamplesError(f"{tables[0].where} has no examples: give one with rows")
    kind = np.int64 if task.label_range is None else np.float32
    return Examples(tuple(table.name for table in tables), texts, np.array(labels, dtype=kind))


def _column(table: SourceTable, names: Sequence[str]) -> str:
    for name in names:
        if name in table.columns:
            return name
    if not table.columns:
        raise ExamplesError(f"{table.where} is empty: get it again")
    found = ", ".join(table.columns)
    raise ExamplesError(f"{table.where}: no column {' or '.join(names)} among {found}: rename the one that is meant")


def _texts(table: SourceTable, column: str) -> Iterable[str]:
    for row, value in enumerate(table.columns[column]):
        if not isinstance(value, str):
            raise ExamplesError(f"{table.place(row)}: {column} is {value!r}, not text: write the text, or drop the row")
        yield value


def _labels(task: Task, table: SourceTable, column: str) -> Iterable[float]:
    for row, value in enumerate(table.columns[column]):
        try:
            yield _label(task, value)
        except ExamplesError as error:
            raise ExamplesError(f"{table.place(row)}: {column} is {error}") from None


def _label(task: Task, value: Any) -> float:
    """The class number or score a label means.

    Raises:
        ExamplesError: what it is instead of a label, and which labels there are.
    """
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        raise ExamplesError(f"missing: write {_expected(task)}, or drop the row")
    if isinstance(value, str) and value in task.label_names:
        return task.label_names.index(value)
    number = _number(value)
    if number == -1:
        raise ExamplesError("-1, a hidden test label: use the dev or validation split, whose labels are known")
    low, high = task.label_range or (0, len(task.label_names) - 1)
    if number is None or (task.label_range is None and number != int(number)):
        raise ExamplesError(f"{value!r}, which is no label of {task.name}: write {_expected(task)}")
    if not low <= number <= high:
        raise ExamplesError(f"{value}, out of range: write {_expected(task)}")
    return number


def _expected(task: Task) -> str:
    if task.label_range is not None:
        return "a number from {:g} to {:g}".format(*task.label_range)
    return f"one of {', '.join(f'{number} ({name})' for number, name in enumerate(task.label_names))}"


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
