"""Reads files of examples as columns: Parquet, JSON lines, TSV, CSV, SQuAD's JSON."""

import csv
import io
import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.telemetry.error_text import first_line
from eval.tasks.definitions import Task

logger = logging.getLogger("stillhouse")

_SQUAD = re.compile(rb'\s*\{\s*("data"|"version"|$)')


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


def read_parquet(path: Path, task: Task) -> SourceTable:
    try:
        table = pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise ExamplesError(f"{path} is no readable Parquet file ({first_line(error)}): get it again") from None
    columns = {name: table.column(name).to_pylist() for name in table.column_names}
    return SourceTable(path.name, str(path), columns, label_names=_class_names(path, table.schema))


def class_names(features: Mapping[str, Any]) -> dict[str, Sequence[str]]:
    """Names of the classes of each ``ClassLabel`` column of a data set."""
    return {name: feature.names for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)}


def _class_names(path: Path, schema: pa.Schema) -> dict[str, Sequence[str]]:
    """The same from the metadata that ``datasets`` writes into Parquet files."""
    if b"huggingface" not in (schema.metadata or {}):
        return {}
    try:
        return class_names(datasets.Features.from_arrow_schema(schema))
    except (ValueError, KeyError, TypeError) as error:
        raise ExamplesError(
            f"{path}: its metadata of datasets cannot be read ({first_line(error)}): write the file without it"
        ) from None


def read_jsonl(path: Path, task: Task) -> SourceTable:
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(_lines(path), start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ExamplesError(f"{path}: line {number} is not JSON ({error.msg}): write one object a line") from None
        if not isinstance(row, dict):
            raise ExamplesError(f"{path}: line {number} is not a JSON object: write one object a line")
        rows.append(row)
    names = dict.fromkeys(name for row in rows for name in row)
    return SourceTable(path.name, str(path), {name: [row.get(name) for row in rows] for name in names}, "line")


def read_json(path: Path, task: Task) -> SourceTable:
    """SQuAD's own form, or one object per line."""
    with path.open("rb") as file:
        first = file.read(200).split(b"\n", 1)[0]
    return read_squad(path) if _SQUAD.match(first) else read_jsonl(path, task)


def read_squad(path: Path) -> SourceTable:
    """One row per question, with the hub's columns: ``id``, ``question``, ``context``, ``answers``."""
    try:
        articles = json.loads(path.read_text(encoding="utf-8"))["data"]
        rows = [
            (question["id"], question["question"], passage["context"], _answers(question))
            for article in articles
            for passage in article["paragraphs"]
            for question in passage["qas"]
        ]
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
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
        paths = sorted((folder / label).glob("*.txt"))
        if not paths:
            raise ExamplesError(f"{folder / label} has no texts (*.txt): unpack the data set again, all of it")
        texts += map(_text, paths)
        numbers += [number] * len(paths)
    return SourceTable(folder.name, str(folder), {"text": texts, "label": numbers}, "file")


def read_tsv(path: Path, task: Task) -> SourceTable:
    """GLUE's own files, in which quotation marks do not quote."""
    rows = [line.split("\t") for line in _lines(path)]
    if task.headerless and not {"label", "sentence"} <= set(rows[0] if rows else ()):
        return _table(path, list(task.headerless), rows, "line", first=1)
    header, body = (rows[0], rows[1:]) if rows else ([], [])
    if task.broken_lines and (broken := sum(len(fields) != len(header) for fields in body)):
        logger.info("%s: skipping %d of %d lines, which are cut in two", path, broken, len(body))
        return _table(path, header, [fields for fields in body if len(fields) == len(header)], "whole line", first=1)
    return _table(path, header, body, "line", first=2)


def read_csv(path: Path, task: Task) -> SourceTable:
    try:
        rows = list(csv.reader(io.StringIO(_text(path), newline=""), strict=True))
    except csv.Error as error:
        raise ExamplesError(
            f"{path} is not CSV ({error}): correct its quotation marks, or save it as JSON lines"
        ) from None
    return _table(path, rows[0] if rows else [], rows[1:], "row", first=1)


READERS: dict[str, Callable[[Path, Task], SourceTable]] = {
    ".parquet": read_parquet,
    ".jsonl": read_jsonl,
    ".json": read_json,
    ".tsv": read_tsv,
    ".csv": read_csv,
}
"""By file ending."""


def _table(path: Path, header: list[str], rows: list[list[str]], unit: str, first: int) -> SourceTable:
    for number, fields in enumerate(rows, start=first):
        if len(fields) != len(header):
            raise ExamplesError(
                f"{path}: {unit} {number} has {len(fields)} fields, not {len(header)} ({', '.join(header)}): "
                "correct it or drop it"
            )
    columns = {name: [fields[index] for fields in rows] for index, name in enumerate(header)}
    return SourceTable(path.name, str(path), columns, unit, first)


def _answers(question: dict[str, Any]) -> dict[str, list[Any]]:
    # SQuAD 2.0 lists plausible wrong answers under another key.
    answers = question.get("answers", [])
    return {key: [answer[key] for answer in answers] for key in ("text", "answer_start")}


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ExamplesError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}): convert it") from None


def _lines(path: Path) -> list[str]:
    """Lines of a text file, split at line feeds only: texts contain other characters at which Python would split."""
    text = _text(path)
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")] if text else []
