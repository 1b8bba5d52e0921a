"""Reads every string in a file of evaluation data, whatever its column.

Parquet, Arrow, JSON (one value, or one per line), TSV as GLUE writes it (quotation marks have no meaning), CSV, lines.
"""

import csv
import io
import json
from collections.abc import Callable, Iterator
from typing import Any

from cluster.artifacts.errors import StageError
from cluster.readers import columnar_files, text_files
from cluster.storage import filesystem
from cluster.telemetry.error_text import first_line

_BATCH = 1024


def read(place: filesystem.Location) -> Iterator[str]:
    """The strings of one file, in order, with repetitions.

    Raises:
        StageError: an unsupported or damaged file.
    """
    if place.suffix not in SUFFIXES:
        raise StageError(f"{place}: evaluation data is read from {', '.join(SUFFIXES)}: leave this file out")
    try:
        if place.suffix in _PARSERS:
            with text_files.open_text(str(place)) as stream:
                content = stream.read().decode("utf-8" if "json" in place.suffix else "utf-8-sig")
            yield from _strings(_PARSERS[place.suffix](content))
        else:
            for values in _columnar(place):
                yield from _strings(values)
    except StageError:
        raise
    except (ValueError, csv.Error) as error:
        raise StageError(
            f"{place}: not readable as {place.suffix} ({first_line(error)}): fetch it again, or leave it out"
        ) from None


def _columnar(place: filesystem.Location) -> Iterator[list[Any]]:
    if place.suffix == ".parquet":
        with columnar_files.open_parquet(str(place)) as file:
            yield from (batch.to_pylist() for batch in file.iter_batches(_BATCH))
    else:
        with columnar_files.open_arrow(str(place)) as (_, batches):
            yield from (batch.to_pylist() for batch in batches)


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg != "Extra data":
            raise
        return [json.loads(line) for line in text.splitlines() if line.strip()]


def _json_lines(text: str) -> list[Any]:
    return [json.loads(line) for line in text.split("\n") if line.strip()]


def _tsv(text: str) -> list[list[str]]:
    return [line.rstrip("\r").split("\t") for line in text.split("\n")]


def _csv(text: str) -> list[list[str]]:
    csv.field_size_limit(2**31 - 1)
    return list(csv.reader(io.StringIO(text, newline=""), strict=True))


def _strings(value: Any) -> Iterator[str]:
    """The strings inside lists and objects, without the names of members."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for member in value.values() if isinstance(value, dict) else value:
            yield from _strings(member)


_PARSERS: dict[str, Callable[[str], Any]] = {
    ".json": _json,
    ".jsonl": _json_lines,
    ".tsv": _tsv,
    ".csv": _csv,
    ".txt": lambda text: text.split("\n"),
}
SUFFIXES = (".parquet", ".arrow", *_PARSERS)
