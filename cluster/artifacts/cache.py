"""The cache: copies of inputs from object stores, for stages that open paths and for rows that are memory-mapped.

::

    $STILLHOUSE_CACHE/  (~/.cache/stillhouse)
      4f1c…/                    the first letters of an artifact's identity
        .lock                   held by the process that fills or verifies the entry
        tokens/                 the files, under their names in the store
        .tokens.verified.json   size and modification time of every file when its SHA-256 was last correct
      making/                   artifacts that are published when they are complete

One process fills an entry; others wait for it. It compares the SHA-256 of a file after the download, and again when the
file has changed, and downloads only wrong files again. A folder that is no artifact is identified by the names, sizes
and ETags of its files. Entries are never evicted: delete folders that you no longer need.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
from upath import UPath

from cluster.artifacts import artifact
from cluster.artifacts.artifact import Artifact
from cluster.artifacts.commit import MANIFEST, ArtifactError
from cluster.storage import filesystem
from cluster.storage.filesystem import Location
from cluster.telemetry import progress

VARIABLE = "STILLHOUSE_CACHE"

_LOCK = ".lock"
_LETTERS = 16
"""Of the identity, in the name of an entry."""


def root() -> Path:
    """Folder of the cache, set by the environment variable STILLHOUSE_CACHE."""
    return Path(os.environ.get(VARIABLE) or Path.home() / ".cache" / "stillhouse").absolute()


def fetch(place: Location) -> Path:
    """A local path to an artifact, folder or file: itself, or its copy in the cache.

    Raises:
        ArtifactError: ``place`` does not exist, or is damaged in the store.
    """
    if isinstance(place, Path):
        return place
    wanted = _wanted(place)
    entry = root() / wanted.key[:_LETTERS]
    with _locked(entry, place):
        _fill(entry, wanted)
    return entry / place.name


def workplace(out: UPath) -> Path:
    """Local folder of an artifact to be published at ``out``: the same for every attempt."""
    return root() / "making" / artifact.digest(str(out))[:_LETTERS] / out.name


def keep(made: Artifact, published: UPath) -> None:
    """Turn a published artifact's workplace into a cache entry, which saves its download."""
    entry = root() / made.identity[:_LETTERS]
    folder = entry / published.name
    with _locked(entry, published):
        if not _verified(folder).exists():
            shutil.rmtree(folder, ignore_errors=True)
            made.path.rename(folder)
            filesystem.write_json(_verified(folder), {name: _stamp(folder / name) for name in [*made.files, MANIFEST]})
    shutil.rmtree(made.path.parent)


@dataclass(frozen=True)
class _Wanted:
    """Contents of an entry: name to ``bytes`` and, for an artifact, ``sha256`` of every file."""

    place: UPath
    key: str
    files: Mapping[str, Mapping[str, Any]]
    manifest: Mapping[str, Any] | None = None


def _wanted(place: UPath) -> _Wanted:
    if filesystem.is_file(place / MANIFEST):
        found = artifact.read(place)
        return _Wanted(place, found.identity, found.files, found.manifest)
    listed = {name or ".": info for name, info in filesystem.listing(place).items()}
    if not listed:
        raise ArtifactError(f"{place} does not exist: expected an artifact, folder or file there")
    stamps = [[name, info.bytes, info.stamp] for name, info in listed.items()]
    files = {name: {"bytes": info.bytes} for name, info in listed.items()}
    return _Wanted(place, artifact.digest([str(place), stamps]), files)


def _fill(entry: Path, wanted: _Wanted) -> None:
    """Download files that are missing or have changed since they were verified."""
    folder = entry / wanted.place.name
    verified = filesystem.read_json(_verified(folder)) if _verified(folder).exists() else {}
    names = [*wanted.files, *([MANIFEST] if wanted.manifest else [])]
    changed = [name for name in names if _stamp(folder / name) != verified.get(name, ())]
    if not changed:
        return
    if verified:
        progress.say(f"{folder / changed[0]} has changed since it was fetched: verifying and repairing it")
    for stray in entry.rglob(".*.tmp"):
        if stray.relative_to(folder).as_posix() not in wanted.files:
            stray.unlink()
    sizes = {name: int(wanted.files[name]["bytes"]) for name in changed if name != MANIFEST}
    filesystem.transfer(f"fetching {wanted.place}", lambda name: _fetch_file(folder / name, wanted, name), sizes)
    if wanted.manifest:
        filesystem.write_json(folder / MANIFEST, wanted.manifest)
    if not wanted.manifest and _wanted(wanted.place).key != wanted.key:
        # Two versions may be mixed in it.
        shutil.rmtree(folder) if folder.is_dir() else folder.unlink()
        raise ArtifactError(f"{wanted.place} was changed while it was fetched: run the same command again")
    filesystem.write_json(_verified(folder), {name: _stamp(folder / name) for name in names})


def _verified(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.verified.json")


def _fetch_file(path: Path, wanted: _Wanted, name: str) -> None:
    entry = wanted.files[name]
    if path.is_file() and _is(path, entry):
        return
    source = wanted.place if name == "." else wanted.place / name
    with filesystem.writing(path) as temporary:
        filesystem.download(source, temporary)
        if "sha256" in entry and not _is(temporary, entry):
            raise ArtifactError(
                f"{source} is not what it was when it was made: delete {wanted.place} and make it again"
            )


def _is(path: Path, entry: Mapping[str, Any]) -> bool:
    if path.stat().st_size != entry["bytes"]:
        return False
    return "sha256" not in entry or filesystem.file_sha256(path) == entry["sha256"]


def _stamp(path: Path) -> list[int] | None:
    """Size and modification time, or None without a file."""
    if not path.is_file():
        return None
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


@contextlib.contextmanager
def _locked(entry: Path, place: Location) -> Iterator[None]:
    entry.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(entry / _LOCK)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        progress.say(f"another process is fetching {place} into {entry}: waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
