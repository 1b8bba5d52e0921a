"""Reads whole files of tasks: values of JSON, fields of TSV and CSV, batches of Parquet and Arrow.

Decontamination and the tasks of ``eval`` read the same files with these functions. Such files are small. Line files may
be compressed.
"""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from cluster.artifacts.errors import StageError
from cluster.readers import byte_streams, columnar_files, read_errors
from cluster.readers.bad_documents import BadDocument
from cluster.readers.source_recipes import CODECS
from cluster.storage import filesystem

_BOM = "\ufeff"
_BATCH = 1024
_LONGEST_FIELD = 2**31 - 1


def form(name: str) -> str:
    """The ending that tells the form of a file: ``.jsonl`` of ``dev.jsonl.gz`` and ``DEV.JSONL``."""
    return PurePosixPath(_unpacked(name)).suffix.lower()


def stem(name: str) -> str:
    """The name of a file without the endings that tell its form: ``dev`` of ``dev.jsonl.gz``."""
    return PurePosixPath(_unpacked(name)).stem


def _unpacked(name: str) -> str:
    path = PurePosixPath(name)
    return path.stem if path.suffix.lower() in CODECS else name


def text(place: str) -> str:
    """The text of a file, without a byte order mark.

    Raises:
        StageError: it cannot be read, or is not UTF-8.
    """
    data = b""
    with byte_streams.open_text(place) as stream:
        while block := stream.read(2**24):
            data += block
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = data.count(b"\n", 0, error.start) + 1
        name = read_errors.quoted(place)
        raise StageError(
            f"{place}: line {number} is not UTF-8: convert the file, for example with iconv -f latin1 -t utf-8 {name}"
        ) from None


def lines(place: str) -> list[str]:
    """Lines, which end at line feeds: texts contain other characters at which Python would split.

    In a file without any they end at carriage returns, as old programs write them. Byte order marks that begin a line,
    as in files that were put together, are left out.
    """
    found = text(place).rstrip("\r\n")
    return [line.removesuffix("\r").removeprefix(_BOM) for line in _split(found)] if found else []


def _split(content: str) -> list[str]:
    end = "\n" if "\n" in content else "\r"
    return content.removesuffix(end).split(end)


def json_values(place: str) -> list[tuple[int, Any]]:
    """Line number and value of each line that is not blank; or those of the one value of the file.

    Raises:
        StageError: what is not JSON, and where.
    """
    content = text(place)
    try:
        return [(1, json.loads(content))] if content.strip() else []
    except RecursionError:
        raise StageError(f"{place} nests JSON too deeply: write one object per line") from None
    except json.JSONDecodeError as whole:
        if whole.msg != "Extra data":
            raise StageError(_json_error(place, whole.lineno, whole, content)) from None
    found = []
    for number, line in enumerate(_split(content), start=1):
        if line.removeprefix(_BOM).strip():
            try:
                found.append((number, json.loads(line.removeprefix(_BOM))))
            except json.JSONDecodeError as error:
                raise StageError(_json_error(place, number, error, content)) from None
    return found


def _json_error(place: str, number: int, error: json.JSONDecodeError, content: str) -> str:
    stops = error.msg.startswith("Unterminated") or error.pos >= len(error.doc.rstrip()) - 1
    is_end = stops and number > content.rstrip().count("\n")
    advice = "the file ends inside a value, fetch it again" if is_end else "correct it; in lines, write one object each"
    return f"{place}: line {number} is not JSON ({error.msg}): {advice}"


def tsv(place: str) -> list[list[str]]:
    """Fields as GLUE writes them: quotation marks have no meaning."""
    return [line.split("\t") for line in lines(place)]


def csv_rows(place: str) -> list[list[str]]:
    """Fields of a CSV file.

    Raises:
        StageError: its quotation marks are wrong.
    """
    csv.field_size_limit(_LONGEST_FIELD)
    reader = csv.reader(io.StringIO(text(place), newline=""), strict=True)
    try:
        rows = list(reader)
    except csv.Error as error:
        raise StageError(
            f"{place}: line {reader.line_num} is not CSV ({error}): correct its quotation marks, or save the file as "
            "JSON lines"
        ) from None
    while rows and not any(rows[-1]):  # blank lines at the end
        rows.pop()
    return rows


def schema(place: str) -> pa.Schema:
    """Columns of a Parquet or Arrow file, with the metadata that its writer added.

    Raises:
        StageError: the file cannot be read.
    """
    if not filesystem.info(filesystem.location(place)).bytes:
        return pa.schema([])
    if form(place) == ".parquet":
        with columnar_files.open_parquet(place) as file:
            return file.schema_arrow
    return columnar_files.arrow_schema(place)


def batches(place: str) -> Iterator[dict[str, Sequence[Any]]]:
    """Values of each column of some rows of a Parquet or Arrow file; bytes that are UTF-8 are strings.

    Raises:
        StageError: the file cannot be read, or a string is not UTF-8.
    """
    if not filesystem.info(filesystem.location(place)).bytes:
        return
    first_row = 1
    for batch in _parquet(place) if form(place) == ".parquet" else _arrow(place):
        names = batch.schema.names
        if twice := [name for number, name in enumerate(names) if name in names[:number]]:
            raise StageError(f"{place} has two columns {twice[0]}: rename or delete one")
        yield {name: _column(place, name, batch.column(number), first_row) for number, name in enumerate(names)}
        first_row += len(batch)


def _parquet(place: str) -> Iterator[Any]:
    with columnar_files.open_parquet(place) as file:
        yield from file.iter_batches(_BATCH)


def _arrow(place: str) -> Iterator[Any]:
    with columnar_files.open_arrow(place) as found:
        yield from found


def _column(place: str, name: str, values: Any, first_row: int) -> Sequence[Any]:
    found = columnar_files.decoded(values, first_row)
    bad = [value.where for value in found or () if isinstance(value, BadDocument)]
    if found is not None and not bad:
        return found
    try:
        plain: list[Any] = values.to_pylist()
    except UnicodeDecodeError as error:
        raise StageError(
            f"{place}: {next(iter(bad), 'a row')}: column {name} is not UTF-8 ({error.reason}): write the file again "
            "from text in UTF-8"
        ) from None
    if found is None:
        return plain
    return [raw if isinstance(value, BadDocument) else value for value, raw in zip(found, plain, strict=True)]
