"""Reads every string in a file of evaluation data, whatever its column.

Parquet, Arrow, JSON (one value, or one per line), TSV as GLUE writes it (quotation marks have no meaning), CSV, lines.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import PurePosixPath
from typing import Any

from cluster.artifacts.errors import StageError
from cluster.readers import whole_files
from cluster.storage import filesystem


def is_readable(name: PurePosixPath) -> bool:
    """Whether a file has one of the forms that are read, compressed ones included."""
    return whole_files.form(name.name) in SUFFIXES


def read(place: filesystem.Location) -> Iterator[str]:
    """The strings of one file, in order, with repetitions.

    Raises:
        StageError: an unsupported or damaged file.
    """
    parse = _PARSERS.get(whole_files.form(place.name))
    if parse is None:
        raise StageError(
            f"{place}: evaluation data is read from {', '.join(SUFFIXES)}: convert this file, or leave it out"
        )
    yield from _strings(parse(str(place)))


def _strings(value: Any) -> Iterator[str]:
    """The strings inside lists and objects, without the names of members."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for member in value.values():
            yield from _strings(member)
    elif isinstance(value, bytes):
        with contextlib.suppress(UnicodeDecodeError):  # such as pictures
            yield value.decode("utf-8")
    elif isinstance(value, Iterable):
        for member in value:
            yield from _strings(member)


_PARSERS: dict[str, Callable[[str], Any]] = {
    ".parquet": whole_files.batches,
    ".arrow": whole_files.batches,
    ".json": whole_files.json_values,
    ".jsonl": whole_files.json_values,
    ".tsv": whole_files.tsv,
    ".csv": whole_files.csv_rows,
    ".txt": whole_files.lines,
}
SUFFIXES = tuple(_PARSERS)
