"""Labelled texts of a task, from a folder of files or the Hugging Face hub, checked row by row."""

import abc
import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

import numpy as np
import numpy.typing as npt

from eval.tasks.declared_names import LABEL_NAMES, label_names
from eval.tasks.definitions import Task
from eval.tasks.file_readers import ExamplesError, SourceTable
from eval.tasks.label_matching import class_named, classes_named, unnamed
from eval.tasks.layouts import SUBSET, Splits, hub, local

LABEL_TEXT = "label_text"
"""Column with the name of each row's class."""


@dataclass(frozen=True)
class TaskSplit(abc.ABC):
    """One split of a task; ``files`` are the names of the files it was read from."""

    files: tuple[str, ...]

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def rows(self, rows: Sequence[int]) -> Self:
        """Some of the rows, in this order."""

    @property
    def is_subset(self) -> bool:
        return any(map(SUBSET.search, self.files))

    def sample(self, limit: int | None) -> Self:
        """At most ``limit`` rows, the same ones for every model and training seed."""
        if limit is None or limit >= len(self):
            return self
        return self.rows(np.sort(np.random.default_rng(0).permutation(len(self))[:limit]).tolist())


@dataclass(frozen=True)
class Examples(TaskSplit):
    """``texts`` holds one or two columns of texts, ``labels`` ``[rows]`` int64 classes or float32 scores."""

    texts: tuple[tuple[str, ...], ...]
    labels: npt.NDArray[Any]

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, rows: Sequence[int]) -> Self:
        texts = tuple(tuple(column[row] for row in rows) for column in self.texts)
        return dataclasses.replace(self, texts=texts, labels=self.labels[rows])


S = TypeVar("S", bound=TaskSplit)


@dataclass(frozen=True)
class TaskData(Generic[S]):
    """A task with its label names, its training split, and one or two splits to score on."""

    task: Task
    train: S
    dev: tuple[S, ...]

    @classmethod
    def read(cls, task: Task, splits: Splits, of: Callable[[Task, Sequence[SourceTable]], S]) -> Self:
        return cls(task, of(task, splits(task.train)), tuple(of(task, splits(names)) for names in task.dev))

    def sample(self, train_limit: int | None, dev_limit: int | None) -> Self:
        """At most this many rows of each split."""
        dev = tuple(split.sample(dev_limit) for split in self.dev)
        return dataclasses.replace(self, train=self.train.sample(train_limit), dev=dev)


def from_folder(task: Task, folder: Path) -> TaskData[Examples]:
    """All splits of a task from local files.

    Raises:
        ExamplesError: a split or column is missing, or a row has no text or no label of this task.
    """
    return TaskData.read(_named(task, folder), local(task, folder), _examples)


def dev_from_folder(task: Task, folder: Path) -> tuple[Task, list[Examples]]:
    """The development sets alone, and the task with the label names of the data.

    Raises:
        ExamplesError: as :func:`from_folder`.
    """
    task = _named(task, folder)
    splits = local(task, folder)
    return task, [_examples(task, splits(names)) for names in task.dev]


def from_hub(task: Task, name: str) -> TaskData[Examples]:
    """All splits of a task from the hub; ``name`` is ``owner/name`` or ``owner/name:configuration``.

    Raises:
        ExamplesError: the data set cannot be fetched, or as :func:`from_folder`.
    """
    return TaskData.read(task, hub(task, name), _examples)


def _named(task: Task, folder: Path) -> Task:
    """The task with the label names of its data, where the task has none."""
    if task.label_names or task.label_range is not None:
        return task
    names = label_names(folder)
    if names is None:
        raise ExamplesError(f"{folder} has no {LABEL_NAMES}: make the data with stillhouse {task.command}")
    return dataclasses.replace(task, label_names=tuple(names))


