"""The Arrow row format: token rows written once, memory-mapped by everybody who reads them.

A file is an uncompressed Arrow IPC file with one column and no nulls::

    input_ids: fixed_size_list<uint16 | uint32>[seq_len]

``uint16`` when the vocabulary has at most 65,536 entries. Rows are read through memory maps, straight into the batch
that asked for them, so a corpus of any size needs no memory of its own. A file takes one map and, once open, no file
descriptor.
"""

import ctypes
import errno
import mmap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cluster.artifacts.artifact import Artifact, read, verify
from cluster.telemetry.error_text import first_line

COLUMN = "input_ids"
TRAIN, HELDOUT = "train", "heldout"
COUNTS = "counts.npy"

Tokens: TypeAlias = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]
Check: TypeAlias = Literal["sizes", "hashes"]
"""How an artifact's files are compared with its manifest when it is opened: at once, or reading all of them."""

_LIBC = ctypes.CDLL(None)  # Python's own madvise needs its own map, which keeps a file descriptor open

_LIMITS = {
    errno.EMFILE: "this process may open no more files: raise ulimit -n",
    errno.ENFILE: "this machine may open no more files: raise fs.file-max",
    errno.ENOMEM: "this process may map no more files: raise vm.max_map_count, or make the corpus with larger shards",
    errno.EACCES: "it may not be read by this user: change its permissions",
}


class RowsError(ValueError):
    """A row file is missing, truncated or not of this format, or more files than the system lets a process map."""


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


class RowFormat(NamedTuple):
    """What the rows of a file are."""

    seq_len: int
    dtype: np.dtype[Any]

    def __str__(self) -> str:
        return f"{self.seq_len} {self.dtype}"


class Rows:
    """The rows of several files as one array, memory-mapped.

    Raises:
        RowsError: a file is missing, truncated, of another format, or of another length or type than the first.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        if not paths:
            raise RowsError("no row files: the tokens artifact is empty")
        self._parts: list[Tokens] = []
        """Record batches of all files, each ``[rows, seq_len]`` over the file's map."""
        forms = [_map(path, self._parts) for path in paths]
        for path, form in zip(paths, forms, strict=True):
            if form != forms[0]:
                raise RowsError(
                    f"{path} has rows of {form}, {paths[0].name} beside it has {forms[0]}: they are of two artifacts, "
                    "make the tokens again"
                )
        self.form = forms[0]
        ends = np.cumsum([len(part) for part in self._parts], dtype=np.int64)
        self._starts = np.concatenate([np.zeros(1, dtype=np.int64), ends])

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def seq_len(self) -> int:
        return self.form.seq_len

    @property
    def row_bytes(self) -> int:
        """Bytes of a row in its file."""
        return self.seq_len * self.form.dtype.itemsize

    def take(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Rows ``[len(indices), seq_len]`` in the order asked for."""
        wrong = indices[(indices < 0) | (indices >= len(self))]
        if len(wrong):
            raise IndexError(f"row {int(wrong[0])} of {len(self)}")
        numbers = np.searchsorted(self._starts, indices, side="right") - 1
        places = indices - self._starts[numbers]
        taken = np.empty((len(indices), self.seq_len), dtype=np.int64)
        # Row by row, map to batch in one copy: rows at random hardly ever share a part, and indexing every part with
        # the few rows it has costs five times as much.
        for row, number, place in zip(taken, numbers.tolist(), places.tolist(), strict=True):
            row[:] = self._parts[number][place]
        return taken


def _map(path: Path, parts: list[Tokens]) -> RowFormat:
    """Append the record batches of one file to ``parts``; returns what its rows are."""
    try:
        mapped = _mapped(path)
        _advise(mapped, mmap.MADV_RANDOM)  # or the system reads far around the header of every record batch
        with pa.ipc.open_file(pa.BufferReader(mapped)) as file:
            form = _form(file.schema, path)
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
    return form


def _mapped(path: Path) -> pa.Buffer:
    """A file's memory map. It holds no file descriptor."""
    with pa.memory_map(str(path)) as source:
        first = source.read_buffer(1)
        # Arrow has the system read ahead all that is read through its own file object, which would be every row of the
        # corpus as soon as it is opened; of a plain buffer over the same map, only what is taken is read.
        return pa.foreign_buffer(first.address, source.size(), base=first)


def _advise(mapped: pa.Buffer, advice: int) -> None:
    """Tell the system how a map will be read. Advice only: nothing depends on its being taken."""
    _LIBC.madvise(ctypes.c_void_p(mapped.address), ctypes.c_size_t(mapped.size), advice)


def _form(schema: pa.Schema, path: Path) -> RowFormat:
    """What the rows of a file with this schema are, refused where it is no row file's."""
    column = schema.types[0] if schema.names == [COLUMN] else pa.null()
    full = pa.types.is_fixed_size_list(column) and column.list_size > 0
    if full and column.value_type in (pa.uint16(), pa.uint32()):
        return RowFormat(column.list_size, np.dtype(column.value_type.to_pandas_dtype()))
    columns = ", ".join(f"{field.name}: {field.type}" for field in schema) or "no column"
    raise RowsError(
        f"{path} has {columns}, and rows are {COLUMN}: fixed_size_list of uint16 or uint32: it is no file of "
        "cluster.tokens, make the tokens again"
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


def open_tokens(path: Path, check: Check = "sizes") -> TokenSet:
    """Open a tokens artifact.

    Raises:
        ArtifactError: not a complete tokens artifact, or, with ``check="hashes"``, one that was changed.
        RowsError: its row files are damaged, or are not those its manifest speaks of.
    """
    found = (verify if check == "hashes" else read)(path, "tokens")
    parts = {part: Rows(sorted(found.path.glob(f"{part}-*.arrow"))) for part in (TRAIN, HELDOUT)}
    for rows in parts.values():
        _agrees(rows, found)
    return TokenSet(found, parts[TRAIN], parts[HELDOUT], np.load(found.path / COUNTS, allow_pickle=False))


def _agrees(rows: Rows, found: Artifact) -> None:
    """Files that were put in the place of an artifact's own may be whole, of the same size, and of another corpus."""
    form = RowFormat(int(found.facts["seq_len"]), np.dtype(token_type(int(found.facts["vocab_size"]))))
    if rows.form != form:
        raise RowsError(
            f"{found.path} has rows of {rows.form}, its manifest says {form}: files of another artifact are in it, "
            "make the tokens again"
        )
