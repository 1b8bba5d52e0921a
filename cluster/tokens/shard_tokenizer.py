"""Tokenizes one shard of a corpus and writes its row files; runs in the actors of the pool."""

import contextlib
import functools
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.actors.actor_pool import Attempt
from cluster.artifacts.errors import StageError
from cluster.corpus.document_table import TEXT
from cluster.readers import bad_documents
from cluster.storage import filesystem
from cluster.storage.filesystem import Location
from cluster.telemetry.error_text import first_line
from cluster.tokens import rows
from cluster.tokens.fast_encoder import Encoder, load_encoder
from cluster.tokens.heldout import is_heldout
from cluster.tokens.packing import Packing, RowPacker

GROUP_CHARACTERS = 2**20
"""Text per call of the tokenizer, which keeps about 80 bytes per token until it returns."""

BATCH_TOKENS = 2**22
"""Tokens per record batch: more save time in readers, and cost memory in writers."""

SUSPICIOUS_DEATHS = 2
"""Actors that may die on a shard before its texts are encoded in a separate process."""

_BATCH_DOCUMENTS = 64

FAILS, KILLS = "tokenizer fails", "tokenizer dies"
"""Reasons to drop a document: the tokenizer raises an error, or kills its process."""

Encode: TypeAlias = Callable[[Sequence[str]], Sequence[bytes | str]]
"""Ids of each text as bytes, or the reason that there are none."""


@dataclass(frozen=True)
class ShardTask:
    """One file of the corpus, and the places for its rows."""

    source: Location
    number: int
    out: Location
    """Folder of the row files."""
    work: Location
    """Folder for the facts of finished shards."""
    packing: Packing
    heldout: float

    @property
    def done(self) -> Location:
        """Facts of the shard, written last."""
        return self.work / f"{self.number:05}.json"

    @property
    def counts(self) -> Location:
        """Occurrences of each id in the training rows, ``[vocab_size]``."""
        return self.work / f"{self.number:05}.npy"

    def rows(self, part: str) -> Location:
        return self.out / f"{part}-{self.number:05}.arrow"


def read_texts(source: Location) -> Iterator[list[str]]:
    """The documents of a shard in groups of about :data:`GROUP_CHARACTERS`.

    Raises:
        StageError: the file is damaged.
    """
    group: list[str] = []
    size = 0
    try:
        with filesystem.local(source) as path, pq.ParquetFile(path) as file:
            for batch in file.iter_batches(_BATCH_DOCUMENTS, columns=[TEXT]):
                for text in batch.column(0).to_pylist():
                    group.append(text)
                    size += len(text)
                    if size >= GROUP_CHARACTERS:
                        yield group
                        group, size = [], 0
    except (pa.ArrowException, OSError) as error:
        raise StageError(
            f"{source} cannot be read on {socket.gethostname()} ({first_line(error)}): make the corpus again"
        ) from None
    if group:
        yield group


def tokenize(shard: ShardTask, encode: Encode) -> dict[str, Any]:
    """Write the rows of one shard, then its facts; returns the facts."""
    facts: dict[str, Any] = {"bytes": 0, "failed": {}, "examples": []}
    with contextlib.ExitStack() as stack:
        parts = {part: _PartWriter(shard, part, stack) for part in (rows.TRAIN, rows.HELDOUT)}
        for texts in read_texts(shard.source):
            documents: dict[str, list[bytes]] = {part: [] for part in parts}
            for text, ids in zip(texts, encode(texts), strict=True):
                facts["bytes"] += len(text.encode())
                if isinstance(ids, str):
                    facts["failed"][ids] = facts["failed"].get(ids, 0) + 1
                    example = {"file": shard.source.name, "reason": ids, "text": bad_documents.excerpt(text)}
                    facts["examples"] = [*facts["examples"], example][: bad_documents.EXAMPLES]
                else:
                    documents[rows.HELDOUT if is_heldout(text, shard.heldout) else rows.TRAIN].append(ids)
            for name, part in parts.items():
                part.add(documents[name])
        for part in parts.values():
            part.flush()
    for name, part in parts.items():
        facts |= {f"{name}_rows": part.num_rows, f"{name}_documents": part.num_documents}
    facts["tail_tokens"] = sum(part.packer.tail_tokens for part in parts.values())
    facts["special_rows"] = sum(part.packer.special_rows for part in parts.values())
    save_array(shard.counts, parts[rows.TRAIN].counts)
    filesystem.write_json(shard.done, facts)
    return facts


