"""A directory and its manifest: how stages meet on disk.

An artifact is a directory of files plus ``manifest.json``, which is written last::

    tokens/
      manifest.json        kind, format, inputs, recipe, facts, files, code  (+ made: when and where)
      rows-00000.arrow
      tokenizer.json

While a stage works, its files lie in ``.tokens.partial`` beside the place where the artifact will be. When
everything is there the manifest is written and the directory renamed, so a directory with a manifest is always
whole. A ``README.md`` beside it is words about the artifact and no part of it: it may be changed, everything else
may not. An artifact is never overwritten; a partial directory left by a crash is continued by the same stage with
the same recipe and inputs, and cleared by any other.

An artifact may also lie in an object store, ``s3://bucket/tokens``: its files are put in their place at once, and the
manifest, written last and only where there is none, says that they are all there. A lease keeps two makers apart.
"""

import contextlib
import functools
import importlib.metadata
import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from upath import UPath

from cluster.artifacts import commit
from cluster.artifacts.commit import CARD, MANIFEST, ArtifactError, staging
from cluster.storage import filesystem
from cluster.storage.filesystem import Location, file_sha256

FORMAT = 1


@dataclass(frozen=True)
class Artifact:
    """A complete artifact as :func:`read` found it."""

    location: Location
    manifest: Mapping[str, Any]

    @property
    def path(self) -> Path:
        """Its directory, where it lies on this machine."""
        return _path(self.location)

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
    def files(self) -> Mapping[str, Mapping[str, Any]]:
        """Name to ``bytes`` and ``sha256`` of every file."""
        return dict(self.manifest["files"])

    @property
    def identity(self) -> str:
        """SHA-256 of the canonical manifest without times and hosts: equal means the same thing, made the same way."""
        return digest({key: value for key, value in self.manifest.items() if key != "made"})

    @property
    def bytes(self) -> int:
        return sum(entry["bytes"] for entry in self.files.values())


@dataclass
class Draft:
    """An artifact in the making: a place to write into and the facts its manifest will state."""

    location: Location
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """Its directory, where it lies on this machine."""
        return _path(self.location)


