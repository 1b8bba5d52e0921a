"""A directory and its manifest: how stages meet on disk.

An artifact is a directory of files plus ``manifest.json``, which is written last::

    tokens/
      manifest.json        kind, format, inputs, recipe, facts, files, code  (+ made: when and where)
      rows-00000.arrow
      tokenizer.json

While a stage works, its files lie in ``.tokens.partial`` beside the place where the artifact will be. When
everything is there the manifest is written and the directory renamed, so a directory with a manifest is always
whole. An artifact is never overwritten; a partial directory left by a crash is continued by the same stage with
the same recipe and inputs, and cleared by any other.
"""

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import filelock

FORMAT = 1
MANIFEST = "manifest.json"

_DRAFT = ".draft.json"
_LOCK = ".lock"
_TEMPORARY = re.compile(r"\..*\.tmp")


class ArtifactError(ValueError):
    """An artifact is missing, incomplete, of another kind, altered, or would be overwritten."""


@dataclass(frozen=True)
class Artifact:
    """A complete artifact as :func:`read` found it."""

    path: Path
    manifest: Mapping[str, Any]

    @property
    def kind(self) -> str:
        return str(self.manifest["kind"])

    @property
    def facts(self) -> Mapping[str, Any]:
        return dict(self.manifest["facts"])

    @property
    def recipe(self) -> Mapping[str, Any]:
        return dict(self.manifest["recipe"])

    @property
    def inputs(self) -> Mapping[str, str]:
        """Role to identity of the artifacts this one was made from."""
        return dict(self.manifest["inputs"])

    @property
    def identity(self) -> str:
        """SHA-256 of the canonical manifest without times and hosts: equal means the same thing, made the same way."""
        return digest({key: value for key, value in self.manifest.items() if key != "made"})

    @property
    def bytes(self) -> int:
        return sum(entry["bytes"] for entry in self.manifest["files"].values())


@dataclass
class Draft:
    """An artifact in the making: a directory to write into and the facts its manifest will state."""

    path: Path
    facts: dict[str, Any] = field(default_factory=dict)


def staging(out: Path) -> Path:
    """Where the files of an artifact lie until it is complete."""
    return out.with_name(f".{out.name}.partial")


def digest(value: Any) -> str:
    """SHA-256 of a JSON value in canonical form (sorted keys, no white space, UTF-8)."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole or not at all: readers never see half of it.

    Raises:
        ValueError: a number that JSON does not have (NaN, infinity).
    """
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def read(path: Path | str, kind: str | None = None) -> Artifact:
    """The complete artifact at ``path``, of ``kind`` when one is named.

    Cheap: compares file sizes, not contents; :func:`verify` compares contents.

    Raises:
        ArtifactError: missing, incomplete, of another kind or format, or with files of other sizes.
    """
    path = Path(path)
    expected = f"a {kind} artifact" if kind else "an artifact"
    if not path.exists():
        raise ArtifactError(f"{path} does not exist: expected {expected} there; run the stage that makes it first")
    if not (path / MANIFEST).is_file():
        raise ArtifactError(f"{path} is not {expected}: it has no {MANIFEST}; run the stage that makes it (again)")
    manifest = _parse(path / MANIFEST)
    if manifest["kind"] != kind and kind is not None:
        raise ArtifactError(f"{path} is a {manifest['kind']} artifact, expected {expected}: name another directory")
    if (found := manifest.get("format")) != FORMAT:
        raise ArtifactError(f"{path} has artifact format {found}, this is {FORMAT}: make it again")
    for name, entry in manifest["files"].items():
        _check_size(path / name, int(entry["bytes"]))
    return Artifact(path, manifest)


def verify(path: Path | str, kind: str | None = None) -> Artifact:
    """:func:`read`, and compare the SHA-256 of every file with the manifest.

    Raises:
        ArtifactError: as :func:`read`, or a file has other contents than when it was made.
    """
    artifact = read(path, kind)
    for name, entry in artifact.manifest["files"].items():
        if file_sha256(artifact.path / name) != entry["sha256"]:
            raise ArtifactError(
                f"{artifact.path / name} was changed after it was made: delete {path} and make it again"
            )
    return artifact


def folder_identity(path: Path) -> str:
    """Identity of a directory (or file) that is no artifact: SHA-256 over relative names, sizes and contents.

    Raises:
        ArtifactError: ``path`` does not exist.
    """
    if not path.exists():
        raise ArtifactError(f"{path} does not exist")
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return digest([[str(file.relative_to(path)), file.stat().st_size, file_sha256(file)] for file in files])


