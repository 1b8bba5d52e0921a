"""An artifact: a directory and its manifest.

An artifact is a directory of files plus ``manifest.json``, which is written last::

    tokens/
      manifest.json        kind, format, inputs, recipe, facts, files, code  (+ made: when and where)
      rows-00000.arrow
      tokenizer.json

A stage writes its files into ``.tokens.partial``. The last steps write the manifest and rename the directory, so a
directory with a manifest is always complete. Nothing changes or overwrites an artifact, except its ``README.md``, which
is no part of it. The same stage with the same recipe and inputs continues a partial directory; any other clears it.

In an object store, ``s3://bucket/tokens``, the files are written in their place. The manifest, written last and only
where there is none, says that they are complete. A lease keeps other processes out.
"""

import contextlib
import fnmatch
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
    """A complete artifact, from :func:`read`."""

    location: Location
    manifest: Mapping[str, Any]

    @property
    def path(self) -> Path:
        """Its directory on this machine."""
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
        """Role to identity of what it was made from."""
        return dict(self.manifest["inputs"])

    @property
    def files(self) -> Mapping[str, Mapping[str, Any]]:
        """Name to ``bytes`` and ``sha256`` of every file."""
        return dict(self.manifest["files"])

    def matching(self, pattern: str) -> list[str]:
        """The names that match a pattern, sorted. What else is in the folder is no part of the artifact."""
        return sorted(fnmatch.filter(self.files, pattern))

    @property
    def identity(self) -> str:
        """SHA-256 of the canonical manifest without times and hosts: equal for the same result of the same stage."""
        return digest({key: value for key, value in self.manifest.items() if key != "made"})

    @property
    def bytes(self) -> int:
        return sum(entry["bytes"] for entry in self.files.values())


@dataclass
class Draft:
    """An unfinished artifact: where to write, and the facts of its manifest."""

    location: Location
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """Its directory on this machine."""
        return _path(self.location)


def digest(value: Any) -> str:
    """SHA-256 of a JSON value in canonical form (sorted keys, no white space, UTF-8)."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return sha256(canonical.encode()).hexdigest()


def read(path: Location | str, kind: str | None = None) -> Artifact:
    """The complete artifact at ``path``. Compares file sizes; :func:`verify` compares contents.

    Raises:
        ArtifactError: it is missing or incomplete, or has another kind, format or file size.
    """
    place = filesystem.location(path)
    expected = named(kind) if kind else "an artifact"
    if not filesystem.is_file(place / MANIFEST):
        if not filesystem.exists(place):
            raise ArtifactError(f"{place} does not exist: expected {expected} there; run the stage that makes it first")
        raise ArtifactError(f"{place} is not {expected}: it has no {MANIFEST}; run the stage that makes it (again)")
    manifest = commit.parse(place / MANIFEST)
    if manifest["kind"] != kind and kind is not None:
        raise ArtifactError(f"{place} is {named(manifest['kind'])}, expected {expected}: name another directory")
    if (found := manifest.get("format")) != FORMAT:
        raise ArtifactError(f"{place} has artifact format {found}, this is {FORMAT}: make it again")
    sizes = _sizes(place, manifest["files"])
    for name, entry in manifest["files"].items():
        _check_size(place / name, sizes.get(name), int(entry["bytes"]))
    return Artifact(place, manifest)


def named(kind: str) -> str:
    """``a tokens artifact``, ``an export artifact``."""
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind} artifact"


def verify(
    path: Location | str,
    kind: str | None = None,
    sha256: Callable[[Location], str] = file_sha256,
    chosen: Callable[[str], bool] = lambda name: True,
) -> Artifact:
    """:func:`read`, and compare the SHA-256 of every file, or of those with ``chosen`` names, with the manifest.

    Raises:
        ArtifactError: as :func:`read`, or a file has changed.
    """
    artifact = read(path, kind)
    for name, entry in artifact.files.items():
        if chosen(name) and sha256(artifact.location / name) != entry["sha256"]:
            raise ArtifactError(
                f"{artifact.location / name} was changed after it was made: delete {path} and make it again"
            )
    return artifact


def folder_identity(path: Path, without: Iterable[str] = ()) -> str:
    """Identity of a directory or file that is no artifact: SHA-256 of relative names, sizes and contents.

    Args:
        without: relative names of folders that do not count.

    Raises:
        ArtifactError: ``path`` does not exist.
    """
    if not path.exists():
        raise ArtifactError(f"{path} does not exist: expected a folder or file there")
    below = (file for folder in filesystem.folders(path, hidden=True) for file in folder.iterdir() if file.is_file())
    files = {str(file.relative_to(path)): file for file in ([path] if path.is_file() else sorted(below))}
    left_out = tuple(f"{name}/" for name in without)
    counted = {name: file for name, file in files.items() if not name.startswith(left_out)}
    return digest([[name, file.stat().st_size, file_sha256(file)] for name, file in counted.items()])


@contextlib.contextmanager
def create(
    out: Location | str, *, kind: str, inputs: Mapping[str, str], recipe: Mapping[str, Any], **made: Any
) -> Iterator[Draft]:
    """Make the artifact ``out``: yields a draft to fill, and completes it unless the block raises.

    The draft may hold files of an interrupted attempt with the same recipe and inputs. ``inputs`` maps roles to
    identities; ``made`` is recorded with times and host, outside the identity.

    Raises:
        ArtifactError: ``out`` exists, or another process is making it.
        LeaseError: another process is making it in the object store.
    """
    out = filesystem.location(out)
    intent = _intent(kind, inputs, recipe)
    started = time.time()
    with commit.exclusive(out, intent) as check:
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
    """Reserve ``out`` in an object store, and yield the function that copies an artifact of this machine there.

    It copies the manifest last, and skips files that an interrupted copy left.

    Raises:
        ArtifactError: ``out`` exists.
        LeaseError: another process is making it.
    """
    intent = _intent(kind, inputs, recipe)
    with commit.exclusive(out, intent) as check:

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
    """The first difference between ``artifact`` and what this recipe and these inputs make, or None."""
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
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        first, second = ({str(place): value for place, value in enumerate(values)} for values in (ours, theirs))
        return first_difference(first, second, where)
    there, asked = ("nothing" if value is None else json.dumps(value) for value in (ours, theirs))
    return None if ours == theirs else f"{where}: {there} there, {asked} asked for"


@functools.cache
def code() -> dict[str, str]:
    """Version and commit of the running code; no commit outside a checkout and an image."""
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
    """Bytes of the files by name; one listing, not a request for each file, in an object store."""
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
