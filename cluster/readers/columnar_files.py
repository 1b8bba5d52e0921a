"""Reads Parquet files by ranges of row groups, Arrow files, and string columns, one batch of rows at a time."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.artifacts.errors import StageError
from cluster.readers.bad_documents import BadDocument, Document, excerpt
from cluster.readers.splits import SourceSpan
from cluster.storage import filesystem
from cluster.telemetry.error_text import first_line

BATCH_BYTES = 2**22
"""Approximate bytes of text per batch."""
BATCH_ROWS = 4096


def parquet(span: SourceSpan, column: str) -> Iterator[list[Document]]:
    """Documents of the row groups that begin in the span's byte range."""
    with open_parquet(span.place) as file:
        check_column(column, file.schema_arrow, span.place)
        first_row = 1
        for number in range(file.metadata.num_row_groups):
            group = file.metadata.row_group(number)
            if span.start <= _offset(group) < span.end:
                row = first_row
                for batch in file.iter_batches(_batch_rows(group, column), row_groups=[number], columns=[column]):
                    yield strings(batch.column(0), row)
                    row += len(batch)
            first_row += group.num_rows


def arrow(span: SourceSpan, column: str) -> Iterator[list[Document]]:
    """Documents of an Arrow file."""
    with open_arrow(span.place) as (schema, batches):
        check_column(column, schema, span.place)
        first_row = 1
        for batch in batches:
            values = batch.column(column)
            step = max(1, min(BATCH_ROWS, BATCH_BYTES * len(values) // max(1, values.nbytes)))
            for start in range(0, len(values), step):
                yield strings(values.slice(start, step), first_row + start)
            first_row += len(values)


@contextlib.contextmanager
def open_parquet(place: str) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file; a damaged one raises StageError, also while it is read."""
    # Row groups are read through a small buffer, so that memory does not depend on their size.
    with _opened(place, "Parquet") as file, pq.ParquetFile(file, pre_buffer=False, buffer_size=2**20) as parquet_file:
        yield parquet_file


@contextlib.contextmanager
def open_arrow(place: str) -> Iterator[tuple[pa.Schema, Iterator[pa.RecordBatch]]]:
    """Schema and record batches of an Arrow file; a damaged one raises StageError, also while it is read.

    The IPC file form starts with a magic string; ``datasets`` writes the stream form.
    """
    with _opened(place, "Arrow") as file:
        is_file = file.read(6) == b"ARROW1"
        file.seek(0)
        reader = pa.ipc.open_file(file) if is_file else pa.ipc.open_stream(file)
        yield reader.schema, map(reader.get_batch, range(reader.num_record_batches)) if is_file else iter(reader)


@contextlib.contextmanager
def _opened(text: str, kind: str) -> Iterator[Any]:
    """A file that Arrow can seek in; local Arrow files are memory-mapped, so record batches take no memory."""
    place = filesystem.location(text)
    try:
        if filesystem.is_local(place):
            with pa.memory_map(text) if kind == "Arrow" else pa.OSFile(text) as file:
                yield file
        else:
            with filesystem.open_read(place) as raw:
                yield pa.PythonFile(raw, "r")
    except (pa.ArrowException, OSError) as error:
        raise StageError(
            f"{text} is not a readable {kind} file ({first_line(error)}): it is cut or damaged, fetch it again"
        ) from None


def _offset(group: Any) -> int:
    """Byte offset of a row group in its file."""
    first = group.column(0)
    return int(first.dictionary_page_offset or first.data_page_offset)


def _batch_rows(group: Any, column: str) -> int:
    """Number of rows whose column holds about :data:`BATCH_BYTES`."""
    chunks = (group.column(number) for number in range(group.num_columns))
    size: int = next(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema == column)
    rows: int = BATCH_BYTES * group.num_rows // max(1, size)
    return max(1, min(BATCH_ROWS, rows))


def check_column(column: str, schema: pa.Schema, place: str) -> None:
    """Raise StageError unless the column exists and holds strings."""
    if column not in schema.names:
        raise StageError(f"{place} has no column {column}: set column to one of {', '.join(schema.names)}")
    kind = schema.field(column).type
    inner = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_string(inner) or pa.types.is_large_string(inner) or pa.types.is_string_view(inner)):
        raise StageError(f"{place}: column {column} holds {kind}, expected strings: name another column")


def strings(column: pa.Array, first_row: int) -> list[Document]:
    """Documents of a column; ``first_row`` is the row number of its first value in the file."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    try:
        values = column.to_pylist()
    except UnicodeDecodeError:  # Arrow does not check the encoding when it opens a file
        kind = pa.binary_view() if pa.types.is_string_view(column.type) else pa.large_binary()
        values = [_decoded(raw, row) for row, raw in enumerate(column.cast(kind).to_pylist(), first_row)]
    if column.null_count:
        rows = enumerate(values, first_row)
        values = [BadDocument("missing", f"row {row}", "") if value is None else value for row, value in rows]
    return values  # type: ignore[no-any-return]


def _decoded(raw: bytes | None, row: int) -> Document | None:
    try:
        return None if raw is None else raw.decode("utf-8")
    except UnicodeDecodeError:
        return BadDocument("not UTF-8", f"row {row}", excerpt(raw or b""))
