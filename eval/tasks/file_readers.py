"""Reads files of examples as columns: Parquet, Arrow, JSON lines, TSV, CSV, SQuAD's JSON."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.artifacts.errors import StageError
from cluster.readers import whole_files
from cluster.storage import filesystem
from eval.tasks.definitions import Task

logger = logging.getLogger("stillhouse")


class ExamplesError(ValueError):
    """The data of a task is missing, or a row does not fit the task."""


@dataclass(frozen=True)
class SourceTable:
    """Columns of one file, or of one split of a hub data set; ``where`` is its path or address, for errors."""

    name: str
    where: str
    columns: Mapping[str, Sequence[Any]]
    unit: str = "row"
    first: int = 1
    """Number of the first row in error messages, counted in ``unit``."""
    label_names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """For each column of numbered classes the names of its numbers, where the data has them."""

    def place(self, row: int) -> str:
        return f"{self.where}: {self.unit} {self.first + row}"


def read(path: Path, task: Task) -> SourceTable:
    """The examples in a file of one of the forms of :data:`READERS`.

    Raises:
        ExamplesError: the file cannot be read, or has not the form that its ending says.
    """
    try:
        return READERS[whole_files.form(path.name)](path, task)
    except StageError as error:
        raise ExamplesError(str(error)) from None


def _columnar(path: Path, task: Task) -> SourceTable:
    columns: dict[str, list[Any]] = {}
    for batch in whole_files.batches(str(path)):
        for name, values in batch.items():
            columns.setdefault(name, []).extend(values)
    return SourceTable(path.name, str(path), columns)


def _json(path: Path, task: Task) -> SourceTable:
    """SQuAD's own form, one object per line, or one array of objects."""
    found = whole_files.json_values(str(path))
    if len(found) == 1 and isinstance(value := found[0][1], dict) and "data" in value:
        return _squad(path, value)
    unit = "line"
    if len(found) == 1 and isinstance(value, list):
        found, unit = list(enumerate(value, start=1)), "object"
    for number, row in found:
        if not isinstance(row, dict):
            raise ExamplesError(f"{path}: {unit} {number} is not a JSON object: write one object a line")
    names = dict.fromkeys(name for _, row in found for name in row)
    columns = {name: [row.get(name) for _, row in found] for name in names}
    return SourceTable(path.name, str(path), columns, unit)


def _squad(path: Path, value: dict[str, Any]) -> SourceTable:
    """One row per question, with the hub's columns: ``id``, ``question``, ``context``, ``answers``."""
    try:
        rows = [
            (question["id"], question["question"], passage["context"], _answers(question))
            for article in value["data"]
            for passage in article["paragraphs"]
            for question in passage["qas"]
        ]
    except (KeyError, TypeError) as error:
        raise ExamplesError(
            f"{path} is not a SQuAD file ({type(error).__name__}: {error}): it holds data, paragraphs, qas as published"
        ) from None
    names = ("id", "question", "context", "answers")
    return SourceTable(
        path.name, str(path), {name: [row[index] for row in rows] for index, name in enumerate(names)}, "question"
    )


def read_text_folders(folder: Path, labels: Sequence[str]) -> SourceTable:
    """``<label>/*.txt``, one file per text, ordered by label and name; columns ``text`` and ``label``."""
    texts: list[str] = []
    numbers: list[int] = []
    for number, label in enumerate(labels):
        paths = [found.location for found in filesystem.files(folder / label, (".txt",))]
        if not paths:
            raise ExamplesError(f"{folder / label} has no texts (*.txt): unpack the data set again, all of it")
        try:
            texts += [whole_files.text(str(path)) for path in paths]
        except StageError as error:
            raise ExamplesError(str(error)) from None
        numbers += [number] * len(paths)
    return SourceTable(folder.name, str(folder), {"text": texts, "label": numbers}, "file")


def _tsv(path: Path, task: Task) -> SourceTable:
    """GLUE's own files, in which quotation marks do not quote."""
    rows = whole_files.tsv(str(path))
    if task.headerless and not {"label", "sentence"} <= set(rows[0] if rows else ()):
        return _table(path, list(task.headerless), rows, "line", first=1)
    header, body = (rows[0], rows[1:]) if rows else ([], [])
    if task.broken_lines and (broken := sum(len(fields) != len(header) for fields in body)):
        logger.info("%s: skipping %d of %d lines, which are cut in two", path, broken, len(body))
        return _table(path, header, [fields for fields in body if len(fields) == len(header)], "whole line", first=1)
    return _table(path, header, body, "line", first=2)


def _csv(path: Path, task: Task) -> SourceTable:
    rows = whole_files.csv_rows(str(path))
    return _table(path, rows[0] if rows else [], rows[1:], "row", first=1)


READERS: dict[str, Callable[[Path, Task], SourceTable]] = {
    ".parquet": _columnar,
    ".arrow": _columnar,
    ".jsonl": _json,
    ".json": _json,
    ".tsv": _tsv,
    ".csv": _csv,
}
"""By file ending."""


def _table(path: Path, header: list[str], rows: list[list[str]], unit: str, first: int) -> SourceTable:
    for number, fields in enumerate(rows, start=first):
        if len(fields) != len(header):
            raise ExamplesError(
                f"{path}: {unit} {number} has {len(fields)} fields, not {len(header)} ({', '.join(header)}): "
                "correct it or drop it"
            )
    if twice := [name for number, name in enumerate(header) if name and name in header[:number]]:
        raise ExamplesError(f"{path} has two columns {twice[0]}: rename or delete one")
    columns = {name: [fields[index] for fields in rows] for index, name in enumerate(header)}
    return SourceTable(path.name, str(path), columns, unit, first)


def _answers(question: dict[str, Any]) -> dict[str, list[Any]]:
    # SQuAD 2.0 lists plausible wrong answers under another key.
    answers = question.get("answers", [])
    return {key: [answer[key] for answer in answers] for key in ("text", "answer_start")}
