"""Where an artifact comes from: its inputs, theirs, and whether they are still where they were.

A manifest names its inputs by identity, and beside that, outside of its own identity, the paths they were read from.
An input that has been moved is looked for around the artifact that was made from it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from cluster.artifacts import artifact, commit
from cluster.artifacts.artifact import Artifact
from cluster.artifacts.commit import ArtifactError
from cluster.inspect.runs import is_run
from cluster.storage import filesystem
from cluster.storage.filesystem import Location
from cluster.telemetry.formatting import count, file_size

_NEAR = ("*", "*/*")
"""Where an input that has moved may be, from the two folders above."""


@dataclass(frozen=True)
class Ancestor:
    """An input, of the artifact itself or of one of its inputs."""

    role: str
    identity: str
    depth: int
    state: str
    """What it is, or what became of it."""
    place: str
    """Where it is or was; empty where that was not written down."""


def ancestors(inputs: Mapping[str, str], paths: Mapping[str, str], near: Location) -> list[Ancestor]:
    """Inputs by role, each followed by its own; ``near`` is what was made from them. One that several were made from is
    followed once."""
    return list(_Search().ancestors(inputs, paths, near, 0))


class _Search:
    def __init__(self) -> None:
        self._told = set[str]()
        self._near: dict[Location, Mapping[str, Artifact]] = {}

    def ancestors(
        self, inputs: Mapping[str, str], paths: Mapping[str, str], near: Location, depth: int
    ) -> Iterator[Ancestor]:
        for role, identity in inputs.items():
            place = paths.get(role, "")
            there = _read(place) if place else None
            found = there if there is not None and there.identity == identity else self._around(near).get(identity)
            if found is None:
                yield Ancestor(role, identity, depth, _missing(place, there), place)
                continue
            known = identity in self._told
            self._told.add(identity)
            yield Ancestor(role, identity, depth, "as above" if known else headline(found), str(found.location))
            if not known:
                below = {**found.inputs, **found.facts.get("lineage", {})}
                yield from self.ancestors(below, found.manifest["made"].get("paths", {}), found.location, depth + 1)

    def _around(self, near: Location) -> Mapping[str, Artifact]:
        if near not in self._near:
            self._near[near] = _around(near)
        return self._near[near]


def _missing(place: str, there: Artifact | None) -> str:
    """What there is to say of an input that is no artifact, or no longer there."""
    if not place:
        return "not to be found near here, and where it was is not known"
    if there is not None:
        return f"another {there.kind} is there now"
    folder = filesystem.location(place)
    if not filesystem.exists(folder):
        return "no longer there"
    return "a run" if isinstance(folder, Path) and is_run(folder) else "a folder or file; its contents are not compared"


def headline(found: Artifact) -> str:
    """What an artifact is, in a few words."""
    facts = found.facts
    if found.kind == "corpus":
        return f"corpus of {count(facts['documents'])} documents, {file_size(facts['bytes'])} of text"
    if found.kind == "tokens":
        rows = facts["train_rows"]
        return f"{count(rows)} rows of {facts['seq_len']} tokens ({count(rows * facts['seq_len'])} to train on)"
    if found.kind in ("teacher", "student"):
        return f"{facts['architecture']}, {facts['layers']} layers, {count(facts['parameters'])} parameters"
    if found.kind == "finetune":
        return f"{facts['task']}: {facts['metric']} {facts['score']:.1f}"
    if found.kind == "export":
        if "parameters" not in facts:  # a page, which holds several models and is none
            return f"{facts['format']}, {file_size(found.bytes)}"
        return f"{facts['format']} model, {file_size(facts['bytes'])}, {count(facts['parameters'])} parameters"
    if found.kind == "report":
        return str(facts["sentence"])
    return f"{found.kind}, {file_size(found.bytes)} in {len(found.files)} files"


def _read(place: str) -> Artifact | None:
    try:
        return artifact.read(place)
    except (ArtifactError, filesystem.StorageError):
        return None


def _around(near: Location) -> Mapping[str, Artifact]:
    """Artifacts beside this one, and beside the folder it is in, by identity."""
    if not isinstance(near, Path):
        return {}
    manifests = [
        manifest
        for folder in (near.parent.parent, near.parent)  # of two copies the nearer one counts
        for pattern in reversed(_NEAR)
        for manifest in sorted(folder.glob(f"{pattern}/{commit.MANIFEST}"))
    ]
    found = (_read(str(manifest.parent)) for manifest in manifests)
    return {one.identity: one for one in found if one is not None}
