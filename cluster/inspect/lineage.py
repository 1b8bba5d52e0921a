"""What an artifact was made from: its inputs, their inputs, and whether they are still in place.

A manifest names its inputs by identity and, outside its own identity, by the paths they were read from. An input that
has moved is looked for in the folders around the artifact that was made from it.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from cluster.artifacts import artifact, commit
from cluster.artifacts.artifact import Artifact
from cluster.artifacts.commit import ArtifactError
from cluster.inspect.findings import Pairs, Section
from cluster.inspect.runs import is_run
from cluster.storage import filesystem
from cluster.storage.filesystem import Location
from cluster.telemetry.formatting import count, file_size


def made_from(inputs: Mapping[str, str], paths: Mapping[str, str], near: Location) -> Section:
    """Inputs (identities by role), each followed once by its own inputs; ``near`` is the artifact made from them."""
    rows = list(_ancestors(inputs, paths, near, 0, set()))
    return Section("MADE FROM", [Pairs(rows)], "" if rows else "No other artifact.")


def inputs_of(found: Artifact) -> tuple[Mapping[str, str], Mapping[str, str], Location]:
    """Arguments of :func:`made_from` for an artifact."""
    return {**found.inputs, **found.facts.get("lineage", {})}, found.manifest["made"].get("paths", {}), found.location


def _ancestors(
    inputs: Mapping[str, str], paths: Mapping[str, str], near: Location, depth: int, seen: set[str]
) -> Iterator[tuple[str, str]]:
    around: Mapping[str, Artifact] | None = None
    for role, identity in inputs.items():
        place, below = paths.get(role, ""), None
        there = _read(place) if place else None
        found = there
        if there is None or there.identity != identity:
            around = _around(near) if around is None else around
            found = around.get(identity)
        if found is None:
            state = _missing(place, there)
        elif identity in seen:
            place, state = str(found.location), "as above"
        else:
            seen.add(identity)
            place, state, below = str(found.location), headline(found), found
        yield "  " * depth + role, f"{identity[:12]}: {state}" + (f"\n{place}" if place else "")
        if below is not None:
            yield from _ancestors(*inputs_of(below), depth + 1, seen)


def _missing(place: str, there: Artifact | None) -> str:
    """What is known of an input that was not found as an artifact."""
    if not place:
        return "not found near this artifact, and its path is not recorded"
    if there is not None:
        return f"another {there.kind} is there now"
    folder = filesystem.location(place)
    if not filesystem.exists(folder):
        return "no longer there"
    return "a run" if isinstance(folder, Path) and is_run(folder) else "a folder or file; its contents are not compared"


def headline(found: Artifact) -> str:
    """One line about an artifact."""
    facts = found.facts
    match found.kind:
        case "corpus":
            return f"corpus of {count(facts['documents'])} documents, {file_size(facts['bytes'])} of text"
        case "tokens":
            rows = facts["train_rows"]
            return f"{count(rows)} rows of {facts['seq_len']} tokens ({count(rows * facts['seq_len'])} to train on)"
        case "teacher" | "student":
            return f"{facts['architecture']}, {facts['layers']} layers, {count(facts['parameters'])} parameters"
        case "finetune":
            return f"{facts['task']}: {facts['metric']} {facts['score']:.1f}"
        case "export" if "parameters" in facts:
            return f"{facts['format']} model, {file_size(facts['bytes'])}, {count(facts['parameters'])} parameters"
        case "export":  # a web page, which holds several models
            return f"{facts['format']}, {file_size(found.bytes)}"
        case "report":
            return str(facts["sentence"])
    return f"{found.kind}, {file_size(found.bytes)} in {len(found.files)} files"


def _read(place: str | Path) -> Artifact | None:
    try:
        return artifact.read(place)
    except (ArtifactError, filesystem.StorageError):
        return None


def _around(near: Location) -> Mapping[str, Artifact]:
    """Artifacts in the parent folder and in its parent, two levels deep, by identity; of copies the nearest."""
    if not isinstance(near, Path):
        return {}
    manifests = (
        manifest
        for folder in (near.parent.parent, near.parent)
        for pattern in ("*/*", "*")
        for manifest in sorted(folder.glob(f"{pattern}/{commit.MANIFEST}"))
    )
    return {one.identity: one for manifest in manifests if (one := _read(manifest.parent)) is not None}
