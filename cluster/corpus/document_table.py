"""The tables between scan and selection: one row per scanned document, one Parquet file per split.

::

    splits/00000.parquet    source: string        label of the document
                            text: large_string    clean text; null if a filter dropped the document
                            reason: string        why it was dropped; null if it was not
                            bytes: uint32         size of the text in UTF-8
                            high, low: uint64     the two halves of a digest of the text
                            band0 …: uint64       MinHash bands, if the recipe asks for near-duplicates
    splits/00000.json       facts of each span; written last
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.corpus.word_ngrams import U64
from cluster.readers.splits import SourceSpan, Split
from cluster.storage import filesystem
from cluster.storage.filesystem import Location

Mask = npt.NDArray[np.bool_]
I64 = npt.NDArray[np.int64]

SOURCE, TEXT, REASON, BYTES, HIGH, LOW = "source", "text", "reason", "bytes", "high", "low"
OVERLAP = "overlap with "
"""Prefix of the reason of a document that overlaps evaluation data; the task follows."""

GROUP_BYTES = 2**22
"""Text per row group."""
GROUP_ROWS = 2**16


@dataclass(frozen=True)
class ScannedSplit:
    """A split that was read, and the facts of each of its spans."""

    split: Split
    facts: Sequence[dict[str, Any]]

    @property
    def rows(self) -> int:
        return sum(facts["rows"] for facts in self.facts)

    def spans(self) -> Iterator[tuple[SourceSpan, dict[str, Any]]]:
        return zip(self.split.spans, self.facts, strict=True)


def spans(scanned: Sequence[ScannedSplit]) -> Iterator[tuple[SourceSpan, dict[str, Any]]]:
    """The spans of all splits, in order, and the facts of each."""
    return (pair for split in scanned for pair in split.spans())


@dataclass(slots=True)
class DocumentRow:
    """The result of scanning one document."""

    label: str
    text: str | None
    reason: str
    size: int = 0
    digest: bytes = b""
    signature: U64 | None = None


class DocumentTableWriter:
    """Writes a table one row group at a time."""

    def __init__(self, path: Any, bands: int) -> None:
        self._bands = bands
        fields = [(SOURCE, pa.string()), (TEXT, pa.large_string()), (REASON, pa.string()), (BYTES, pa.uint32())]
        fields += [(name, pa.uint64()) for name in (HIGH, LOW, *map(band, range(bands)))]
        self._schema = pa.schema(fields)
        self._writer = pq.ParquetWriter(path, self._schema, compression="zstd", use_dictionary=[SOURCE, REASON])
        self._rows: list[DocumentRow] = []
        self._size = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is None:
            self._flush()
        self._writer.close()

    def add(self, row: DocumentRow) -> None:
        self._rows.append(row)
        self._size += row.size
        if self._size >= GROUP_BYTES or len(self._rows) >= GROUP_ROWS:
            self._flush()

    def _flush(self) -> None:
        if not self._rows:
            return
        rows = self._rows
        halves = np.frombuffer(b"".join(row.digest or bytes(16) for row in rows), ">u8").astype(np.uint64)
        signatures = np.zeros((len(rows), self._bands), np.uint64)
        for number, row in enumerate(rows):
            if row.signature is not None:
                signatures[number] = row.signature
        columns = [
            pa.array([row.label for row in rows], pa.string()),
            pa.array([row.text for row in rows], pa.large_string()),
            pa.array([row.reason or None for row in rows], pa.string()),
            pa.array([row.size for row in rows], pa.uint32()),
            pa.array(halves[0::2]),
            pa.array(halves[1::2]),
            *map(pa.array, np.ascontiguousarray(signatures.T)),
        ]
        self._writer.write_table(pa.Table.from_arrays(columns, schema=self._schema))
        self._rows, self._size = [], 0


def band(number: int) -> str:
    """Column name of a band."""
    return f"band{number}"


def table_path(folder: Location, number: int) -> Location:
    return folder / f"{number:05}.parquet"


def facts_path(folder: Location, number: int) -> Location:
    return folder / f"{number:05}.json"


def read_columns(folder: Location, scanned: ScannedSplit, columns: list[str]) -> pa.Table:
    with filesystem.open_read(table_path(folder, scanned.split.number)) as file:
        return pq.read_table(file, columns=columns)
