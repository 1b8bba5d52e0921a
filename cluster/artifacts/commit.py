"""The commit protocol: one process at a time makes an artifact, which appears complete or not at all.

::

    .tokens.partial/        on this machine: renamed to tokens/ when everything is there
      .draft.json           kind, inputs and recipe of the attempt
      .lock                 held while the process lives
      rows-00000.arrow      finished files, which the next attempt reuses
    s3://bucket/tokens/     in an object store: the artifact itself, complete once it has a manifest
      .draft.json  rows-00000.arrow
      .lease-00001          instead of the lock
"""

import contextlib
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, overload

import filelock
from upath import UPath

from cluster.storage import filesystem, lease
from cluster.storage.filesystem import Location

MANIFEST = "manifest.json"
CARD = "README.md"
"""Description of an artifact, but no part of it: it may change later."""

_DRAFT = ".draft.json"
_LOCK = ".lock"
_TEMPORARY = re.compile(r"\..*\.tmp")


class ArtifactError(ValueError):
    """An artifact is missing, incomplete, of another kind, altered, or would be overwritten."""


@overload
def staging(out: Path) -> Path: ...
@overload
def staging(out: UPath) -> UPath: ...
def staging(out: Location) -> Location:
    """Where the files of an artifact are until it is complete; in an object store, ``out`` itself."""
    return out.with_name(f".{out.name}.partial") if isinstance(out, Path) else out


def completed(partial: Path) -> Path:
    """Where an artifact will be that is made in ``partial``; any other folder stays where it is."""
    made = re.fullmatch(r"\.(.+)\.partial", partial.name)
    return partial.with_name(made[1]) if made else partial


def present(out: Location) -> bool:
    """Whether ``out`` is an artifact, or anything else but an attempt at one, which must not be overwritten."""
    if isinstance(out, Path):
        return out.exists()
    names = [name for name in filesystem.listing(out) if not lease.NAME.fullmatch(name)]
    return MANIFEST in names or (bool(names) and _DRAFT not in names)


def parse(path: Location) -> dict[str, Any]:
    """A manifest or a draft of one.

    Raises:
        ArtifactError: the file is neither.
    """
    try:
        parsed = filesystem.read_json(path)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} cannot be read ({error}): delete {path.parent} and make it again") from None
    if not _describes(parsed):
        raise ArtifactError(f"{path} is not a manifest: delete {path.parent} and make it again")
    return dict(parsed)


def is_manifest(path: Location) -> bool:
    """Whether a file of this name, which other programs write as well, is the manifest of an artifact."""
    try:
        return _describes(filesystem.read_json(path))
    except ValueError:
        return False


def _describes(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() >= {"kind", "inputs", "recipe"}


@contextlib.contextmanager
def exclusive(out: Location, intent: Mapping[str, Any]) -> Iterator[Callable[[], None]]:
    """Lock ``out``, with its staging directory ready for this attempt.

    Yields a check to call before :func:`complete`: it raises if another process has taken over.

    Raises:
        ArtifactError: ``out`` exists, or another process is making it.
        LeaseError: another process is making it in the object store.
    """
    _refuse_existing(out)
    if isinstance(out, Path):
        staging(out).mkdir(parents=True, exist_ok=True)
        with _locked(out):
            _prepare(out, intent)
            yield lambda: None
    else:
        with lease.held(out) as held:
            _prepare(out, intent)
            yield held.check


def entries(partial: Location) -> dict[str, dict[str, Any]]:
    """Name to ``bytes`` and ``sha256`` of the files for the manifest."""
    ours = (_LOCK, _DRAFT, MANIFEST, CARD)
    found = {
        name: info
        for name, info in filesystem.listing(partial).items()
        if name not in ours and not _TEMPORARY.fullmatch(info.location.name) and not lease.NAME.fullmatch(name)
    }
    for info in found.values():
        if isinstance(info.location, Path):
            filesystem.sync(info.location)  # after a power failure, no manifest may list files that are lost
    with ThreadPoolExecutor(1 if filesystem.is_local(partial) else filesystem.TRANSFERS) as reading:
        hashes = reading.map(filesystem.stated_sha256, (info.location for info in found.values()))
        sizes = {name: info.bytes for name, info in found.items()}
        return {name: {"bytes": sizes[name], "sha256": sha256} for name, sha256 in zip(sizes, hashes, strict=True)}


def complete(out: Location, manifest: Mapping[str, Any]) -> None:
    """Turn the staged files into the artifact, with the manifest as the last write.

    Raises:
        ArtifactError: another process has completed it in the object store.
    """
    if isinstance(out, Path):
        partial = staging(out)
        filesystem.write_json(partial / MANIFEST, manifest)
        (partial / _DRAFT).unlink()
        _remove_temporary(partial)
        partial.rename(out)
        (out / _LOCK).unlink(missing_ok=True)
        filesystem.sync(out.parent)
        return
    try:
        filesystem.create_text(out / MANIFEST, filesystem.json_text(manifest))
    except FileExistsError:
        raise ArtifactError(f"{out} was completed by another process meanwhile: its artifact stays") from None
    filesystem.remove(out / _DRAFT)
    _remove_temporary(out)


def _remove_temporary(place: Location) -> None:
    """Remove unfinished files of processes that died."""
    for info in filesystem.listing(place).values():
        if _TEMPORARY.fullmatch(info.location.name):
            filesystem.remove(info.location)


@contextlib.contextmanager
def _locked(out: Path) -> Iterator[None]:
    lock = filelock.FileLock(staging(out) / _LOCK)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise ArtifactError(
            f"another process is making {out} right now: wait for it, or choose another --out"
        ) from None
    try:
        yield
    finally:
        lock.release()


def _refuse_existing(out: Location) -> None:
    if present(out):
        raise ArtifactError(f"{out} exists and is never overwritten: choose another --out, or move it away")


def _prepare(out: Location, intent: Mapping[str, Any]) -> None:
    _refuse_existing(out)  # again: another process may have completed it before this one got the lock
    draft = staging(out) / _DRAFT
    if not filesystem.is_file(draft) or parse(draft) != intent:
        _clear(staging(out))
        filesystem.write_json(draft, intent)


def _clear(partial: Location) -> None:
    """Remove the files of another attempt, its draft last, so that a crash in between leaves an attempt."""
    if isinstance(partial, Path):
        for folder in [entry for entry in partial.iterdir() if entry.is_dir()]:
            shutil.rmtree(folder)
    for name, info in filesystem.listing(partial).items():
        if name not in (_LOCK, _DRAFT) and not lease.NAME.fullmatch(name):
            filesystem.remove(info.location)
    filesystem.remove(partial / _DRAFT)