def digest(value: Any) -> str:
    """SHA-256 of a JSON value in canonical form (sorted keys, no white space, UTF-8)."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return sha256(canonical.encode()).hexdigest()


def read(path: Location | str, kind: str | None = None) -> Artifact:
    """The complete artifact at ``path``, of ``kind`` when one is named.

    Cheap: compares file sizes, not contents; :func:`verify` compares contents.

    Raises:
        ArtifactError: missing, incomplete, of another kind or format, or with files of other sizes.
    """
    place = filesystem.location(path)
    expected = f"a {kind} artifact" if kind else "an artifact"
    if not filesystem.is_file(place / MANIFEST):
        if not filesystem.exists(place):
            raise ArtifactError(f"{place} does not exist: expected {expected} there; run the stage that makes it first")
        raise ArtifactError(f"{place} is not {expected}: it has no {MANIFEST}; run the stage that makes it (again)")
    manifest = commit.parse(place / MANIFEST)
    if manifest["kind"] != kind and kind is not None:
        raise ArtifactError(f"{place} is a {manifest['kind']} artifact, expected {expected}: name another directory")
    if (found := manifest.get("format")) != FORMAT:
        raise ArtifactError(f"{place} has artifact format {found}, this is {FORMAT}: make it again")
    sizes = _sizes(place, manifest["files"])
    for name, entry in manifest["files"].items():
        _check_size(place / name, sizes.get(name), int(entry["bytes"]))
    return Artifact(place, manifest)


def verify(path: Location | str, kind: str | None = None) -> Artifact:
    """:func:`read`, and compare the SHA-256 of every file with the manifest.

    Raises:
        ArtifactError: as :func:`read`, or a file has other contents than when it was made.
    """
    artifact = read(path, kind)
    for name, entry in artifact.files.items():
        if file_sha256(artifact.location / name) != entry["sha256"]:
            raise ArtifactError(
                f"{artifact.location / name} was changed after it was made: delete {path} and make it again"
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
    out: Location | str, *, kind: str, inputs: Mapping[str, str], recipe: Mapping[str, Any], **made: Any
) -> Iterator[Draft]:
    """Make the artifact ``out``: yields a draft to fill, completes it when the block ends without an exception.

    The draft's directory may hold what an interrupted attempt with the same recipe and inputs left there.
    ``inputs`` maps roles to identities; ``made`` is recorded beside times and host, outside the identity.

    Raises:
        ArtifactError: something is already at ``out``, or another process is making it right now.
        LeaseError: the same, of an artifact in an object store.
    """
    out = filesystem.location(out)
    intent = _intent(kind, inputs, recipe)
    started = time.time()
    with commit.alone(out, intent) as check:
        draft = Draft(staging(out))
        yield draft
        manifest = {
            **intent,
            "format": FORMAT,
            "facts": draft.facts,
            "files": commit.entries(draft.location),
            "code": code(),
            "made": {"at": started, "seconds": time.time() - started, "host": socket.gethostname(), **made},
        }
        check()
        commit.complete(out, manifest)


@contextlib.contextmanager
def publishing(
    out: UPath, *, kind: str, inputs: Mapping[str, str], recipe: Mapping[str, Any]
) -> Iterator[Callable[[Artifact], None]]:
    """Be the only one who makes ``out``, on this machine: yields what copies it to the object store when it is there.

    The manifest is copied last. What an interrupted copy has left in the store is not copied again.

    Raises:
        ArtifactError: something is already at ``out``.
        LeaseError: another process is making it right now.
    """
    intent = _intent(kind, inputs, recipe)
    with commit.alone(out, intent) as check:

        def publish(made: Artifact) -> None:
            there = filesystem.listing(out)
            left = {
                name: int(entry["bytes"]) for name, entry in made.files.items() if not _same(there.get(name), entry)
            }
            if (made.path / CARD).is_file():
                left[CARD] = (made.path / CARD).stat().st_size
            filesystem.transfer(f"copying to {out}", lambda name: filesystem.upload(made.path / name, out / name), left)
            check()
            commit.complete(out, made.manifest)

        yield publish


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


@functools.cache
def code() -> dict[str, str]:
    """Version and commit of the running code; the commit is empty outside a checkout and outside an image."""
    commit = os.environ.get("STILLHOUSE_COMMIT", "")
    root = Path(__file__).resolve().parents[2]
    if not commit and (root / ".git").exists():
        command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
        commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return {"version": importlib.metadata.version("stillhouse"), "commit": commit}


def _intent(kind: str, inputs: Mapping[str, str], recipe: Mapping[str, Any]) -> dict[str, Any]:
    return dict(json.loads(json.dumps({"kind": kind, "inputs": dict(inputs), "recipe": dict(recipe)})))


def _path(place: Location) -> Path:
    assert isinstance(place, Path), f"{place} is in an object store: a stage that works there has remote=True"
    return place


def _sizes(place: Location, names: Iterable[str]) -> dict[str, int]:
    """Bytes of the files that are there, by name: in an object store with one listing instead of a request for each."""
    if isinstance(place, Path):
        return {name: (place / name).stat().st_size for name in names if (place / name).is_file()}
    return {name: info.bytes for name, info in filesystem.listing(place).items()}


def _check_size(path: Location, found: int | None, expected: int) -> None:
    if found == expected:
        return
    state = "is missing" if found is None else f"has {found} bytes, its manifest says {expected}: it was cut or changed"
    raise ArtifactError(f"{path} {state}; delete {path.parent} and make it again")


def _same(there: filesystem.FileInfo | None, entry: Mapping[str, Any]) -> bool:
    return (
        there is not None
        and there.bytes == entry["bytes"]
        and filesystem.stated_sha256(there.location) == entry["sha256"]
    )
