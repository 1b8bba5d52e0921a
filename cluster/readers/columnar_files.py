"""Documents in a column of strings: Parquet files by ranges of row groups, Arrow files, tables.

No more than a batch of rows is held, whatever the size of a row group or record batch.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.artifacts.errors import StageError
from cluster.readers.bad_documents import Document, Fault, excerpt
from cluster.readers.splits import Span
from cluster.storage import filesystem
from cluster.telemetry.error_text import first_line

BATCH_BYTES = 2**22
"""Text read at once, about."""
BATCH_ROWS = 4096


def parquet(span: Span, column: str) -> Iterator[list[Document]]:
    """Row groups that begin in the span's range of the file."""
    with _columnar(span, "Parquet") as opened, pq.ParquetFile(opened, pre_buffer=False, buffer_size=2**20) as file:
        check_column(column, file.schema_arrow, span.place)
        first = 1
        for number in range(file.metadata.num_row_groups):
            group = file.metadata.row_group(number)
            if span.start <= _begin(group) < span.end:
                row = first
                for batch in file.iter_batches(_rows(group, column), row_groups=[number], columns=[column]):
                    yield strings(batch.column(0), row)
                    row += len(batch)
            first += group.num_rows


def _begin(group: Any) -> int:
    """Where in the file a row group lies."""
    first = group.column(0)
    return int(first.dictionary_page_offset or first.data_page_offset)


def _rows(group: Any, column: str) -> int:
    """How many rows of a column are about :data:`BATCH_BYTES`."""
    chunks = (group.column(number) for number in range(group.num_columns))
    size: int = next(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema == column)
    rows: int = BATCH_BYTES * group.num_rows // max(1, size)
    return max(1, min(BATCH_ROWS, rows))


def arrow(span: Span, column: str) -> Iterator[list[Document]]:
    """The file form begins with its name; `datasets` writes the stream form."""
    with _columnar(span, "Arrow") as opened:
        is_file = opened.read(6) == b"ARROW1"
        opened.seek(0)
        reader = pa.ipc.open_file(opened) if is_file else pa.ipc.open_stream(opened)
        check_column(column, reader.schema, span.place)
        batches = map(reader.get_batch, range(reader.num_record_batches)) if is_file else reader
        first = 1
        for batch in batches:
            values = batch.column(column)
            step = max(1, min(BATCH_ROWS, BATCH_BYTES * len(values) // max(1, values.nbytes)))
            for start in range(0, len(values), step):
                yield strings(values.slice(start, step), first + start)
            first += len(values)


@contextlib.contextmanager
def _columnar(span: Span, kind: str) -> Iterator[Any]:
    """A file for Arrow to read at any position."""
    place = filesystem.location(span.place)
    try:
        if filesystem.is_local(place):
            # Mapped, record batches need no memory of their own; row groups are read through a small buffer.
            with pa.memory_map(span.place) if kind == "Arrow" else pa.OSFile(span.place) as file:
                yield file
        else:
            with filesystem.open_read(place) as raw:
                yield pa.PythonFile(raw, "r")
    except (pa.ArrowException, OSError) as error:
        raise StageError(
            f"{span.place} is not a readable {kind} file ({first_line(error)}): it is cut or damaged, fetch it again"
        ) from None


def check_column(column: str, schema: pa.Schema, place: str) -> None:
    if column not in schema.names:
        raise StageError(f"{place} has no column {column}: set column to one of {', '.join(schema.names)}")
    kind = schema.field(column).type
    inner = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_string(inner) or pa.types.is_large_string(inner) or pa.types.is_string_view(inner)):
        raise StageError(f"{place}: column {column} holds {kind}, expected strings: name another column")


def strings(column: pa.Array, first: int) -> list[Document]:
    """Values of a column whose first one stands in row ``first`` of its file."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    try:
        values = column.to_pylist()
    except UnicodeDecodeError:  # Arrow takes the word of whoever wrote the file
        kind = pa.binary_view() if pa.types.is_string_view(column.type) else pa.large_binary()
        values = [_decoded(raw, first + place) for place, raw in enumerate(column.cast(kind).to_pylist())]
    if column.null_count:
        rows = enumerate(values, start=first)
        values = [Fault("missing", f"row {row}", "") if value is None else value for row, value in rows]
    return values  # type: ignore[no-any-return]


def _decoded(raw: bytes | None, row: int) -> Document | None:
    try:
        return None if raw is None else raw.decode("utf-8")
    except UnicodeDecodeError:
        return Fault("not UTF-8", f"row {row}", excerpt(raw or b""))
