"""Every string in a file of evaluation data, whatever its columns are called.

Parquet, Arrow, JSON (one value, SQuAD's nesting included, or a value a line), TSV as GLUE writes it (a quotation mark
is a character like any other), CSV and plain lines.
"""

import csv
import io
import json
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.artifacts.errors import StageError
from cluster.storage import filesystem
from cluster.telemetry.error_text import first_line

_BATCH = 1024


def read(place: filesystem.Location) -> Iterator[str]:
    """The strings of one file, in order, repeated ones included.

    Raises:
        StageError: a file of another kind, or one that is damaged.
    """
    suffix = PurePosixPath(place.name).suffix
    if suffix not in _READERS:
        raise StageError(f"{place}: evaluation data is read from {', '.join(SUFFIXES)}: leave this file out")
    with filesystem.open_read(place) as file:
        content = file.read()
    try:
        yield from _READERS[suffix](content)
    except (pa.ArrowException, OSError, ValueError, csv.Error) as error:
        raise StageError(
            f"{place}: not readable as {suffix} ({first_line(error)}): fetch it again, or leave it out"
        ) from None


def _parquet(content: bytes) -> Iterator[str]:
    with pq.ParquetFile(pa.BufferReader(content)) as file:
        for batch in file.iter_batches(_BATCH):
            yield from _strings(batch.to_pylist())


def _arrow(content: bytes) -> Iterator[str]:
    """The file form begins with its name; `datasets` writes the stream form."""
    reading = pa.ipc.open_file if content.startswith(b"ARROW1") else pa.ipc.open_stream
    yield from _strings(reading(pa.BufferReader(content)).read_all().to_pylist())


def _json(content: bytes) -> Iterator[str]:
    text = content.decode("utf-8")
    try:
        values = [json.loads(text)]
    except json.JSONDecodeError as error:
        if error.msg != "Extra data":
            raise
        values = [json.loads(line) for line in text.splitlines() if line.strip()]
    yield from _strings(values)


def _json_lines(content: bytes) -> Iterator[str]:
    yield from _strings([json.loads(line) for line in content.decode("utf-8").split("\n") if line.strip()])


def _tsv(content: bytes) -> Iterator[str]:
    for line in content.decode("utf-8-sig").split("\n"):
        yield from line.rstrip("\r").split("\t")


def _csv(content: bytes) -> Iterator[str]:
    csv.field_size_limit(2**31 - 1)
    for row in csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True):
        yield from row


def _lines(content: bytes) -> Iterator[str]:
    yield from content.decode("utf-8-sig").split("\n")


def _strings(value: Any) -> Iterator[str]:
    """The strings inside lists and objects; names of members are none of them."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for member in value.values():
            yield from _strings(member)
    elif isinstance(value, list):
        for member in value:
            yield from _strings(member)


_READERS: dict[str, Callable[[bytes], Iterator[str]]] = {
    ".parquet": _parquet,
    ".arrow": _arrow,
    ".json": _json,
    ".jsonl": _json_lines,
    ".tsv": _tsv,
    ".csv": _csv,
    ".txt": _lines,
}
SUFFIXES = tuple(_READERS)
