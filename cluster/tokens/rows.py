"""The Arrow format of token rows: written once, then memory-mapped.

A file is an uncompressed Arrow IPC file with one column and no nulls::

    input_ids: fixed_size_list<uint16 | uint32>[seq_len]

``uint16`` if the vocabulary has at most 65,536 entries. Readers copy rows from the memory map to the batch, so memory
does not depend on the size of the corpus. An open file takes one map and no file descriptor.
"""

import contextlib
import ctypes
import errno
import mmap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cluster.artifacts.artifact import Artifact, verify
from cluster.telemetry.error_text import first_line

COLUMN = "input_ids"
TRAIN, HELDOUT = "train", "heldout"
COUNTS = "counts.npy"
ROWS = ".arrow"

Tokens: TypeAlias = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]
Check: TypeAlias = Literal["sizes", "hashes"]
"""What :func:`open_tokens` compares with the manifest: sizes of files, or hashes, which reads all of them."""

_LIBC = ctypes.CDLL(None)  # Python's own madvise needs its own map, which keeps a file descriptor open

_LIMITS = {
    errno.EMFILE: "this process may open no more files: raise ulimit -n",
    errno.ENFILE: "this machine may open no more files: raise fs.file-max",
    errno.ENOMEM: "this process may map no more files: raise vm.max_map_count, or make the corpus with larger shards",
    errno.EACCES: "this user may not read it: change its permissions",
}


class RowsError(ValueError):
    """A row file is missing, damaged or of another format, or the process has too many files."""


def token_type(vocab_size: int) -> type[np.uint16] | type[np.uint32]:
    """Narrowest type that holds every id of a vocabulary."""
    return np.uint16 if vocab_size <= 2**16 else np.uint32


@contextlib.contextmanager
def row_writer(path: Path, seq_len: int, vocab_size: int) -> Iterator[Callable[[Tokens], None]]:
    """A function that appends token ids ``[rows, seq_len]`` to one row file, as a record batch."""
    dtype = token_type(vocab_size)
    column = pa.list_(pa.field("item", pa.from_numpy_dtype(dtype), nullable=False), seq_len)
    schema = pa.schema([pa.field(COLUMN, column, nullable=False)])
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:

        def write(batch: Tokens) -> None:
            values = pa.array(np.ascontiguousarray(batch, dtype=dtype).reshape(-1))
            rows = pa.FixedSizeListArray.from_arrays(values, type=column)
            writer.write_batch(pa.record_batch([rows], schema=schema))

        yield write


class RowFormat(NamedTuple):
    seq_len: int
    dtype: np.dtype[Any]

    def __str__(self) -> str:
        return f"{self.seq_len} {self.dtype}"


