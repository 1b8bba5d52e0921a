"""The table of scanned documents: one Parquet file per span, one row per document, without the text."""

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.readers.splits import Split
from cluster.storage.filesystem import Location

Mask = npt.NDArray[np.bool_]
U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ScannedSpan:
    """A piece that was read, and what is known of its spans."""

    piece: Split
    spans: Sequence[dict[str, Any]]

    @property
    def rows(self) -> int:
        return sum(span["rows"] for span in self.spans)


SOURCE, TEXT, REASON, BYTES, HIGH, LOW, BAND = "source", "text", "reason", "bytes", "high", "low", "band"
OVERLAP = "overlap with "
"""Begins the reason of a document that overlaps evaluation data; the task follows."""

GROUP_BYTES = 2**22
"""Text in a row group."""
GROUP_ROWS = 2**16


@dataclass(slots=True)
class DocumentRow:
    """What became of one document."""

    label: str
    text: str | None
    reason: str
    size: int = 0
    digest: bytes = b""
    signature: npt.NDArray[np.uint64] | None = None


class DocumentTable:
    """A Parquet file that is written a row group at a time."""

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
        columns = [
            pa.array([row.label for row in rows], pa.string()),
            pa.array([row.text for row in rows], pa.large_string()),
            pa.array([row.reason or None for row in rows], pa.string()),
            pa.array([row.size for row in rows], pa.uint32()),
            pa.array(halves[0::2]),
            pa.array(halves[1::2]),
            *map(pa.array, _signatures(rows, self._bands)),
        ]
        self._writer.write_table(pa.Table.from_arrays(columns, schema=self._schema))
        self._rows, self._size = [], 0


def _signatures(rows: Sequence[DocumentRow], bands: int) -> npt.NDArray[np.uint64]:
    """One row for each band, ``[bands, rows]``; 0 where a document is left out."""
    found = np.zeros((len(rows), bands), np.uint64)
    for number, row in enumerate(rows):
        if row.signature is not None:
            found[number] = row.signature
    return np.ascontiguousarray(found.T)


def band(number: int) -> str:
    """Name of a band's column."""
    return f"{BAND}{number}"


def table_of(folder: Location, number: int) -> Location:
    return folder / f"{number:05}.parquet"


def marker_of(folder: Location, number: int) -> Location:
    return folder / f"{number:05}.json"
