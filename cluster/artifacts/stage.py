"""Stages: what one declares, and how it runs.

A stage is a function from complete directories to one complete directory. A module declares it in a constant ``STAGE``;
the command line, the job queue and the tests all run it through :func:`execute`.

Inputs and ``out`` may be URLs of an object store (:mod:`cluster.storage`). A stage that is not ``remote`` gets copies
in the cache, and what it made on this machine is published when it is complete.
"""

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, cast

from upath import UPath

from cluster.artifacts import artifact, cache, commit
from cluster.artifacts.errors import StageError, logger
from cluster.artifacts.names import word_of
from cluster.artifacts.recipe import PLACEMENT, Recipe, RecipeError, read_values, split
from cluster.artifacts.recipe_errors import tables_called
from cluster.storage import filesystem
from cluster.storage.filesystem import Location

FOLDER = "folder"
IDENTITY = "identity"

R = TypeVar("R", bound=Recipe)
T = TypeVar("T")


@dataclass(frozen=True)
class Role:
    """What a stage accepts for one of its inputs."""

    kinds: tuple[str, ...]
    """Artifact kinds, or ``folder`` for any directory or file."""
    optional: bool = False
    keyed_by: str | None = None
    """The fact that distinguishes several artifacts of the role: with ``seq_len`` they become the inputs ``tokens-128``
    and ``tokens-512``, and a single one stays ``tokens``. ``identity`` takes the beginning of each one's identity."""
    identify: Callable[[Path], str] | None = None
    """Checks the input and returns its identity, for folders whose files must not all be hashed: those that also hold
    checkpoints, logs or the artifact being made."""


@dataclass(frozen=True)
class TrainingRun:
    """A training run that is about to start."""

    name: str
    steps: int


@dataclass(frozen=True)
class StageContext:
    """What a pipeline knows when it calls the hooks of a stage that will run later."""

    out: Path
    """Where the stage will work."""
    inputs: Mapping[str, Path] = field(default_factory=dict)
    """Inputs by role that exist already."""
    models: tuple[str, ...] = ()
    """Names of the models that will exist."""
    training: TrainingRun | None = None
    """None before the first training run."""


@dataclass(frozen=True)
class SideJob:
    """A call of another stage that a stage wants to run while its pipeline trains; ``name`` is unique in it."""

    name: str
    stage: str
    recipe: Mapping[str, Any]
    inputs: Mapping[str, Path]
    out: Path
    after: tuple[str, ...] = ()
    """Names of jobs that must be done first."""