class Rows:
    """The rows of several files as one memory-mapped array.

    Raises:
        RowsError: a file is missing or damaged, or its rows differ from those of the first in format, length or type.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        if not paths:
            raise RowsError("no row files: the tokens artifact is empty")
        self._parts: list[Tokens] = []
        """Record batches of all files, each ``[rows, seq_len]`` over the file's map."""
        formats = [_map(path, self._parts) for path in paths]
        self.format = formats[0]
        for path, found in zip(paths, formats, strict=True):
            if found != self.format:
                raise RowsError(
                    f"{path} has rows of {found}, and {paths[0].name} of {self.format}: they are from two artifacts, "
                    "make the tokens again"
                )
        ends = np.cumsum([len(part) for part in self._parts], dtype=np.int64)
        self._starts = np.concatenate([np.zeros(1, dtype=np.int64), ends])

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def seq_len(self) -> int:
        return self.format.seq_len

    @property
    def row_bytes(self) -> int:
        return self.seq_len * self.format.dtype.itemsize

    def take(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Rows ``[len(indices), seq_len]`` in the order of the indices."""
        wrong = indices[(indices < 0) | (indices >= len(self))]
        if len(wrong):
            raise IndexError(f"row {int(wrong[0])} of {len(self)}")
        numbers = np.searchsorted(self._starts, indices, side="right") - 1
        places = indices - self._starts[numbers]
        taken = np.empty((len(indices), self.seq_len), dtype=np.int64)
        # One copy per row: random rows seldom share a part, and indexing each part with its few rows takes five times
        # as long.
        for row, number, place in zip(taken, numbers.tolist(), places.tolist(), strict=True):
            row[:] = self._parts[number][place]
        return taken


def _map(path: Path, parts: list[Tokens]) -> RowFormat:
    """Append the record batches of one file to ``parts``; returns the format of its rows."""
    try:
        mapped = _mapped(path)
        _advise(mapped, mmap.MADV_RANDOM)  # otherwise the kernel reads far around the header of each batch
        with pa.ipc.open_file(pa.BufferReader(mapped)) as file:
            row_format = _format_of(file.schema, path)
            for number in range(file.num_record_batches):
                parts.append(_values(file.get_batch(number).column(0), path))
        _advise(mapped, mmap.MADV_NORMAL)
    except FileNotFoundError:
        raise RowsError(f"{path} does not exist: make the tokens again") from None
    except (pa.ArrowException, OSError) as error:
        if limit := _LIMITS.get(getattr(error, "errno", None) or 0):
            raise RowsError(f"{path} cannot be opened: {limit}") from None
        raise RowsError(
            f"{path} is not a readable row file ({first_line(error)}): it is cut or damaged, make the tokens again"
        ) from None
    return row_format


def _mapped(path: Path) -> pa.Buffer:
    """The memory map of a file, without a file descriptor."""
    with pa.memory_map(str(path)) as source:
        first = source.read_buffer(1)
        # Arrow's file object has the kernel read ahead, which would load the whole corpus when it is opened. A plain
        # buffer over the same map loads only the rows that are used.
        return pa.foreign_buffer(first.address, source.size(), base=first)


def _advise(mapped: pa.Buffer, advice: int) -> None:
    """Tell the kernel how a map will be read; correctness does not depend on it."""
    _LIBC.madvise(ctypes.c_void_p(mapped.address), ctypes.c_size_t(mapped.size), advice)


def _format_of(schema: pa.Schema, path: Path) -> RowFormat:
    """Format of the rows of a file; RowsError if the schema is not that of a row file."""
    column = schema.types[0] if schema.names == [COLUMN] else pa.null()
    is_fixed = pa.types.is_fixed_size_list(column) and column.list_size > 0
    if is_fixed and column.value_type in (pa.uint16(), pa.uint32()):
        return RowFormat(column.list_size, np.dtype(column.value_type.to_pandas_dtype()))
    columns = ", ".join(f"{field.name}: {field.type}" for field in schema) or "no column"
    raise RowsError(
        f"{path} has {columns}, and rows are {COLUMN}: fixed_size_list of uint16 or uint32: it is not a file of "
        "stillhouse tokens, make the tokens again"
    )


def _values(batch: pa.FixedSizeListArray, path: Path) -> Tokens:
    """A record batch as ``[rows, seq_len]``, without a copy."""
    values = batch.flatten()
    if batch.null_count or values.null_count:
        raise RowsError(f"{path} has nulls in {COLUMN}, and rows are always full: make the tokens again")
    found: Tokens = values.to_numpy(zero_copy_only=True).reshape(-1, batch.type.list_size)
    return found


@dataclass(frozen=True)
class TokenSet:
    """An open tokens artifact."""

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
        """Ids of special tokens, which training never masks."""
        return tuple(self.artifact.facts["special_ids"])


def open_tokens(path: Path, check: Check = "sizes") -> TokenSet:
    """Open a tokens artifact.

    Raises:
        ArtifactError: not a complete tokens artifact, or one whose tokenizer or counts were changed; with
            ``check="hashes"``, also one with changed rows.
        RowsError: the row files are damaged, or from another artifact.
    """
    # Students are saved with this tokenizer, so it is compared even where hashing all rows would take too long.
    found = verify(path, "tokens", chosen=lambda name: check == "hashes" or not name.endswith(ROWS))
    train, heldout = (
        Rows([found.path / name for name in found.matching(f"{part}-*{ROWS}")]) for part in (TRAIN, HELDOUT)
    )
    expected = RowFormat(int(found.facts["seq_len"]), np.dtype(token_type(int(found.facts["vocab_size"]))))
    for rows in (train, heldout):
        # Row files of another artifact may have the same sizes.
        if rows.format != expected:
            raise RowsError(
                f"{found.path} has rows of {rows.format}, its manifest says {expected}: files of another artifact are "
                "in it, make the tokens again"
            )
    return TokenSet(found, train, heldout, np.load(found.path / COUNTS, allow_pickle=False))
