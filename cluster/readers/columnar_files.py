"""Reads Parquet files by ranges of row groups, Arrow files, and columns of text, one batch of rows at a time.

A column is a name, or ``outer.inner`` for a field of a struct; a name that really holds a dot comes first. A column
without any value, as pandas and Dask write for a part without text, is a column of missing values.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster.artifacts.errors import StageError
from cluster.readers import byte_streams, read_errors
from cluster.readers.bad_documents import BadDocument, Document, excerpt
from cluster.readers.splits import SourceSpan
from cluster.storage import filesystem

BATCH_BYTES = 2**22
"""Approximate bytes of text per batch."""
BATCH_ROWS = 4096

_SIGNATURE_BYTES = 28
"""A nonce and a tag, which follow the metadata in the footer of a Parquet file with encrypted columns."""

_SHOWN = 20
"""Names in a message."""


def parquet(span: SourceSpan, column: str) -> Iterator[list[Document]]:
    """Documents of the row groups that begin in the span's byte range."""
    with open_parquet(span.place) as file:
        if not file.metadata.num_rows:
            return
        names = [".".join(field_path(column, file.schema_arrow, span.place))]
        first_row = 1
        for number in range(file.metadata.num_row_groups):
            group = file.metadata.row_group(number)
            if span.start <= _offset(group) < span.end and not _is_elsewhere(group):
                row = first_row
                for batch in file.iter_batches(_batch_rows(group, names[0]), row_groups=[number], columns=names):
                    yield texts(batch, column, span.place, row)
                    row += len(batch)
            first_row += group.num_rows


