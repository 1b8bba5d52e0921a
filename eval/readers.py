"""Files of examples as columns: Parquet, JSON lines, TSV and CSV, with the place of every row for errors."""

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


class ExamplesError(ValueError):
    """The data of a task is missing, or a row of it is not what the task says."""


@dataclass(frozen=True)
class Table:
    """Columns as read from one file (or one split of a hub data set), called ``name`` and found at ``where``."""

    name: str
    where: str
    columns: Mapping[str, Sequence[Any]]
    unit: str = "row"
    first: int = 1
    """The number people give the first row, counted in ``unit`` (rows, or lines of a text file)."""

    def place(self, row: int) -> str:
        return f"{self.where}: {self.unit} {self.first + row}"


def read_parquet(path: Path, headerless: Sequence[str]) -> Table:
    try:
        table = pq.read_table(path)
    except pa.ArrowInvalid as error:
        reason = str(error).splitlines()[0]
        raise ExamplesError(f"{path} is no readable Parquet file ({reason}): get it again") from None
    return Table(path.name, str(path), {name: table.column(name).to_pylist() for name in table.column_names})


def read_jsonl(path: Path, headerless: Sequence[str]) -> Table:
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
    return Table(path.name, str(path), {name: [row.get(name) for row in rows] for name in names}, "line")


def read_tsv(path: Path, headerless: Sequence[str]) -> Table:
    """GLUE's own files: a quotation mark is a character like any other."""
    rows = [line.split("\t") for line in _lines(path)]
    if headerless and not {"label", "sentence"} <= set(rows[0] if rows else ()):
        return _table(path, list(headerless), rows, "line", first=1)
    return _table(path, rows[0] if rows else [], rows[1:], "line", first=2)


def read_csv(path: Path, headerless: Sequence[str]) -> Table:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.reader(file, strict=True))
    except csv.Error as error:
        raise ExamplesError(
            f"{path} is not CSV ({error}): mend its quotation marks, or save it as JSON lines"
        ) from None
    return _table(path, rows[0] if rows else [], rows[1:], "row", first=1)


READERS: dict[str, Callable[[Path, Sequence[str]], Table]] = {
    ".parquet": read_parquet,
    ".jsonl": read_jsonl,
    ".json": read_jsonl,
    ".tsv": read_tsv,
    ".csv": read_csv,
}
"""By file ending: ``read(path, headerless)``, where ``headerless`` names the columns of a TSV without a header."""


def _table(path: Path, header: list[str], rows: list[list[str]], unit: str, first: int) -> Table:
    for number, fields in enumerate(rows, start=first):
        if len(fields) != len(header):
            raise ExamplesError(
                f"{path}: {unit} {number} has {len(fields)} fields, not {len(header)} ({', '.join(header)}): "
                "mend it or drop it"
            )
    columns = {name: [fields[index] for fields in rows] for index, name in enumerate(header)}
    return Table(path.name, str(path), columns, unit, first)


def _lines(path: Path) -> list[str]:
    """Lines of a text file. Only a line feed ends one: texts contain the other characters Python would split at."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ExamplesError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}): convert it") from None
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")] if text else []