class _PartWriter:
    """Packs and writes the training or held-out rows of a shard. The first row creates the file."""

    def __init__(self, shard: ShardTask, name: str, stack: contextlib.ExitStack) -> None:
        self._shard, self._name, self._stack = shard, name, stack
        self._write: Callable[[rows.Tokens], None] | None = None
        self._waiting: list[rows.Tokens] = []
        self.packer = RowPacker(shard.packing)
        self.counts = np.zeros(shard.packing.vocab_size, dtype=np.int64)
        self.num_rows = self.num_documents = 0

    def add(self, documents: Sequence[bytes]) -> None:
        self.num_documents += len(documents)
        filled = self.packer.add(documents)
        if not len(filled):
            return
        self.counts += np.bincount(filled.reshape(-1), minlength=len(self.counts))
        self.num_rows += len(filled)
        self._waiting.append(filled)
        if sum(map(np.size, self._waiting)) >= BATCH_TOKENS:
            self.flush()

    def flush(self) -> None:
        if not self._waiting:
            return
        if self._write is None:
            path = self._stack.enter_context(filesystem.writing(self._shard.rows(self._name)))
            packing = self._shard.packing
            self._write = self._stack.enter_context(rows.row_writer(path, packing.seq_len, packing.vocab_size))
        self._write(cast(rows.Tokens, np.concatenate(self._waiting)))
        self._waiting = []


def save_array(place: Location, values: np.typing.NDArray[Any]) -> None:
    """Write a .npy file atomically."""
    with filesystem.writing(place) as temporary, temporary.open("wb") as file:
        np.save(file, values)


class ShardTokenizer:
    """Worker of the actor pool: loads the tokenizer once, and tokenizes one shard after another."""

    def __init__(self, tokenizer_file: Location, vocab_size: int) -> None:
        self._file, self._vocab_size = tokenizer_file, vocab_size

    def work(self, shard: ShardTask, attempt: Attempt) -> dict[str, Any]:
        if attempt.deaths < SUSPICIOUS_DEATHS:
            return tokenize(shard, functools.partial(_encode, self._encoder))
        with (
            filesystem.local(self._file) as file,
            contextlib.closing(_IsolatedEncoder(file, self._vocab_size)) as isolated,
        ):
            return tokenize(shard, isolated.encode)

    @functools.cached_property
    def _encoder(self) -> Encoder:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # an actor has one CPU
        if not filesystem.exists(self._file):
            raise StageError(
                f"{self._file} does not exist on {socket.gethostname()}: put the corpus and --out on shared storage"
            )
        with filesystem.local(self._file) as file:
            return _load(file, self._vocab_size)


class _IsolatedEncoder:
    """Encodes in a separate process. A text that kills the process twice, when it is alone, counts as failed."""

    def __init__(self, tokenizer_file: Path, vocab_size: int) -> None:
        self._arguments = (tokenizer_file, vocab_size)
        self._process: ProcessPoolExecutor | None = None

    def close(self) -> None:
        if self._process:
            self._process.shutdown()

    def encode(self, texts: Sequence[str]) -> Sequence[bytes | str]:
        for _ in range(2 if len(texts) == 1 else 1):
            self._process = self._process or ProcessPoolExecutor(1, mp_context=get_context("spawn"))
            with contextlib.suppress(BrokenProcessPool):
                return self._process.submit(_load_and_encode, *self._arguments, texts).result()
            self._process = None
        if len(texts) == 1:
            return [KILLS]
        half = len(texts) // 2
        return [*self.encode(texts[:half]), *self.encode(texts[half:])]


def _encode(encoder: Encoder, texts: Sequence[str]) -> Sequence[bytes | str]:
    return [FAILS if ids is None else ids for ids in encoder.encode(texts)]


def _load_and_encode(tokenizer_file: Path, vocab_size: int, texts: Sequence[str]) -> Sequence[bytes | str]:
    return _encode(_load(tokenizer_file, vocab_size), texts)


@functools.cache
def _load(tokenizer_file: Path, vocab_size: int) -> Encoder:
    return Encoder(load_encoder(tokenizer_file), vocab_size)
