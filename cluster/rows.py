"""The Arrow row format: token rows written once, memory-mapped by everybody who reads them.

A file is an uncompressed Arrow IPC file with one column and no nulls::

    input_ids: fixed_size_list<uint16 | uint32>[seq_len]

``uint16`` when the vocabulary has at most 65,536 entries. Rows are read through a memory map without copies, so a
corpus of any size needs no memory of its own.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cluster.artifact import Artifact, read

COLUMN = "input_ids"
TRAIN, HELDOUT = "train", "heldout"
COUNTS = "counts.npy"

Tokens: TypeAlias = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]


class RowsError(ValueError):
    """A row file is missing, truncated or not of this format."""


def token_type(vocab_size: int) -> type[np.uint16] | type[np.uint32]:
    """Narrowest type that holds every id of a vocabulary."""
    return np.uint16 if vocab_size <= 2**16 else np.uint32


class RowWriter:
    """One row file, written batch by batch; used as a context manager."""

    def __init__(self, path: Path, *, seq_len: int, vocab_size: int) -> None:
        self._dtype = token_type(vocab_size)
        self._column = pa.list_(pa.field("item", pa.from_numpy_dtype(self._dtype), nullable=False), seq_len)
        self._schema = pa.schema([pa.field(COLUMN, self._column, nullable=False)])
        self._sink = pa.OSFile(str(path), "wb")
        self._writer = pa.ipc.new_file(self._sink, self._schema)
        self.num_rows = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()
        self._sink.close()

    def write(self, batch: Tokens) -> None:
        """Append token ids ``[rows, seq_len]`` as one record batch."""
        values = pa.array(np.ascontiguousarray(batch, dtype=self._dtype).reshape(-1))
        rows = pa.FixedSizeListArray.from_arrays(values, type=self._column)
        self._writer.write_batch(pa.record_batch([rows], schema=self._schema))
        self.num_rows += len(batch)


def write(path: Path, batches: Iterable[Tokens], *, seq_len: int, vocab_size: int) -> int:
    """Write batches ``[rows, seq_len]`` of token ids to one file; returns the number of rows."""
    with RowWriter(path, seq_len=seq_len, vocab_size=vocab_size) as writer:
        for batch in batches:
            writer.write(batch)
    return writer.num_rows


class Rows:
    """The rows of several files as one array, memory-mapped.

    Raises:
        RowsError: a file is missing, truncated, of another format, or of another length than the first.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        if not paths:
            raise RowsError("no row files: the tokens artifact is empty")
        self._parts = [part for path in paths for part in _map(path)]
        lengths = {part.shape[1] for part in self._parts}
        if len(lengths) > 1:
            raise RowsError(f"rows of different lengths {sorted(lengths)} in {paths[0].parent}")
        self._ends = np.cumsum([len(part) for part in self._parts], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if self._parts else 0

    @property
    def seq_len(self) -> int:
        return int(self._parts[0].shape[1])

    def take(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Rows ``[len(indices), seq_len]`` in the order asked for."""
        if len(indices) and (indices.min() < 0 or indices.max() >= len(self)):
            raise IndexError(f"row {int(indices.max())} of {len(self)}")
        taken = np.empty((len(indices), self.seq_len), dtype=np.int64)
        parts = np.searchsorted(self._ends, indices, side="right")
        for part in np.unique(parts):
            chosen = parts == part
            start = int(self._ends[part - 1]) if part else 0
            taken[chosen] = self._parts[part][indices[chosen] - start]
        return taken


def _map(path: Path) -> list[Tokens]:
    """Record batches of one file as arrays ``[rows, seq_len]`` over the memory map."""
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path)))
        batches = [table.get_batch(i).column(COLUMN) for i in range(table.num_record_batches)]
    except FileNotFoundError:
        raise RowsError(f"{path} does not exist: make the tokens again") from None
    except (pa.ArrowInvalid, OSError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise RowsError(
            f"{path} is not a readable row file ({reason}): it is cut or damaged, make the tokens again"
        ) from None
    arrays = []
    for batch in batches:
        if not pa.types.is_fixed_size_list(batch.type) or batch.null_count:
            raise RowsError(f"{path} has column {COLUMN} of type {batch.type}, expected full rows of one length")
        length = batch.type.list_size
        arrays.append(batch.flatten().to_numpy(zero_copy_only=True).reshape(-1, length))
    return arrays


@dataclass(frozen=True)
class TokenSet:
    """A tokens artifact, opened: what training needs to know of it, rows memory-mapped."""

    artifact: Artifact
    train: Rows
    heldout: Rows
    counts: npt.NDArray[np.int64]
    """Occurrences of each vocabulary entry in the training rows, ``[vocab_size]``."""

    @property
    def path(self) -> Path:
        return self.artifact.path

    @property
    def seq_len(self) -> int:
        return self.train.seq_len

    @property
    def vocab_size(self) -> int:
        return int(self.artifact.facts["vocab_size"])

    @property
    def mask_id(self) -> int:
        return int(self.artifact.facts["mask_id"])

    @property
    def special_ids(self) -> tuple[int, ...]:
        """Ids that are never masked: the tokenizer's special tokens."""
        return tuple(self.artifact.facts["special_ids"])


def open_tokens(path: Path) -> TokenSet:
    """Open a tokens artifact.

    Raises:
        ArtifactError: not a complete tokens artifact.
        RowsError: its row files are damaged.
    """
    found = read(path, "tokens")
    parts = {part: Rows(sorted(found.path.glob(f"{part}-*.arrow"))) for part in (TRAIN, HELDOUT)}
    return TokenSet(found, parts[TRAIN], parts[HELDOUT], np.load(found.path / COUNTS, allow_pickle=False))