@contextlib.contextmanager
def create(
    out: Path | str, *, kind: str, inputs: Mapping[str, str], recipe: Mapping[str, Any], **made: Any
) -> Iterator[Draft]:
    """Make the artifact ``out``: yields a draft to fill, completes it when the block ends without an exception.

    The draft's directory may hold what an interrupted attempt with the same recipe and inputs left there.
    ``inputs`` maps roles to identities; ``made`` is recorded beside times and host, outside the identity.

    Raises:
        ArtifactError: something is already at ``out``, or another process is making it right now.
    """
    out = Path(out).absolute()
    _refuse_existing(out)
    partial = staging(out)
    intent = json.loads(json.dumps({"kind": kind, "inputs": dict(inputs), "recipe": dict(recipe)}))
    started = time.time()
    partial.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(partial / _LOCK)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise ArtifactError(
            f"another process is making {out} right now: wait for it, or choose another --out"
        ) from None
    try:
        _refuse_existing(out)  # again: it may have been completed between the first look and the lock
        if not (partial / _DRAFT).is_file() or _parse(partial / _DRAFT) != intent:
            _clear(partial)
            write_json(partial / _DRAFT, intent)
        draft = Draft(partial)
        yield draft
        manifest = {
            **intent,
            "format": FORMAT,
            "facts": draft.facts,
            "files": {name: _entry(partial / name) for name in _names(partial)},
            "code": code(),
            "made": {"at": started, "seconds": time.time() - started, "host": socket.gethostname(), **made},
        }
        write_json(partial / MANIFEST, manifest)
        (partial / _DRAFT).unlink()
        partial.rename(out)
        (out / _LOCK).unlink(missing_ok=True)
        _sync(out.parent)
    finally:
        lock.release()


def difference(artifact: Artifact, *, inputs: Mapping[str, str], recipe: Mapping[str, Any]) -> str | None:
    """What separates ``artifact`` from what this recipe and these inputs would make; None when nothing does."""
    wanted = json.loads(json.dumps(dict(recipe)))
    if (changed := first_difference(artifact.recipe, wanted)) is not None:
        return f"recipe value {changed}"
    for role in sorted({*artifact.inputs, *inputs}):
        if artifact.inputs.get(role) != inputs.get(role):
            return f"input {role} is another one"
    return None


def first_difference(ours: Any, theirs: Any, where: str = "") -> str | None:
    """The first place where two JSON values differ, as ``loss.temperature: 2.0 there, 3.0 asked for``."""
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        for key in sorted({*ours, *theirs}):
            place = f"{where}.{key}" if where else str(key)
            if (found := first_difference(ours.get(key), theirs.get(key), place)) is not None:
                return found
        return None
    return None if ours == theirs else f"{where}: {json.dumps(ours)} there, {json.dumps(theirs)} asked for"


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@functools.cache
def code() -> dict[str, str]:
    """Version and commit of the running code; the commit is empty outside a checkout and outside an image."""
    commit = os.environ.get("STILLHOUSE_COMMIT", "")
    root = Path(__file__).resolve().parents[1]
    if not commit and (root / ".git").exists():
        command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
        commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return {"version": importlib.metadata.version("stillhouse"), "commit": commit}


def _parse(path: Path) -> dict[str, Any]:
    try:
        parsed = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} cannot be read ({error}): delete {path.parent} and make it again") from None
    if not isinstance(parsed, dict) or not parsed.keys() >= {"kind", "inputs", "recipe"}:
        raise ArtifactError(f"{path} is not a manifest: delete {path.parent} and make it again")
    return parsed


def _refuse_existing(out: Path) -> None:
    if out.exists():
        raise ArtifactError(f"{out} exists and is never overwritten: choose another --out, or move it away")


def _check_size(path: Path, expected: int) -> None:
    found = path.stat().st_size if path.is_file() else None
    if found == expected:
        return
    state = "is missing" if found is None else f"has {found} bytes, its manifest says {expected}: it was cut or changed"
    raise ArtifactError(f"{path} {state}; delete {path.parent} and make it again")


def _names(staging: Path) -> list[str]:
    files = (path for path in staging.rglob("*") if path.is_file())
    ours = (_LOCK, _DRAFT, MANIFEST)
    names = (str(path.relative_to(staging)) for path in files if not _TEMPORARY.fullmatch(path.name))
    return sorted(name for name in names if name not in ours)


def _entry(path: Path) -> dict[str, Any]:
    _sync(path)  # a manifest on disk must not outlive files that were still in memory when the power went
    return {"bytes": path.stat().st_size, "sha256": file_sha256(path)}


def _clear(staging: Path) -> None:
    for entry in staging.iterdir():
        if entry.name == _LOCK:
            continue
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