@dataclass(frozen=True)
class Workload:
    """Fine-tuning that a stage will do, for plans."""

    model: str
    """Name of the model in the pipeline."""
    examples: int
    """Training examples, counted in every epoch and for every seed."""
    tokens: float
    """Mean tokens of an example."""
    taught: bool = False
    """Whether the teacher reads every example, too."""
    gpu: bool = False
    """Whether it runs on GPUs."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    trainings: int = 1
    """Fine-tunings, one for each seed."""


def _nothing(*_: object) -> None:
    """The default of hooks."""


def _no_jobs(*_: object) -> Sequence[SideJob]:
    return ()


def _no_work(*_: object) -> Sequence[Workload]:
    return ()


@dataclass(frozen=True)
class Stage(Generic[R]):
    """A stage: ``run(recipe, inputs, out)`` fills the directory ``out`` and returns the facts of its manifest.

    ``out`` may hold files of an interrupted attempt with the same recipe and inputs. Under several processes (``RANK``
    set by torchrun or Ray) every rank calls ``run`` and rank 0 completes the artifact: such a ``run`` ends with a
    barrier after the last rank's last write.

    A third-party package registers its stage as an entry point (:mod:`cluster.artifacts.registry`). It needs the first
    four fields; the hooks at the end are functions that other packages call, with what they may raise.
    """

    name: str
    """What manifests, recipes, jobs and Kubernetes call the stage, wherever its module is."""
    run: Callable[[R, Mapping[str, Path], Path], dict[str, Any]]
    recipe: type[R]
    produces: str
    """Kind of its artifact."""
    inputs: Mapping[str, Role] = field(default_factory=dict)
    subject: str | None = None
    """The role that takes the place of RECIPE on the command line, for a stage without choices."""
    grows: bool = False
    """It works in ``out`` itself: a run folder, which is no artifact and keeps its own identity."""
    example: str = "default"
    """RECIPE in the example of its ``--help``, and the options that it needs beside the required inputs."""
    remote: bool = False
    """It reads inputs and writes ``out`` where they are: it gets locations, which may be in an object store."""
    job_kind: str = ""
    """What the queue's limits count its jobs as, where that is not ``produces``."""
    alone: bool = False
    """It measures time: by default its jobs have a node to themselves."""
    starts_jobs: bool = False
    """It submits jobs and waits for them: its own job reserves nothing, because it would take that from them."""
    validate: Callable[[R], None] = _nothing
    """Raises a ValueError where tables of the recipe contradict each other, or where a table is the recipe of another
    stage that refuses it. :meth:`read` calls it; rules for one table belong in its class."""
    check_out: Callable[[R, Location], None] = _nothing
    """Raises a StageError where the artifact must not be. Called before anything is written."""
    check: Callable[[R, StageContext], None] = _nothing
    """Raises a StageError where a later run would fail: a missing folder, model or library. Pipelines call it before
    hours of work."""
    side_jobs: Callable[[R, StageContext], Sequence[SideJob]] = _no_jobs
    """The jobs that a pipeline runs for this stage: without ``context.training`` those it needs before any training,
    else those that accompany this training run."""
    workload: Callable[[R, StageContext], Sequence[Workload]] = _no_work
    """The fine-tunings of a later run, for plans; raises a StageError where their data is not there."""
    toolchain: Callable[[], object] = _nothing
    """Raises a StageError with the install command where a library of an optional extra is missing."""
    halved: Callable[[R], R | None] = _nothing
    """The recipe with half the micro-batch, changed in its placement alone, or None where one cannot halve it. The
    queue tries it once after memory ran out."""

    @property
    def cpus(self) -> float:
        """CPUs that one of its jobs reserves by default. A pool of actors works in the reservation of its job."""
        return 0 if self.starts_jobs else 1

    def read(self, values: Mapping[str, Any], source: str = "recipe") -> R:
        """The recipe that plain values describe; ``source`` names them in errors.

        Raises:
            RecipeError: an unknown key, a value of another type or range, or what ``validate`` refuses.
        """
        recipe = self.recipe.of(values, source)
        try:
            self.validate(recipe)
        except ValueError as error:
            raise RecipeError(f"{source}: {error}") from None
        return recipe

    def load(self, reference: str, settings: Sequence[str] = ()) -> R:
        """:meth:`read` of a file, with settings ``key=value``.

        Raises:
            RecipeError: as :meth:`read` and :func:`~cluster.artifacts.recipe.read_values`.
        """
        values = read_values(reference, settings)
        word = word_of(self.name).replace("-", "_")
        if "#" not in reference and word not in self.recipe.model_fields and (found := tables_called(word, values)):
            raise RecipeError(f"{reference} has tables for several commands: write {reference}#{found[0]}")
        return self.read(values, split(reference)[0])


def identities(stage: Stage[R], inputs: Mapping[str, Location], out: Location | None = None) -> dict[str, str]:
    """Role to identity of the inputs; what is made at ``out`` is no part of an input, even inside its folder.

    Raises:
        StageError: a role the stage does not have, or a required one that is absent.
        ArtifactError: an input that is no complete artifact of an accepted kind.
    """
    found: dict[str, str] = {}
    for role, accepts in stage.inputs.items():
        given = inputs_of(role, inputs) if accepts.keyed_by else {name: inputs[name] for name in inputs if name == role}
        if not given and not accepts.optional:
            raise StageError(f"{stage.name} needs --{role} DIR ({' or '.join(accepts.kinds)})")
        found |= {name: _identity(role, place, accepts, out) for name, place in given.items()}
    if unknown := [name for name in inputs if name not in found]:
        raise StageError(f"{stage.name} has no input {unknown[0]}: it takes {', '.join(stage.inputs) or 'none'}")
    return found


def inputs_of(role: str, inputs: Mapping[str, T]) -> dict[str, T]:
    """The inputs of a role that takes several."""
    return {name: value for name, value in inputs.items() if name == role or name.startswith(f"{role}-")}


def name_inputs(role: str, accepts: Role, paths: Sequence[Location]) -> dict[str, Location]:
    """The inputs of a role by the names :func:`inputs_of` knows.

    Raises:
        ArtifactError: one of several is no complete artifact.
        StageError: one of several lacks the fact that distinguishes them, or two have the same.
    """
    if len(paths) == 1 or accepts.keyed_by is None:
        return {role: paths[0]}
    found: dict[str, Location] = {}
    for path in paths:
        name = f"{role}-{_key(path, accepts, accepts.keyed_by)}"
        if name in found:
            raise StageError(f"{found[name]} and {path} have the same {accepts.keyed_by}: leave one of them out")
        found[name] = path
    return found


def _key(path: Location, accepts: Role, fact: str) -> str:
    found = artifact.read(path, None if FOLDER in accepts.kinds else accepts.kinds[0])
    if fact == IDENTITY:
        return found.identity[:12]
    if fact not in found.facts:
        raise StageError(f"{path} does not say its {fact}, which distinguishes several: give one of them")
    return str(found.facts[fact])


