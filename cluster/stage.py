"""The one command line of every stage.

::

    python -m <package>.<stage> RECIPE --<role> DIR … --out DIR [--set key=value]…

A stage is a function from complete directories to one complete directory. A module that is a stage names itself in
a constant ``STAGE``; the command line, the job queue and the tests all go through :func:`execute`. A stage that
turns one thing into another without choices takes that thing in the place of the recipe (``subject``)::

    python -m distill.export RUN --out DIR

Inputs and ``--out`` may be URLs of an object store (:mod:`cluster.storage`). A stage need not know: it is given copies
in the cache, and what it made on this machine is published when it is complete.
"""

import argparse
import contextlib
import errno
import importlib
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from safetensors import SafetensorError
from upath import UPath

from cluster import artifact, attempt, cache, storage
from cluster.recipe import PLACEMENT, Recipe, load
from cluster.storage import Location

logger = logging.getLogger("stillhouse")

FOLDER = "folder"
IDENTITY = "identity"

_ADVICE = {
    errno.EACCES: ": choose a place you may write to",
    errno.EPERM: ": choose a place you may write to",
    errno.EROFS: ": choose a place that can be written to",
    errno.ENOTDIR: ": a file is in the way, choose another place",
    errno.ENOSPC: ": free some space and run the same command again",
    errno.EDQUOT: ": free some space and run the same command again",
}

R = TypeVar("R", bound=Recipe)
T = TypeVar("T")


class StageError(ValueError):
    """A stage cannot run with what it was given: inputs, environment or data."""


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

    @property
    def module(self) -> str:
        """Name to run it by: ``python -m <module>``."""
        spec = sys.modules[self.run.__module__].__spec__
        assert spec is not None, "stages are run with python -m, never as files"
        return spec.name


def find(module: str) -> Stage[Any]:
    """The stage of a module named by its dotted path.

    Raises:
        StageError: no such module, or it is not a stage.
    """
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise StageError(f"no stage {module}: {error}") from None
    if not isinstance(getattr(found, "STAGE", None), Stage):
        raise StageError(f"{module} is not a stage: it has no STAGE")
    return found.STAGE  # type: ignore[no-any-return]


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
            raise StageError(f"{stage.module} needs --{role} DIR ({' or '.join(accepts.kinds)})")
        found |= {
            name: known(cache.fetch(place)) if known else _identity(place, accepts) for name, place in given.items()
        }
    if unknown := [name for name in inputs if name not in found]:
        raise StageError(f"{stage.module} has no input {unknown[0]}: it takes {', '.join(stage.inputs) or 'none'}")
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
    inputs = {role: storage.location(place) for role, place in inputs.items()}
    out = storage.location(out)
    given = identities(stage, inputs)
    if stage.grows:
        if not isinstance(out, Path):
            raise StageError(
                f"{out}: a {stage.produces} grows while it is made, which object stores cannot do: name a folder"
            )
        stage.run(recipe, _at_hand(inputs), out)
        return None
    if attempt.present(out):
        return _existing(stage, recipe, given, out)
    if stage.remote or isinstance(out, Path):
        return _make(stage, recipe, inputs, given, out)
    return _publish(stage, recipe, inputs, given, out)


def main(stage: Stage[Any], arguments: Sequence[str] | None = None) -> None:
    """Run a stage from the command line: prints the artifact's path, exits 1 on errors for people, 2 on usage."""
    # The imported module instead of __main__: workers must find what it defines by name.
    stage = find(stage.module)
    options = parser_for(stage).parse_args(arguments)
    with errors_for_people():
        execute(stage, *asked(stage, options))
    if _rank() == 0:
        print(options.out)


def asked(stage: Stage[R], options: argparse.Namespace) -> tuple[R, dict[str, Location], Location]:
    """Recipe, inputs and place of the artifact that a command line asks for.

    Raises:
        RecipeError: the recipe cannot be read.
        ArtifactError: one of several inputs of a role is no complete artifact.
        StageError: two inputs of a role that nothing tells apart.
        StorageError: a URL that cannot be understood.
    """
    inputs: dict[str, Location] = {}
    for role, accepts in stage.inputs.items():
        if (given := getattr(options, role)) is not None:
            inputs |= named(role, accepts, [storage.location(text) for text in given])
    recipe = load(stage.recipe, "default" if stage.subject else options.recipe, options.set)
    return recipe, inputs, storage.location(options.out)