def _examples(task: Task, tables: Sequence[SourceTable]) -> Examples:
    texts = tuple(
        tuple(text for table in tables for text in _texts(table, _column(table, names))) for names in task.columns
    )
    # Data sets that number their classes in their own way often have the names beside the numbers.
    named = () if task.label_range is not None else (LABEL_TEXT,)
    labels = [
        label for table in tables for label in _labels(task, table, _column(table, (*named, *task.label_columns)))
    ]
    if not labels:
        raise ExamplesError(f"{tables[0].where} has no examples: give a file with rows")
    kind = np.int64 if task.label_range is None else np.float32
    return Examples(tuple(table.name for table in tables), texts, np.array(labels, dtype=kind))


def _column(table: SourceTable, names: Sequence[str]) -> str:
    present = [name for name in names if name in table.columns]
    if present:
        _check_alike(table, [name for name in present if name != LABEL_TEXT])
        return present[0]
    if not table.columns:
        raise ExamplesError(f"{table.where} is empty: give a file with rows")
    columns = ", ".join(table.columns)
    names = [name for name in names if name != LABEL_TEXT]
    raise ExamplesError(f"{table.where}: no column {' or '.join(names)} among {columns}: rename the right one")


def _check_alike(table: SourceTable, names: Sequence[str]) -> None:
    """Refuse two columns that may both be meant, unless they have the same values."""
    for other in names[1:]:
        if list(table.columns[other]) != list(table.columns[names[0]]):
            raise ExamplesError(
                f"{table.where}: the columns {names[0]} and {other} differ, and either may be meant: drop one of them"
            )


def _texts(table: SourceTable, column: str) -> Iterable[str]:
    for row, value in enumerate(table.columns[column]):
        if not isinstance(value, str):
            raise ExamplesError(f"{table.place(row)}: {column} is {value!r}, not text: write the text, or drop the row")
        yield value


def _labels(task: Task, table: SourceTable, column: str) -> Iterable[float]:
    numbers = _numbering(task, table, column)
    for row, value in enumerate(table.columns[column]):
        try:
            yield _label(task, value, numbers)
        except ExamplesError as error:
            raise ExamplesError(f"{table.place(row)}: {column} is {error}") from None


def _numbering(task: Task, table: SourceTable, column: str) -> Mapping[int, float] | None:
    """The class or score that each number of a column means; None where the data does not name its numbers.

    Raises:
        ExamplesError: the names are not the task's.
    """
    names = table.label_names.get(column)
    if names is None:
        return None
    plain = [unnamed(name) for name in names]
    found = classes_named(task, names)
    if found is None and None not in plain:
        # datasets names the classes of a column of numbers by these numbers: 0 of the names "3", "5" means 3.
        low, high = task.label_range or (0, len(task.label_names) - 1)
        return {number: float(name) for number, name in enumerate(plain) if name is not None and low <= name <= high}
    if found is None:
        ours = ", ".join(task.label_names) or _expected(task)
        raise ExamplesError(
            f"{table.where}: {column} has the classes {', '.join(names)}, {task.name} has {ours}: "
            f"rename them, or give data of {task.name}"
        )
    return dict(enumerate(found))


def _label(task: Task, value: Any, numbers: Mapping[int, float] | None) -> float:
    """The class number or score of a label; ``numbers`` is what the data means by its own numbers.

    Raises:
        ExamplesError: the value is no label of the task; the message continues "column is".
    """
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        raise ExamplesError(f"missing: write {_expected(task)}, or drop the row")
    if isinstance(value, str | bool) and (named := class_named(task, str(value))) is not None:
        return named
    number = None if isinstance(value, bool) else _number(value)
    if number == -1:
        raise ExamplesError("-1, a hidden test label: use the dev or validation split, whose labels are known")
    low, high = task.label_range or (0, len(task.label_names) - 1)
    if number is None or (task.label_range is None and number != int(number)):
        raise ExamplesError(f"{value!r}, which is no label of {task.name}: write {_expected(task)}, or drop the row")
    if numbers is not None and number in numbers:
        return numbers[int(number)]
    if not low <= number <= high or numbers is not None:
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
