"""Statistics of the rows of a tokens artifact: lengths of documents, repeated rows, and samples.

They come from record batches with :data:`BUDGET` tokens in all, evenly spread over the files.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cluster.artifacts.artifact import Artifact
from cluster.inspect.findings import InspectError, evenly
from cluster.storage import filesystem
from cluster.telemetry import progress
from cluster.telemetry.error_text import first_line
from cluster.tokens import rows

BUDGET = 2**25
"""Tokens to read, in each of the two parts."""
_FILES = 32
"""Files to read, evenly spread."""
_CHUNK = 2**14
"""Rows to hash at a time."""

U64 = npt.NDArray[np.uint64]


@dataclass
class RowSet:
    """Statistics of the training rows, or of the held-out rows."""

    rows: int = 0
    whole: bool = True
    """Every row was read."""
    lengths: list[int] = field(default_factory=list)
    """Tokens of the documents that were read from start to end."""
    hashes: list[U64] = field(default_factory=list)
    foreign: int = 0
    """Rows that do not begin with the start token, or have an id outside the vocabulary."""
    samples: list[tuple[int, str, npt.NDArray[np.int64]]] = field(default_factory=list)
    """Hash, place and ids of the rows with the smallest hashes: a uniform and reproducible sample."""

    @property
    def unique(self) -> U64:
        return np.unique(np.concatenate(self.hashes)) if self.hashes else np.empty(0, dtype=np.uint64)

    @property
    def repeated(self) -> int:
        return self.rows - len(self.unique)


def look(found: Artifact, part: str, num_samples: int) -> RowSet:
    """Read a part of the rows, ``train`` or ``heldout``."""
    names = found.matching(f"{part}-*")
    seen = RowSet(whole=len(names) <= _FILES)
    chosen = evenly(names, _FILES)
    for name in progress.progress(chosen, f"{part} rows", len(chosen), "files"):
        try:
            with filesystem.open_read(found.location / name) as source:
                _read(seen, name, source, BUDGET // len(chosen), found, num_samples)
        except pa.ArrowException as error:
            raise InspectError(
                f"{found.location / name} cannot be read ({first_line(error)}): make the tokens again"
            ) from None
    return seen


def _read(seen: RowSet, name: str, source: Any, budget: int, found: Artifact, num_samples: int) -> None:
    file = pa.ipc.open_file(pa.PythonFile(source, mode="r"))
    numbers, seq_len = list(range(file.num_record_batches)), int(found.facts["seq_len"])
    rows_each = file.get_batch(0).num_rows if numbers else 0
    wanted = evenly(numbers, max(1, budget // max(1, rows_each * seq_len)))
    seen.whole &= len(wanted) == len(numbers)
    stream, last = _Lengths(int(found.facts["sep_id"]), seen.lengths), -1
    for number in wanted:
        table = file.get_batch(number).column(0).flatten().to_numpy().reshape(-1, seq_len)
        if number != last + 1:
            stream.interrupt()
        last = number
        stream.add(table[:, 1:].reshape(-1))
        _add(seen, name, number, table, found, num_samples)


def _add(seen: RowSet, name: str, number: int, table: rows.Tokens, found: Artifact, num_samples: int) -> None:
    hashes = hashed(table)
    seen.rows += len(table)
    seen.hashes.append(hashes)
    outside = (table >= int(found.facts["vocab_size"])).any(axis=1)
    seen.foreign += int((outside | (table[:, 0] != int(found.facts["cls_id"]))).sum())
    for place in np.argsort(hashes)[:num_samples].tolist():
        where = f"{name}, row {place:,}" + (f" of batch {number}" if number else "")
        seen.samples.append((int(hashes[place]), where, table[place].astype(np.int64)))
    seen.samples = sorted(seen.samples, key=lambda sample: sample[0])[:num_samples]


class _Lengths:
    """Lengths of documents in a stream of tokens that arrives in parts."""

    def __init__(self, sep_id: int, lengths: list[int]) -> None:
        self._sep_id, self._lengths = sep_id, lengths
        self._open: int | None = 0
        """Tokens of the unfinished document; None if its beginning was not read."""

    def interrupt(self) -> None:
        self._open = None

    def add(self, stream: rows.Tokens) -> None:
        ends = np.flatnonzero(stream == self._sep_id)
        if not len(ends):
            self._open = None if self._open is None else self._open + len(stream)
            return
        if self._open is not None:
            self._lengths.append(self._open + int(ends[0]))
        self._lengths += (np.diff(ends) - 1).tolist()
        self._open = len(stream) - 1 - int(ends[-1])


def hashed(table: rows.Tokens) -> U64:
    """A hash of each row: the sum of its tokens, each times an odd factor of its position."""
    factors = np.random.default_rng(0).integers(0, 2**63, table.shape[1], dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    parts = (table[start : start + _CHUNK].astype(np.uint64) for start in range(0, max(1, len(table)), _CHUNK))
    with np.errstate(over="ignore"):
        return np.concatenate([(part * factors).sum(axis=1, dtype=np.uint64) for part in parts])
