"""Attempts: how an artifact comes to be at a place, whole or not at all, made by one process at a time.

::

    .tokens.partial/        on this machine: renamed to tokens/ when everything is there
      .draft.json           kind, inputs and recipe of the attempt
      .lock                 held while its maker lives
      rows-00000.arrow      what the attempt has made so far, for the next one to go on from
    s3://bucket/tokens/     in an object store: the place itself, whole once it has a manifest
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
"""Words about an artifact, for people: no part of it, so that they may be filled in or corrected later."""

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
    """Where the files of an artifact lie until it is complete: in an object store at once where they will be."""
    return out.with_name(f".{out.name}.partial") if isinstance(out, Path) else out


def present(out: Location) -> bool:
    """Whether something is at ``out`` that must not be overwritten: an artifact, or what is no attempt at one."""
    if isinstance(out, Path):
        return out.exists()
    names = [name for name in filesystem.listing(out) if not lease.NAME.fullmatch(name)]
    return MANIFEST in names or (bool(names) and _DRAFT not in names)


def parse(path: Location) -> dict[str, Any]:
    """A manifest or a draft of one.

    Raises:
        ArtifactError: it is neither.
    """
    try:
        parsed = filesystem.read_json(path)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} cannot be read ({error}): delete {path.parent} and make it again") from None
    if not isinstance(parsed, dict) or not parsed.keys() >= {"kind", "inputs", "recipe"}:
        raise ArtifactError(f"{path} is not a manifest: delete {path.parent} and make it again")
    return parsed


@contextlib.contextmanager
def alone(out: Location, intent: Mapping[str, Any]) -> Iterator[Callable[[], None]]:
    """Be the only one who makes ``out``, with its staging directory ready for this attempt.

    Yields what to call before completing it: it raises where another process has taken over meanwhile.

    Raises:
        ArtifactError: something is already at ``out``, or another process is making it right now.
        LeaseError: the latter, in an object store.
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
    """Name to ``bytes`` and ``sha256`` of what the manifest will list."""
    ours = (_LOCK, _DRAFT, MANIFEST, CARD)
    found = {
        name: info
        for name, info in filesystem.listing(partial).items()
        if name not in ours and not _TEMPORARY.fullmatch(info.location.name) and not lease.NAME.fullmatch(name)
    }
    for info in found.values():
        if isinstance(info.location, Path):
            filesystem.sync(info.location)  # a manifest must not outlive files that were in memory when the power went
    with ThreadPoolExecutor(1 if filesystem.is_local(partial) else filesystem.TRANSFERS) as reading:
        hashes = reading.map(filesystem.stated_sha256, (info.location for info in found.values()))
        sizes = {name: info.bytes for name, info in found.items()}
        return {name: {"bytes": sizes[name], "sha256": sha256} for name, sha256 in zip(sizes, hashes, strict=True)}


def complete(out: Location, manifest: Mapping[str, Any]) -> None:
    """Make what is staged the artifact: its manifest is the last thing written.

    Raises:
        ArtifactError: in an object store, somebody else has written one.
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
    """Remove what no manifest lists: notes of the attempt, and halves of files left by processes that died."""
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
    _refuse_existing(out)  # again: it may have been completed between the first look and the lock
    draft = staging(out) / _DRAFT
    if not filesystem.is_file(draft) or parse(draft) != intent:
        _clear(staging(out))
        filesystem.write_json(draft, intent)


def _clear(partial: Location) -> None:
    """Remove what another attempt left; its draft goes last, so that a crash in between is no riddle."""
    if isinstance(partial, Path):
        for folder in [entry for entry in partial.iterdir() if entry.is_dir()]:
            shutil.rmtree(folder)
    for name, info in filesystem.listing(partial).items():
        if name not in (_LOCK, _DRAFT) and not lease.NAME.fullmatch(name):
            filesystem.remove(info.location)
    filesystem.remove(partial / _DRAFT)
