"""Writes the selected documents to the files of a corpus.

::

    documents-00000.parquet    source: dictionary<string>    text: large_string

A file holds the selected documents of consecutive rows, which may span several splits. Texts pass from file to file as
Arrow columns, one row group at a time.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.actors.actor_pool import Attempt
from cluster.corpus import document_table, selection
from cluster.corpus.document_table import SOURCE, TEXT, ScannedSplit
from cluster.corpus.selection import Selection
from cluster.storage import filesystem
from cluster.storage.filesystem import Location

SHARDS = "documents-*.parquet"
SCHEMA = pa.schema([pa.field(SOURCE, pa.dictionary(pa.int32(), pa.string())), pa.field(TEXT, pa.large_string())])


@dataclass(frozen=True)
class SplitRows:
    """Rows of one split."""

    split: int
    start: int
    stop: int
    kept: bytes
    """A bit for each of the rows ``[start, stop)``."""


@dataclass(frozen=True)
class Shard:
    """A file of the corpus and its rows."""

    name: str
    parts: tuple[SplitRows, ...]


def plan(scanned: Sequence[ScannedSplit], selected: Selection, shard_bytes: int) -> Iterator[tuple[Shard, int]]:
    """The files of a corpus in order, and the bytes of text in each."""
    for number, (first, last) in enumerate(selection.shard_ranges(selected, shard_bytes)):
        begin, end = np.searchsorted(selected.starts, [first, last - 1], side="right").tolist()
        parts = (_part(scanned[k], int(selected.starts[k]), selected, first, last) for k in range(begin - 1, end))
        size = int(selected.sizes[first:last][selected.kept[first:last]].sum(dtype=np.int64))
        yield Shard(f"documents-{number:05}.parquet", tuple(part for part in parts if part is not None)), size


def _part(scanned: ScannedSplit, start: int, selected: Selection, first: int, last: int) -> SplitRows | None:
    """The selected rows of a split that belong to a file; None if there are none."""
    begin, end = max(first, start), min(last, start + scanned.rows)
    kept = selected.kept[begin:end]
    if not kept.any():
        return None
    return SplitRows(scanned.split.number, begin - start, end - start, np.packbits(kept).tobytes())


class ShardWriter:
    """Worker of the actor pool: writes one file after another."""

    def __init__(self, tables: Location, out: Location) -> None:
        self._tables, self._out = tables, out

    def work(self, shards: tuple[Shard, ...], attempt: Attempt) -> dict[str, Any]:
        for shard in shards:
            with filesystem.writing(self._out / shard.name) as path:
                self._write(shard, path)
        return {"shards": len(shards)}

    def _write(self, shard: Shard, path: Any) -> None:
        with pq.ParquetWriter(path, SCHEMA, compression="zstd", use_dictionary=[SOURCE]) as writer:
            waiting: list[pa.Table] = []
            for table in (table for part in shard.parts for table in _rows(self._tables, part)):
                waiting.append(table)
                if sum(table.nbytes for table in waiting) >= document_table.GROUP_BYTES:
                    writer.write_table(_row_group(waiting))
                    waiting = []
            if waiting:
                writer.write_table(_row_group(waiting))


def _rows(folder: Location, part: SplitRows) -> Iterator[pa.Table]:
    """The selected rows of each row group."""
    kept = np.unpackbits(np.frombuffer(part.kept, np.uint8), count=part.stop - part.start).astype(np.bool_)
    with filesystem.open_read(document_table.table_path(folder, part.split)) as opened, pq.ParquetFile(opened) as file:
        first = 0
        for number in range(file.metadata.num_row_groups):
            rows = file.metadata.row_group(number).num_rows
            begin, end = max(part.start, first), min(part.stop, first + rows)
            mask = kept[begin - part.start : end - part.start] if begin < end else kept[:0]
            if mask.any():
                table = file.read_row_group(number, columns=[SOURCE, TEXT], use_threads=False)
                yield table.slice(begin - first, end - begin).filter(pa.array(mask))
            first += rows


def _row_group(tables: list[pa.Table]) -> pa.Table:
    table = pa.concat_tables(tables).combine_chunks()
    return pa.table([table[SOURCE].dictionary_encode(), table[TEXT]], schema=SCHEMA)
