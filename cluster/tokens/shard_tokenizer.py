"""One shard of a corpus to files of rows, as an actor of the pool does it."""

import contextlib
import functools
import hashlib
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
from cluster.corpus import document_table
from cluster.readers import bad_documents
from cluster.storage import filesystem
from cluster.storage.filesystem import Location
from cluster.telemetry.error_text import first_line
from cluster.tokens import rows
from cluster.tokens.fast_encoder import Encoder, load_encoder
from cluster.tokens.packing import Packing, RowPacker

GROUP_CHARACTERS = 2**20
"""Text encoded at once: the library keeps some 80 bytes per token until the call returns."""

BATCH_TOKENS = 2**22
"""Tokens of a record batch: readers want few of them, writers little memory."""

SUSPICIOUS_DEATHS = 2
"""Actors that have died on a shard, from which on its texts are encoded in a process of their own."""

_READ_AT_ONCE = 64

FAILS, KILLS = "tokenizer fails", "tokenizer dies"
"""Why a document is left out: an error of the library, or the end of the process it runs in."""

Encode: TypeAlias = Callable[[Sequence[str]], Sequence[bytes | str]]
"""Ids of texts as bytes, or why there are none."""


@dataclass(frozen=True)
class ShardTask:
    """One file of the corpus and where its rows go."""

    source: Location
    number: int
    out: Location
    """Folder of the row files."""
    work: Location
    """Folder for what is known of finished shards."""
    packing: Packing
    heldout: float

    @property
    def done(self) -> Location:
        """Written last: numbers of documents, rows and dropped tokens."""
        return self.work / f"{self.number:05}.json"

    @property
    def counts(self) -> Location:
        """Occurrences of each id in the training rows, ``[vocab_size]``."""
        return self.work / f"{self.number:05}.npy"

    def rows(self, part: str) -> Location:
        return self.out / f"{part}-{self.number:05}.arrow"


def is_heldout(text: str, share: float) -> bool:
    """Whether a document is kept from training: decided by its text, so the same in any order and any corpus."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


def read_texts(source: Location) -> Iterator[list[str]]:
    """The documents of a shard in groups of about :data:`GROUP_CHARACTERS`.

    Raises:
        StageError: the file is damaged.
    """
    group: list[str] = []
    size = 0
    try:
        with filesystem.local(source) as path, pq.ParquetFile(path) as file:
            for batch in file.iter_batches(_READ_AT_ONCE, columns=[document_table.TEXT]):
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
    """Write the rows of one shard, then the file that says it is done and what was in it."""
    facts: dict[str, Any] = {"bytes": 0, "failed": {}, "examples": []}
    with contextlib.ExitStack() as stack:
        parts = {part: _Part(shard, part, stack) for part in (rows.TRAIN, rows.HELDOUT)}
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
    facts["tail_tokens"] = sum(part.stream.tail_tokens for part in parts.values())
    facts["special_rows"] = sum(part.stream.special_rows for part in parts.values())
    save_array(shard.counts, parts[rows.TRAIN].counts)
    filesystem.write_json(shard.done, facts)
    return facts


class _Part:
    """Training or held-out rows of a shard, on their way into a file that is made when the first row is there."""

    def __init__(self, shard: ShardTask, name: str, stack: contextlib.ExitStack) -> None:
        self._shard, self._name, self._stack = shard, name, stack
        self._writer: rows.RowWriter | None = None
        self._waiting: list[rows.Tokens] = []
        self.stream = RowPacker(shard.packing)
        self.counts = np.zeros(shard.packing.vocab_size, dtype=np.int64)
        self.num_rows = self.num_documents = 0

    def add(self, documents: Sequence[bytes]) -> None:
        self.num_documents += len(documents)
        filled = self.stream.add(documents)
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
        if self._writer is None:
            path = self._stack.enter_context(filesystem.writing(self._shard.rows(self._name)))
            packing = self._shard.packing
            writer = rows.RowWriter(path, seq_len=packing.seq_len, vocab_size=packing.vocab_size)
            self._writer = self._stack.enter_context(writer)
        self._writer.write(cast(rows.Tokens, np.concatenate(self._waiting)))
        self._waiting = []


def save_array(place: Location, values: np.typing.NDArray[Any]) -> None:
    """Write a .npy file whole or not at all."""
    with filesystem.writing(place) as temporary, temporary.open("wb") as file:
        np.save(file, values)


class ShardTokenizer:
    """The worker: it loads the tokenizer once and takes one shard after another."""

    def __init__(self, tokenizer_file: Location, vocab_size: int) -> None:
        self._file, self._vocab_size = tokenizer_file, vocab_size

    def work(self, payload: ShardTask, attempt: Attempt) -> dict[str, Any]:
        if attempt.deaths < SUSPICIOUS_DEATHS:
            return tokenize(payload, functools.partial(_named, self._encoder))
        with filesystem.local(self._file) as file, _Apart(file, self._vocab_size) as apart:
            return tokenize(payload, apart.encode)

    @functools.cached_property
    def _encoder(self) -> Encoder:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # an actor has one CPU
        if not filesystem.exists(self._file):
            raise StageError(
                f"{self._file} is not there on {socket.gethostname()}: put the corpus and --out on shared storage"
            )
        with filesystem.local(self._file) as file:
            return Encoder(load_encoder(file), self._vocab_size)


class _Apart:
    """Encodes in a process of its own, which texts may kill: those that do it alone, and twice, count as failed."""

    def __init__(self, tokenizer_file: Path, vocab_size: int) -> None:
        self._arguments = (tokenizer_file, vocab_size)
        self._process: ProcessPoolExecutor | None = None

    def __enter__(self) -> "_Apart":
        return self

    def __exit__(self, *_: object) -> None:
        if self._process:
            self._process.shutdown()

    def encode(self, texts: Sequence[str]) -> Sequence[bytes | str]:
        for _ in range(2 if len(texts) == 1 else 1):
            with contextlib.suppress(BrokenProcessPool):
                return self._ask(texts)
            self._process = None
        if len(texts) == 1:
            return [KILLS]
        half = len(texts) // 2
        return [*self.encode(texts[:half]), *self.encode(texts[half:])]

    def _ask(self, texts: Sequence[str]) -> Sequence[bytes | str]:
        if self._process is None:
            self._process = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
        return self._process.submit(_encoded, *self._arguments, texts).result()


def _named(encoder: Encoder, texts: Sequence[str]) -> Sequence[bytes | str]:
    return [FAILS if ids is None else ids for ids in encoder.encode(texts)]


def _encoded(tokenizer_file: Path, vocab_size: int, texts: Sequence[str]) -> Sequence[bytes | str]:
    return _named(_loaded(tokenizer_file, vocab_size), texts)


@functools.cache
def _loaded(tokenizer_file: Path, vocab_size: int) -> Encoder:
    return Encoder(load_encoder(tokenizer_file), vocab_size)
