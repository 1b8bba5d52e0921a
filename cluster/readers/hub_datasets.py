"""Data sets of the Hugging Face Hub and local folders that `datasets` understands, streamed a shard at a time."""

import contextlib
import functools
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from cluster.artifacts.errors import StageError
from cluster.readers.source_recipes import Hub
from cluster.telemetry.error_text import first_line

BATCH = 64
"""Documents taken at once: novels have a million characters each."""

_COMMIT = re.compile("[0-9a-f]{40}")


@dataclass(frozen=True)
class Found:
    """A data set as it is now."""

    place: str
    """Its name on the Hub, or a folder of this machine."""
    stamp: str
    """Its commit on the Hub; of a folder what changes when a file does."""
    shards: int


def find(source: Hub) -> Found:
    """What the source means right now, so that all actors read the same.

    Raises:
        StageError: the data set cannot be loaded, or it has no such column.
    """
    place = str(Path(source.dataset).absolute()) if Path(source.dataset).is_dir() else source.dataset
    with _explained(source):
        import datasets  # seconds to import, and only this source needs it

        builder: Any = datasets.load_dataset_builder(place, source.config, revision=source.revision)
        stamp = _stamp(builder)
        return Found(place, stamp, _stream(place, stamp, source).num_shards)


def tables(source: Hub, place: str, stamp: str, shard: int) -> Iterator[pa.Table]:
    """The rows of one shard of a data set that was found, in order, :data:`BATCH` of them at a time.

    Raises:
        StageError: the data set cannot be read.
    """
    with _explained(source):
        stream = _stream(place, stamp, source)
        yield from stream.with_format("arrow").shard(stream.num_shards, shard).iter(BATCH)


@functools.lru_cache(maxsize=4)
def _stream(place: str, stamp: str, source: Hub) -> Any:
    """Remembered, because looking a data set up takes several requests to the Hub."""
    import datasets

    revision = stamp if _COMMIT.fullmatch(stamp) else source.revision
    return datasets.load_dataset(place, source.config, split=source.split, revision=revision, streaming=True)


def _stamp(builder: Any) -> str:
    """The commit where there is one: the Hub's data sets are listed as files of a commit."""
    files = builder.config.data_files or {}
    origins = [list(map(str, origin)) for split in sorted(files) for origin in files[split].origin_metadata]
    commits = {part for origin in origins for part in origin if _COMMIT.fullmatch(part)}
    if len(commits) == 1:
        return commits.pop()
    return hashlib.sha256(repr((builder.hash, origins)).encode()).hexdigest()


@contextlib.contextmanager
def _explained(source: Hub) -> Iterator[None]:
    import datasets

    try:
        yield
    except StageError:
        raise
    except (OSError, ValueError, RuntimeError, pa.ArrowException, datasets.exceptions.DatasetsError) as error:
        raise StageError(
            f"dataset {source.dataset}, split {source.split}: cannot be loaded ({first_line(error)}); check its name "
            "and the network, or name a local folder"
        ) from None
