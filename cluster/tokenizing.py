"""Shards of a corpus to files of rows, each by itself, on a pool of Ray actors."""

import functools
import hashlib
import logging
import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer

from cluster import artifact, corpus, rows, telemetry
from cluster.packing import Packing
from cluster.ray_cluster import connect
from cluster.stage import StageError

logger = logging.getLogger("stillhouse")

GROUP_CHARACTERS = 2**20
"""Text encoded at once: the library keeps some 80 bytes per token until the call returns."""

WAIT_SECONDS = 60.0
_BATCH = 64


@dataclass(frozen=True)
class Shard:
    """One file of the corpus and where its rows go."""

    source: Path
    number: int
    out: Path
    """Folder of the row files."""
    work: Path
    """Folder for what is known of finished shards."""
    packing: Packing
    heldout: float

    @property
    def done(self) -> Path:
        """Written last: numbers of documents, rows and dropped tokens."""
        return self.work / f"{self.number:05}.json"

    @property
    def counts(self) -> Path:
        """Occurrences of each id in the training rows, ``[vocab_size]``."""
        return self.work / f"{self.number:05}.npy"


def is_heldout(text: str, share: float) -> bool:
    """Whether a document is kept from training: decided by its text, so the same in any order and any corpus."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


def read_texts(source: Path) -> Iterator[list[str]]:
    """The documents of a shard in groups of about :data:`GROUP_CHARACTERS`.

    Raises:
        StageError: the file is damaged.
    """
    group: list[str] = []
    size = 0
    try:
        with pq.ParquetFile(source) as file:
            for batch in file.iter_batches(_BATCH, columns=[corpus.TEXT]):
                for text in batch.column(0).to_pylist():
                    group.append(text)
                    size += len(text)
                    if size >= GROUP_CHARACTERS:
                        yield group
                        group, size = [], 0
    except (pa.ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise StageError(
            f"{source} cannot be read on {socket.gethostname()} ({reason}): make the corpus again"
        ) from None
    if group:
        yield group


def tokenize(shard: Shard, tokenizer: Tokenizer) -> None:
    """Write the rows of one shard, then the file that says it is done."""
    packing, dtype = shard.packing, rows.token_type(shard.packing.vocab_size)
    documents: dict[str, list[rows.Tokens]] = {rows.TRAIN: [], rows.HELDOUT: []}
    for texts in read_texts(shard.source):
        for text, encoding in zip(texts, tokenizer.encode_batch_fast(texts, add_special_tokens=False), strict=True):
            part = rows.HELDOUT if is_heldout(text, shard.heldout) else rows.TRAIN
            documents[part].append(cast(rows.Tokens, np.array(encoding.ids, dtype=dtype)))
    packed = {part: packing.pack(stream) for part, stream in documents.items()}
    for part, found in packed.items():
        if len(found.rows):
            target = shard.out / f"{part}-{shard.number:05}.arrow"
            temporary = target.with_suffix(".tmp")
            rows.write(temporary, [found.rows], seq_len=packing.seq_len, vocab_size=packing.vocab_size)
            temporary.replace(target)
    np.save(shard.counts, np.bincount(packed[rows.TRAIN].rows.reshape(-1), minlength=packing.vocab_size))
    facts = {f"{part}_rows": len(found.rows) for part, found in packed.items()}
    facts |= {f"{part}_documents": len(found) for part, found in documents.items()}
    facts |= {"tail_tokens": sum(found.tail_tokens for found in packed.values())}
    facts |= {"special_rows": sum(found.special_rows for found in packed.values())}
    artifact.write_json(shard.done, facts)


class Worker:
    """An actor: it loads the tokenizer once and takes one shard after another."""

    def __init__(self, tokenizer_file: Path) -> None:
        self._file = tokenizer_file

    def ready(self) -> None:
        """Returns as soon as the actor has been given its CPU."""

    def tokenize(self, shard: Shard) -> int:
        """Returns the shard's number."""
        tokenize(shard, self._tokenizer)
        return shard.number

    @functools.cached_property
    def _tokenizer(self) -> Tokenizer:
        if not self._file.exists():
            raise StageError(
                f"{self._file} is not there on {socket.gethostname()}: put the corpus and --out on shared storage"
            )
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # an actor has one CPU
        return load_encoder(self._file)


def load_encoder(file: Path) -> Tokenizer:
    """The tokenizer of a tokenizer.json as a plain text encoder.

    It neither truncates nor pads, and the name of a special token inside a text is text: no document can write [SEP].
    """
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


def tokenize_all(shards: Sequence[Shard], tokenizer_file: Path, actors: int | Literal["auto"], done: int = 0) -> None:
    """Tokenise shards on so many actors; ``done`` others were finished earlier.

    Raises:
        StageError: actors keep dying, or what a shard is refused for.
    """
    import ray  # after connect has settled its environment

    with (
        connect(None if actors == "auto" else actors),
        telemetry.Progress("tokens", done + len(shards), "shards", done) as shown,
    ):
        cpus = int(ray.cluster_resources().get("CPU", 1)) if actors == "auto" else actors
        remote: Any = ray.remote(num_cpus=1, max_restarts=3, max_task_retries=3)(Worker)
        pool = [remote.remote(tokenizer_file) for _ in range(max(1, min(cpus, len(shards))))]
        try:
            for _ in _finished(pool, shards):
                shown.advance()
        except ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except ray.exceptions.RayActorError as error:
            raise StageError(
                f"an actor died four times ({str(error).partition(chr(10))[0]}): look for memory running out, lower "
                "shard_bytes in the corpus recipe if so, and run the same command again to continue"
            ) from None
        finally:
            for actor in pool:
                ray.kill(actor)


def _finished(pool: Sequence[Any], shards: Sequence[Shard]) -> Iterator[int]:
    """Numbers of shards as they are finished; one shard in flight for each actor.

    An actor gets its first shard when it is up, so those for which the cluster has no CPU hold nothing back.
    """
    import ray

    waiting, left = list(reversed(shards)), len(shards)
    busy = {actor.ready.remote(): actor for actor in pool}
    while left:
        results, _ = ray.wait(list(busy), timeout=WAIT_SECONDS)
        if not results:
            logger.info("tokens: %d shards left, waiting for actors or for a free CPU", left)
            continue
        actor = busy.pop(results[0])
        number = ray.get(results[0])
        if number is not None:
            left -= 1
            yield number
        if waiting:
            busy[actor.tokenize.remote(waiting.pop())] = actor
