"""Scanned pieces to the files of a corpus: the second half of making one.

::

    documents-00000.parquet    source: dictionary<string>    text: large_string

A file holds consecutive documents, those kept of rows of one piece or several. Texts pass from file to file as Arrow
columns, a row group at a time.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.actors.actor_pool import Attempt, Unit
from cluster.corpus import document_table, selection
from cluster.corpus.document_table import ScannedSpan
from cluster.corpus.selection import Selection
from cluster.readers import splits
from cluster.storage import filesystem
from cluster.storage.filesystem import Location

SOURCE, TEXT = document_table.SOURCE, document_table.TEXT
PATTERN = "documents-*.parquet"
SCHEMA = pa.schema([pa.field(SOURCE, pa.dictionary(pa.int32(), pa.string())), pa.field(TEXT, pa.large_string())])


@dataclass(frozen=True)
class ShardPart:
    """Rows of one piece."""

    piece: int
    start: int
    stop: int
    kept: bytes
    """A bit for each of the rows ``[start, stop)``."""


@dataclass(frozen=True)
class Shard:
    """A file of the corpus and what goes into it."""

    name: str
    parts: tuple[ShardPart, ...]


def plan(scanned: Sequence[ScannedSpan], chosen: Selection, shard_bytes: int) -> Iterator[tuple[Shard, int]]:
    """The files of a corpus in order, and the bytes of text in each."""
    for number, (first, last) in enumerate(selection.shards(chosen, shard_bytes)):
        begin, end = np.searchsorted(chosen.starts, [first, last - 1], side="right").tolist()
        touched = range(begin - 1, end)
        parts = (_part(scanned[place], int(chosen.starts[place]), chosen, first, last) for place in touched)
        size = int(chosen.sizes[first:last][chosen.kept[first:last]].sum(dtype=np.int64))
        yield Shard(f"documents-{number:05}.parquet", tuple(part for part in parts if part is not None)), size


def units(shards: Iterator[tuple[Shard, int]]) -> Iterator[Unit]:
    """Files to write in one go: small ones go together."""
    together: list[Shard] = []
    text = 0
    for shard, size in shards:
        if together and text + size > splits.PIECE_BYTES:
            yield Unit(together[0].name, tuple(together), text)
            together, text = [], 0
        together.append(shard)
        text += size
    if together:
        yield Unit(together[0].name, tuple(together), text)


class ShardWriter:
    """An actor's worker: writes one file after another."""

    def __init__(self, pieces: Location, out: Location) -> None:
        self._pieces, self._out = pieces, out

    def work(self, shards: tuple[Shard, ...], attempt: Attempt) -> dict[str, Any]:
        for shard in shards:
            with filesystem.writing(self._out / shard.name) as path:
                self._write(shard, path)
        return {"shards": len(shards)}

    def _write(self, shard: Shard, path: Any) -> None:
        with pq.ParquetWriter(path, SCHEMA, compression="zstd", use_dictionary=[SOURCE]) as writer:
            waiting: list[pa.Table] = []
            for table in (table for part in shard.parts for table in _rows(self._pieces, part)):
                waiting.append(table)
                if sum(table.nbytes for table in waiting) >= document_table.GROUP_BYTES:
                    writer.write_table(_group(waiting))
                    waiting = []
            if waiting:
                writer.write_table(_group(waiting))


def _part(found: ScannedSpan, start: int, chosen: Selection, first: int, last: int) -> ShardPart | None:
    """What a file takes of a piece; nothing where the piece has none of its documents."""
    begin, end = max(first, start), min(last, start + found.rows)
    kept = chosen.kept[begin:end]
    if not kept.any():
        return None
    return ShardPart(found.piece.number, begin - start, end - start, np.packbits(kept).tobytes())


def _rows(folder: Location, part: ShardPart) -> Iterator[pa.Table]:
    """What a part keeps of each row group it touches."""
    kept = np.unpackbits(np.frombuffer(part.kept, np.uint8), count=part.stop - part.start).astype(np.bool_)
    with filesystem.open_read(document_table.table_of(folder, part.piece)) as opened, pq.ParquetFile(opened) as file:
        first = 0
        for number in range(file.metadata.num_row_groups):
            rows = file.metadata.row_group(number).num_rows
            begin, end = max(part.start, first), min(part.stop, first + rows)
            mask = kept[begin - part.start : end - part.start] if begin < end else kept[:0]
            if mask.any():
                table = file.read_row_group(number, columns=[SOURCE, TEXT], use_threads=False)
                yield table.slice(begin - first, end - begin).filter(pa.array(mask))
            first += rows


def _group(tables: list[pa.Table]) -> pa.Table:
    table = pa.concat_tables(tables).combine_chunks()
    return pa.table([table[SOURCE].dictionary_encode(), table[TEXT]], schema=SCHEMA)