def parser_for(stage: Stage[Any]) -> argparse.ArgumentParser:
    """The command-line grammar of a stage."""
    summary = (sys.modules[stage.run.__module__].__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog=f"python -m {stage.module}", description=summary)
    if stage.subject:
        metavar = stage.subject.upper()
        parser.add_argument(stage.subject, metavar=metavar, nargs=1, help="directory to work on")
    else:
        parser.add_argument("recipe", metavar="RECIPE", help="TOML file, FILE#table, a shipped recipe, or 'default'")
    for role, accepts in stage.inputs.items():
        if role != stage.subject:
            help_text = " or ".join(accepts.kinds)
            many: dict[str, Any] = {"nargs": "+" if accepts.several_by else 1, "action": "extend"}
            parser.add_argument(f"--{role}", metavar="DIR", required=not accepts.optional, help=help_text, **many)
    parser.add_argument("--out", metavar="DIR", required=True, help=f"where the {stage.produces} will be")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="override a recipe value")
    return parser


@contextlib.contextmanager
def errors_for_people() -> Iterator[None]:
    """Turns errors meant for people into one line on stderr and exit code 1; bugs keep their traceback."""
    try:
        with logging_to_stderr():
            yield
    except KeyboardInterrupt:
        print("interrupted: run the same command again to continue", file=sys.stderr)
        raise SystemExit(130) from None
    except Exception as error:
        if (line := explain(error)) is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        raise SystemExit(1) from None


@contextlib.contextmanager
def logging_to_stderr() -> Iterator[None]:
    """Show what the stages say, as plain lines on stderr, inside the block."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


def explain(error: BaseException | None) -> str | None:
    """The one line for an error that people can mend (ValueError family, the operating system's); None for a bug."""
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        advice = _ADVICE.get(error.errno or 0, "")
        return f"{place}{error.strerror or error}{advice}"
    # Files of weights are written by a library with an error type of its own, a full disk included.
    if isinstance(error, ValueError | SafetensorError):
        return " ".join(str(error).split())
    return storage.explain(error) if error else None


def _make(
    stage: Stage[R], recipe: R, inputs: Mapping[str, Location], given: Mapping[str, str], out: Location
) -> artifact.Artifact | None:
    # A remote stage takes locations; the type of run is that of all the others, for which paths are enough.
    hands = cast(Mapping[str, Path], inputs) if stage.remote else _at_hand(inputs)
    if _rank() != 0:
        stage.run(recipe, hands, cast(Path, artifact.staging(out)))
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
    if _rank() != 0:
        return _make(stage, recipe, inputs, given, work)
    with artifact.publishing(out, kind=stage.produces, inputs=given, recipe=recipe.identity()) as publish:
        if work.exists() and artifact.difference(artifact.read(work), inputs=given, recipe=recipe.identity()):
            shutil.rmtree(work)  # complete, but never published, and no longer what is wanted
        made = artifact.read(work) if work.exists() else _make(stage, recipe, inputs, given, work)
        assert made is not None, "rank 0 completes what it makes"
        publish(made)
    cache.keep(made, out)
    return artifact.read(out, stage.produces)


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def _at_hand(inputs: Mapping[str, Location]) -> dict[str, Path]:
    return {role: cache.fetch(place) for role, place in inputs.items()}


def _identity(path: Location, accepts: Role) -> str:
    if storage.is_file(path / artifact.MANIFEST) or FOLDER not in accepts.kinds:
        kind = accepts.kinds[0] if len(accepts.kinds) == 1 and FOLDER not in accepts.kinds else None
        found = artifact.read(path, kind)
        if found.kind not in accepts.kinds and FOLDER not in accepts.kinds:
            expected = " or ".join(accepts.kinds)
            raise artifact.ArtifactError(f"{path} is a {found.kind} artifact, expected {expected}")
        return found.identity
    return artifact.folder_identity(cache.fetch(path))


def _existing(stage: Stage[Any], recipe: Recipe, given: Mapping[str, str], out: Location) -> artifact.Artifact:
    found = artifact.read(out, stage.produces)
    if (changed := artifact.difference(found, inputs=given, recipe=recipe.identity())) is not None:
        raise artifact.ArtifactError(
            f"{out} was made differently ({changed}) and is never overwritten: choose another --out"
        )
    logger.info("%s is already complete", out)
    return found
