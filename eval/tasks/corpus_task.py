"""What tasks that are made from a corpus share: its documents, an order that depends on texts alone, their files."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.artifacts import artifact
from cluster.corpus.shard_writer import SHARDS
from cluster.storage.filesystem import write_json
from cluster.telemetry.progress import progress
from eval.tasks.declared_names import LABEL_NAMES


def shards(corpus: Path) -> list[Path]:
    """The files of a corpus artifact."""
    found = artifact.read(corpus, "corpus")
    return [found.path / name for name in found.matching(SHARDS)]


def documents(files: Sequence[Path], unit: str) -> Iterator[tuple[str, str]]:
    """Source and text of every document, with a progress line that counts documents and names what is made of them."""
    total = sum(pq.ParquetFile(file).metadata.num_rows for file in files)

    def rows() -> Iterator[tuple[str, str]]:
        for file in files:
            for batch in pq.ParquetFile(file).iter_batches(batch_size=1024, columns=["source", "text"]):
                yield from zip(batch.column("source").to_pylist(), batch.column("text").to_pylist(), strict=True)

    return progress(rows(), unit, total, "documents")


def rank(seed: int, text: str) -> bytes:
    """Sort key of a pseudo-random order that depends on seed and text alone."""
    return hashlib.sha256(f"{seed}:{text}".encode()).digest()


def write(
    out: Path, train: Sequence[tuple[str, int]], dev: Sequence[tuple[str, int]], labels: Sequence[str], seed: int
) -> None:
    """Write ``train.parquet``, ``dev.parquet`` (sentence, label; mixed) and the names of the labels."""
    for name, examples in (("train", train), ("dev", dev)):
        sentences, numbers = zip(*sorted(examples, key=lambda example: rank(seed, example[0])), strict=True)
        columns = {"sentence": pa.array(sentences, pa.string()), "label": pa.array(numbers, pa.int64())}
        pq.write_table(pa.table(columns), out / f"{name}.parquet", compression="zstd")
    write_json(out / LABEL_NAMES, list(labels))