def arrow(span: SourceSpan, column: str) -> Iterator[list[Document]]:
    """Documents of an Arrow file."""
    with open_arrow(span.place) as batches:
        first_row = 1
        for batch in batches:
            step = max(1, min(BATCH_ROWS, BATCH_BYTES * len(batch) // max(1, _size(batch, column, span.place))))
            for start in range(0, len(batch), step):
                yield texts(batch.slice(start, step), column, span.place, first_row + start)
            first_row += len(batch)


@contextlib.contextmanager
def open_parquet(place: str) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file; one that cannot be read raises StageError, also while it is read."""
    # Row groups are read through a small buffer, so that memory does not depend on their size.
    with _opened(place, b"PAR1") as file, pq.ParquetFile(file, pre_buffer=False, buffer_size=2**20) as parquet_file:
        _refuse_encrypted(place, file, parquet_file)
        yield parquet_file


@contextlib.contextmanager
def open_arrow(place: str) -> Iterator[Iterator[pa.RecordBatch]]:
    """Record batches of an Arrow file; one that cannot be read raises StageError, also while it is read."""
    with _arrow_reader(place) as reader:
        is_file = isinstance(reader, pa.ipc.RecordBatchFileReader)
        yield map(reader.get_batch, range(reader.num_record_batches)) if is_file else iter(reader)


def arrow_schema(place: str) -> pa.Schema:
    """Columns of an Arrow file, also of one without rows; one that cannot be read raises StageError."""
    with _arrow_reader(place) as reader:
        return reader.schema


@contextlib.contextmanager
def _arrow_reader(place: str) -> Iterator[Any]:
    """The IPC file form starts with a magic string; ``datasets`` writes the stream form."""
    with _opened(place, b"ARROW1") as file:
        is_file = file.read(6) == b"ARROW1"
        file.seek(0)
        yield pa.ipc.open_file(file) if is_file else pa.ipc.open_stream(file)


@contextlib.contextmanager
def _opened(text: str, magic: bytes) -> Iterator[Any]:
    """A file that Arrow can seek in; local Arrow files are memory-mapped, so record batches take no memory."""
    place = filesystem.location(text)
    with read_errors.reading(text):
        try:
            if filesystem.is_local(place):
                with pa.memory_map(text) if magic == b"ARROW1" else pa.OSFile(text) as file:
                    yield file
            else:
                with byte_streams.opened(place) as raw:
                    yield pa.PythonFile(raw, "r")
        except (pa.ArrowException, OSError) as error:
            if not isinstance(error, OSError) or error.errno is None:
                _refuse_other_form(text, magic)
            raise


def _refuse_other_form(place: str, magic: bytes) -> None:
    """Raise StageError if a file that cannot be read is no Parquet or Arrow file, rather than a damaged one."""
    with byte_streams.opened(filesystem.location(place)) as raw:
        head = raw.read(read_errors.HEAD_BYTES)
    read_errors.refuse_other_form(place, head, magic)
    kind = "Parquet" if magic == b"PAR1" else "Arrow"
    if codec := byte_streams.codec_of(head):
        raise StageError(f"{place} is no {kind} file, but compressed with {codec}: unpack it")
    if head and not head.startswith(magic) and read_errors.reads_as_text(head):
        raise StageError(f"{place} is text, no {kind} file: read it with a source of another kind, or leave it out")


def _refuse_encrypted(place: str, file: Any, parquet_file: pq.ParquetFile) -> None:
    """Raise StageError if columns are encrypted and the footer is not: asking pyarrow for them ends the process."""
    file.seek(file.size() - 8)
    footer_bytes = int.from_bytes(file.read(4), "little")
    if footer_bytes == parquet_file.metadata.serialized_size + _SIGNATURE_BYTES:
        raise StageError(f"{place} {read_errors.ENCRYPTED}")


def _offset(group: Any) -> int:
    """Byte offset of a row group in its file."""
    first = group.column(0)
    return int(first.dictionary_page_offset or first.data_page_offset)


def _is_elsewhere(group: Any) -> bool:
    """Whether the rows are in another file: ``_metadata`` describes all files of its folder."""
    return bool(group.column(0).file_path)


def _batch_rows(group: Any, path: str) -> int:
    """Number of rows whose column holds about :data:`BATCH_BYTES`."""
    chunks = (group.column(number) for number in range(group.num_columns))
    size: int = sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema == path)
    rows: int = BATCH_BYTES * group.num_rows // max(1, size)
    return max(1, min(BATCH_ROWS, rows))


def _size(batch: pa.RecordBatch, column: str, place: str) -> int:
    return int(_values(batch, field_path(column, batch.schema, place)).nbytes)


def field_path(column: str, schema: pa.Schema, place: str) -> tuple[str, ...]:
    """Names of the fields that lead to a column, from the outermost one.

    Raises:
        StageError: there is no such column.
    """
    if (found := _path(column, list(schema))) is None:
        names = [name for field in schema for name in _names(field)]
        listed = ", ".join(names[:_SHOWN]) + (" …" if len(names) > _SHOWN else "")
        raise StageError(f"{place} has no column {column}: set column to one of {listed or 'none'}")
    if schema.names.count(found[0]) > 1:
        raise StageError(f"{place} has two columns {found[0]}: rename or delete one")
    return found


def _path(column: str, fields: list[pa.Field]) -> tuple[str, ...] | None:
    if column in (field.name for field in fields):
        return (column,)
    for field in fields:
        if pa.types.is_struct(field.type) and column.startswith(f"{field.name}."):
            within = _path(column[len(field.name) + 1 :], list(field.type))
            if within is not None:
                return (field.name, *within)
    return None


def _names(field: pa.Field) -> list[str]:
    """Names as which a recipe can give a field, or the fields of a struct."""
    if not pa.types.is_struct(field.type):
        return [field.name]
    return [f"{field.name}.{name}" for inner in field.type for name in _names(inner)]


def _values(batch: pa.RecordBatch, path: tuple[str, ...]) -> pa.Array:
    values = batch.column(batch.schema.get_all_field_indices(path[0])[0])
    for name in path[1:]:
        values = pc.struct_field(values, [name])
    return values


def texts(batch: pa.RecordBatch, column: str, place: str, first_row: int) -> list[Document]:
    """Documents in a column; ``first_row`` is the row number of its first value in the file.

    Raises:
        StageError: there is no such column, or it holds something else than text.
    """
    values = _values(batch, field_path(column, batch.schema, place))
    if (found := decoded(values, first_row)) is None:
        raise StageError(
            f"{place}: column {column} holds {values.type}, expected strings: {_advice(column, values.type)}"
        )
    if None in found:
        rows = enumerate(found, first_row)
        return [BadDocument("missing", f"row {row}", "") if value is None else value for row, value in rows]
    return found  # type: ignore[return-value]


def _advice(column: str, kind: pa.DataType) -> str:
    """What to do about a column that holds something else than text."""
    if pa.types.is_struct(kind) and kind.num_fields:
        return f"name a field of it, such as {column}.{kind.field(0).name}"
    return "write a row for each text" if pa.types.is_nested(kind) else "name another column"


def decoded(values: pa.Array, first_row: int) -> list[Document | None] | None:
    """The texts of a column, of whatever type holds text, None for missing ones; None if it holds something else."""
    values = _plain(values)
    if values.null_count == len(values):
        return [None] * len(values)
    kind = values.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        try:
            return values.to_pylist()  # type: ignore[no-any-return]
        except UnicodeDecodeError:  # Arrow does not check the encoding when it opens a file
            values = values.cast(pa.binary_view() if pa.types.is_string_view(kind) else pa.large_binary())
    elif not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)):
        return None
    return [_text(raw, row) for row, raw in enumerate(values.to_pylist(), first_row)]


def _plain(values: pa.Array) -> pa.Array:
    """The values themselves, of extension types, dictionaries and runs, also inside one another."""
    if isinstance(values, pa.ExtensionArray):
        return _plain(values.storage)
    try:
        if pa.types.is_dictionary(values.type):
            return _plain(values.dictionary_decode())
        return _plain(pc.run_end_decode(values)) if pa.types.is_run_end_encoded(values.type) else values
    except pa.ArrowNotImplementedError:  # dictionaries of views, runs of dictionaries
        return pa.array(values.to_pylist())


def _text(raw: bytes | None, row: int) -> Document | None:
    try:
        return None if raw is None else raw.decode("utf-8")
    except UnicodeDecodeError:
        return BadDocument("not UTF-8", f"row {row}", excerpt(raw or b""))
