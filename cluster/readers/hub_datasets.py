"""Streams data sets of the Hugging Face Hub, and local folders that `datasets` can load, one shard at a time."""

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
"""Documents per batch; small, because a novel has a million characters."""

_COMMIT = re.compile("[0-9a-f]{40}")
_PATTERN = re.compile(r"[*?[]|::")


@dataclass(frozen=True)
class HubSnapshot:
    """One version of a data set, so that all actors read the same."""

    place: str
    """Name on the Hub, or a local folder."""
    stamp: str
    """Commit on the Hub; for a folder a digest of its files' versions."""
    shards: int


def resolve(source: Hub) -> HubSnapshot:
    """The current version of a data set.

    Raises:
        StageError: the data set cannot be loaded, or is in a folder whose name `datasets` takes for a pattern.
    """
    place = source.dataset
    if Path(source.dataset).is_dir():
        place = str(Path(source.dataset).absolute())
        if found := _PATTERN.search(place):
            raise StageError(
                f"dataset {place}: the library takes {found[0]} in a folder's name for a pattern: rename the folder, "
                "or read its files with kind jsonl, parquet, arrow or text"
            )
    with _hub_errors(source):
        import datasets  # takes seconds to import, and only this source needs it

        builder: Any = datasets.load_dataset_builder(place, source.config, revision=source.revision)
        stamp = _stamp(builder)
        return HubSnapshot(place, stamp, _stream(place, stamp, source).num_shards)


def tables(source: Hub, place: str, stamp: str, shard: int) -> Iterator[pa.Table]:
    """The rows of one shard of a snapshot, in order, in tables of :data:`BATCH` rows.

    Raises:
        StageError: the data set cannot be read.
    """
    with _hub_errors(source):
        stream = _stream(place, stamp, source)
        yield from stream.with_format("arrow").shard(stream.num_shards, shard).iter(BATCH)


@functools.lru_cache(maxsize=4)  # each look-up takes several requests to the Hub
def _stream(place: str, stamp: str, source: Hub) -> Any:
    import datasets

    revision = stamp if _COMMIT.fullmatch(stamp) else source.revision
    return datasets.load_dataset(place, source.config, split=source.split, revision=revision, streaming=True)


def _stamp(builder: Any) -> str:
    """The commit if all files come from one; otherwise a digest of the files' origins."""
    files = builder.config.data_files or {}
    origins = [list(map(str, origin)) for split in sorted(files) for origin in files[split].origin_metadata]
    commits = {part for origin in origins for part in origin if _COMMIT.fullmatch(part)}
    if len(commits) == 1:
        return commits.pop()
    return hashlib.sha256(repr((builder.hash, origins)).encode()).hexdigest()


@contextlib.contextmanager
def _hub_errors(source: Hub) -> Iterator[None]:
    """Re-raise errors of `datasets` as StageError."""
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
