"""The one command line of every stage.

::

    python -m <package>.<stage> RECIPE --<role> DIR … --out DIR [--set key=value]…

A stage is a function from complete directories to one complete directory. A module that is a stage names itself in
a constant ``STAGE``; the command line, the job queue and the tests all go through :func:`execute`. A stage that
turns one thing into another without choices takes that thing in the place of the recipe (``subject``)::

    stillhouse export RUN --out DIR

Inputs and ``--out`` may be URLs of an object store (:mod:`cluster.storage`). A stage need not know: it is given copies
in the cache, and what it made on this machine is published when it is complete.
"""

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from upath import UPath

from cluster.artifacts import artifact, cache, commit
from cluster.artifacts.errors import StageError, logger
from cluster.artifacts.recipe import PLACEMENT, Recipe
from cluster.storage import filesystem
from cluster.storage.filesystem import Location

FOLDER = "folder"
IDENTITY = "identity"

R = TypeVar("R", bound=Recipe)
T = TypeVar("T")


@dataclass(frozen=True)
class Role:
    """What a stage accepts for one of its inputs: artifact kinds, or ``folder`` for any directory or file."""

    kinds: tuple[str, ...]
    optional: bool = False
    several_by: str | None = None
    """A fact of the artifacts that tells several of them apart, where the role takes several: inputs ``tokens-128`` and
    ``tokens-512`` then, in whatever order they were given. One alone is plain ``tokens``. ``identity``: whatever they
    are, by their identity, of which the name has the beginning."""


@dataclass(frozen=True)
class Stage(Generic[R]):
    """A stage: ``run(recipe, inputs, out)`` fills the directory ``out`` and returns the facts of its manifest.

    Manifests, recipes, jobs and Kubernetes know a stage by its ``name``, wherever its module is;
    :mod:`cluster.artifacts.registry` finds it by this name.

    ``out`` may hold files of an interrupted attempt with the same recipe and inputs. Under several processes
    (``RANK`` set by torchrun or Ray) every rank calls ``run`` and rank 0 completes the artifact: such a ``run``
    ends with a barrier after the last rank's last write.

    ``identify`` gives a role its own identity where hashing every file of a folder would be wrong: a folder that
    also holds checkpoints, logs or the very artifact being made. A stage that ``grows`` works in ``out`` itself: a run
    folder, which is no artifact and looks after its own identity.

    A ``remote`` stage reads its inputs and writes ``out`` where they are, with :mod:`cluster.storage`: what it is given
    are locations, and ``out`` in an object store is the artifact's own place.

    ``halved`` gives the recipe with half the micro-batch, which changes its placement alone, or None where there is
    nothing left to halve: what the job queue tries once after memory ran out.

    ``toolchain`` raises a StageError that says what to install where the libraries are absent that the stage needs
    beyond those of every installation: whoever plans many jobs can ask before the first one starts.

    ``job_kind`` is what limits of the queue count its jobs as, where that is not what it produces.
    """

    name: str
    run: Callable[[R, Mapping[str, Path], Path], dict[str, Any]]
    recipe: type[R]
    produces: str
    inputs: Mapping[str, Role] = field(default_factory=dict)
    subject: str | None = None
    grows: bool = False
    remote: bool = False
    identify: Mapping[str, Callable[[Path], str]] = field(default_factory=dict)
    halved: Callable[[R], R | None] | None = None
    toolchain: Callable[[], object] | None = None
    job_kind: str | None = None


def identities(stage: Stage[Any], inputs: Mapping[str, Location]) -> dict[str, str]:
    """Role to identity of what a stage was given.

    Raises:
        StageError: a role the stage does not have, or a required one that is absent.
        ArtifactError: an input that is no complete artifact of an accepted kind.
    """
    found: dict[str, str] = {}
    for role, accepts in stage.inputs.items():
        known = stage.identify.get(role)
        given = several(role, inputs) if accepts.several_by else {name: inputs[name] for name in inputs if name == role}
        if not given and not accepts.optional:
            raise StageError(f"{stage.name} needs --{role} DIR ({' or '.join(accepts.kinds)})")
        found |= {
            name: known(cache.fetch(place)) if known else _identity(place, accepts) for name, place in given.items()
        }
    if unknown := [name for name in inputs if name not in found]:
        raise StageError(f"{stage.name} has no input {unknown[0]}: it takes {', '.join(stage.inputs) or 'none'}")
    return found


def several(role: str, inputs: Mapping[str, T]) -> dict[str, T]:
    """The inputs of a role that may have several."""
    return {name: value for name, value in inputs.items() if name == role or name.startswith(f"{role}-")}


def named(role: str, accepts: Role, paths: Sequence[Location]) -> dict[str, Location]:
    """Inputs of a role by name, from what was given for it.

    Raises:
        ArtifactError: one of several is no complete artifact.
        StageError: two that nothing tells apart.
    """
    if len(paths) == 1 or accepts.several_by is None:
        return {role: paths[0]}
    found: dict[str, Location] = {}
    for path in paths:
        name = f"{role}-{_told_apart(path, accepts)}"
        if name in found:
            raise StageError(f"{found[name]} and {path} have the same {accepts.several_by}: leave one of them out")
        found[name] = path
    return found