def execute(stage: Stage[R], recipe: R, inputs: Mapping[str, Location], out: Location) -> artifact.Artifact | None:
    """Make the artifact ``out``, or return the one that is there, made from the same recipe and inputs.

    Returns None from a stage that grows, and on ranks other than 0, which work on the artifact but do not complete it.

    Raises:
        ArtifactError: ``out`` holds something else, or an input is not a complete artifact of its kind.
        StageError: an input is absent or unknown, or the stage itself refuses.
        StorageError: a URL that cannot be reached.
    """
    inputs = {role: filesystem.location(place) for role, place in inputs.items()}
    out = filesystem.location(out)
    given = identities(stage, inputs, out)
    if stage.grows:
        if not isinstance(out, Path):
            raise StageError(
                f"{out}: a {stage.produces} grows while it is made, which object stores cannot do: name a folder"
            )
        stage.run(recipe, _local(inputs), out)
        return None
    if commit.present(out):
        return _existing(stage, recipe, given, out)
    stage.check_out(recipe, out)
    if stage.remote or isinstance(out, Path):
        return _make(stage, recipe, inputs, given, out)
    return _publish(stage, recipe, inputs, given, out)


def _make(
    stage: Stage[R], recipe: R, inputs: Mapping[str, Location], given: Mapping[str, str], out: Location
) -> artifact.Artifact | None:
    # The type of run says paths, which is enough for all stages but remote ones.
    places = cast(Mapping[str, Path], inputs) if stage.remote else _local(inputs)
    if rank() != 0:
        stage.run(recipe, places, cast(Path, commit.staging(out)))
        return None
    made = {PLACEMENT: recipe.resolved().get(PLACEMENT), "paths": {role: str(place) for role, place in inputs.items()}}
    with artifact.create(out, kind=stage.produces, inputs=given, recipe=recipe.identity(), **made) as draft:
        draft.facts.update(stage.run(recipe, places, cast(Path, draft.location)))
    return artifact.read(out, stage.produces)


def _publish(
    stage: Stage[R], recipe: R, inputs: Mapping[str, Location], given: Mapping[str, str], out: UPath
) -> artifact.Artifact | None:
    """Make an artifact on this machine, then copy it to the object store."""
    work = cache.workplace(out)
    if rank() != 0:
        return _make(stage, recipe, inputs, given, work)
    with artifact.publishing(out, kind=stage.produces, inputs=given, recipe=recipe.identity()) as publish:
        if work.exists() and artifact.difference(artifact.read(work), inputs=given, recipe=recipe.identity()):
            shutil.rmtree(work)  # complete, never published, and of another recipe or other inputs
        made = artifact.read(work) if work.exists() else _make(stage, recipe, inputs, given, work)
        assert made is not None, "rank 0 completes what it makes"
        publish(made)
    cache.keep(made, out)
    return artifact.read(out, stage.produces)


def rank() -> int:
    """Rank of this process among those that work on one artifact, 0 where it is alone."""
    return int(os.environ.get("RANK", "0"))


def _local(inputs: Mapping[str, Location]) -> dict[str, Path]:
    return {role: cache.fetch(place) for role, place in inputs.items()}


def _identity(role: str, path: Location, accepts: Role, out: Location | None) -> str:
    if accepts.identify is not None:
        return accepts.identify(cache.fetch(path))
    if filesystem.is_file(path / commit.MANIFEST) or FOLDER not in accepts.kinds:
        kind = accepts.kinds[0] if len(accepts.kinds) == 1 and FOLDER not in accepts.kinds else None
        found = artifact.read(path, kind)
        if found.kind not in accepts.kinds and FOLDER not in accepts.kinds:
            expected = " or ".join(accepts.kinds)
            raise commit.ArtifactError(f"{path} is {artifact.named(found.kind)}, expected {expected}")
        return found.identity
    if not filesystem.exists(path):
        raise commit.ArtifactError(
            f"{path} does not exist: --{role} takes {' or '.join(accepts.kinds)}; correct the path, or make it first"
        )
    ours = () if out is None else (filesystem.relative(place, path) for place in (out, commit.staging(out)))
    return artifact.folder_identity(cache.fetch(path), [name for name in ours if name is not None])


def _existing(stage: Stage[R], recipe: R, given: Mapping[str, str], out: Location) -> artifact.Artifact:
    found = artifact.read(out, stage.produces)
    if (changed := artifact.difference(found, inputs=given, recipe=recipe.identity())) is not None:
        raise commit.ArtifactError(
            f"{out} was made differently ({changed}) and is never overwritten: choose another --out"
        )
    logger.info("%s is already complete", out)
    return found