def _told_apart(path: Location, accepts: Role) -> Any:
    found = artifact.read(path, None if FOLDER in accepts.kinds else accepts.kinds[0])
    fact = accepts.several_by
    assert fact is not None
    if fact == IDENTITY:
        return found.identity[:12]
    if fact not in found.facts:
        raise StageError(f"{path} does not say its {fact}, which tells several apart: give one of them")
    return found.facts[fact]


def execute(stage: Stage[R], recipe: R, inputs: Mapping[str, Location], out: Location) -> artifact.Artifact | None:
    """Make the artifact ``out``, or return it when it is already there, made from the same recipe and inputs.

    Returns None where there is no artifact to return: from a stage that grows, and on ranks other than 0, which work on
    the artifact but do not complete it.

    Raises:
        ArtifactError: ``out`` holds something else, or an input is not a complete artifact of its kind.
        StageError: an input is absent or unknown, or what the stage itself refuses.
        StorageError: a URL that cannot be reached.
    """
    inputs = {role: filesystem.location(place) for role, place in inputs.items()}
    out = filesystem.location(out)
    given = identities(stage, inputs)
    if stage.grows:
        if not isinstance(out, Path):
            raise StageError(
                f"{out}: a {stage.produces} grows while it is made, which object stores cannot do: name a folder"
            )
        stage.run(recipe, _at_hand(inputs), out)
        return None
    if commit.present(out):
        return _existing(stage, recipe, given, out)
    if stage.remote or isinstance(out, Path):
        return _make(stage, recipe, inputs, given, out)
    return _publish(stage, recipe, inputs, given, out)


def _make(
    stage: Stage[R], recipe: R, inputs: Mapping[str, Location], given: Mapping[str, str], out: Location
) -> artifact.Artifact | None:
    # A remote stage takes locations; the type of run is that of all the others, for which paths are enough.
    hands = cast(Mapping[str, Path], inputs) if stage.remote else _at_hand(inputs)
    if rank() != 0:
        stage.run(recipe, hands, cast(Path, commit.staging(out)))
        return None
    made = {PLACEMENT: recipe.resolved().get(PLACEMENT), "paths": {role: str(place) for role, place in inputs.items()}}
    with artifact.create(out, kind=stage.produces, inputs=given, recipe=recipe.identity(), **made) as draft:
        draft.facts.update(stage.run(recipe, hands, cast(Path, draft.location)))
    return artifact.read(out, stage.produces)


def _publish(
    stage: Stage[R], recipe: R, inputs: Mapping[str, Location], given: Mapping[str, str], out: UPath
) -> artifact.Artifact | None:
    """Make an artifact on this machine, then copy it to where it is wanted."""
    work = cache.workplace(out)
    if rank() != 0:
        return _make(stage, recipe, inputs, given, work)
    with artifact.publishing(out, kind=stage.produces, inputs=given, recipe=recipe.identity()) as publish:
        if work.exists() and artifact.difference(artifact.read(work), inputs=given, recipe=recipe.identity()):
            shutil.rmtree(work)  # complete, but never published, and no longer what is wanted
        made = artifact.read(work) if work.exists() else _make(stage, recipe, inputs, given, work)
        assert made is not None, "rank 0 completes what it makes"
        publish(made)
    cache.keep(made, out)
    return artifact.read(out, stage.produces)


def rank() -> int:
    """Rank of this process among those that work on one artifact, 0 where it is alone."""
    return int(os.environ.get("RANK", "0"))


def _at_hand(inputs: Mapping[str, Location]) -> dict[str, Path]:
    return {role: cache.fetch(place) for role, place in inputs.items()}


def _identity(path: Location, accepts: Role) -> str:
    if filesystem.is_file(path / commit.MANIFEST) or FOLDER not in accepts.kinds:
        kind = accepts.kinds[0] if len(accepts.kinds) == 1 and FOLDER not in accepts.kinds else None
        found = artifact.read(path, kind)
        if found.kind not in accepts.kinds and FOLDER not in accepts.kinds:
            expected = " or ".join(accepts.kinds)
            raise commit.ArtifactError(f"{path} is a {found.kind} artifact, expected {expected}")
        return found.identity
    return artifact.folder_identity(cache.fetch(path))


def _existing(stage: Stage[Any], recipe: Recipe, given: Mapping[str, str], out: Location) -> artifact.Artifact:
    found = artifact.read(out, stage.produces)
    if (changed := artifact.difference(found, inputs=given, recipe=recipe.identity())) is not None:
        raise commit.ArtifactError(
            f"{out} was made differently ({changed}) and is never overwritten: choose another --out"
        )
    logger.info("%s is already complete", out)
    return found
