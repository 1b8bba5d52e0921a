"""A job: one stage call, the resources it needs, and how it ends.

The id of a job is a digest of what it makes: stage, identity of the recipe, inputs and location of the artifact. Two
people who submit the same call get the same job.
"""

import contextlib
import getpass
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from cluster.artifacts import artifact, errors, registry, stage
from cluster.jobs.scheduler import SMALLEST, Need
from cluster.storage import filesystem

State: TypeAlias = Literal["waiting", "running", "done", "skipped", "failed", "cancelled"]
Failure: TypeAlias = Literal["cluster", "user", "memory", "deadline", "dependency"]

GOOD = ("done", "skipped")
OPEN = ("waiting", "running")

_ID_LETTERS = 12


class JobsFailedError(errors.StageError):
    """Some of several jobs failed; the jobs that do not depend on them are done."""


def current_user() -> str:
    """Login name; the numeric user id where there is none, as in many containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


@dataclass(frozen=True)
class Job:
    """A stage call and its scheduling options."""

    name: str
    stage: str
    recipe: Mapping[str, Any]
    inputs: Mapping[str, Path]
    """Paths by role; ``UPath`` for object stores, as for ``out``."""
    out: Path
    after: tuple[str, ...] = ()
    """Jobs that must be done first: names from the same submission, or ids the queue knows."""
    cpus: float | None = None
    """By default what the stage declares, like ``alone``."""
    gpus: float = 0
    """Below 1: a share of one GPU."""
    resources: Mapping[str, float] = field(default_factory=dict)
    """Ray's custom resources by name."""
    alone: bool | None = None
    """Runs on a node with no other job of the queue: for time measurements."""
    priority: int = 0
    """Higher priorities start first."""
    deadline: float | None = None
    """Seconds from submission until the queue cancels the job."""
    kind: str = ""
    """Key of the per-kind limits; by default the kind of the stage, or of its artifact."""
    user: str = field(default_factory=current_user)
    cwd: Path = field(default_factory=Path.cwd)
    """Base of the recipe's relative paths, on nodes that have this folder."""

    @property
    def need(self) -> Need:
        """Resources by Ray's names, of a job whose defaults are filled in."""
        amounts = {"CPU": self.cpus, "GPU": self.gpus, **self.resources}
        return Need({name: float(amount) for name, amount in amounts.items() if amount}, bool(self.alone))


@dataclass(frozen=True)
class Outcome:
    """How a job ended. ``skipped``: its artifact was already complete."""

    name: str
    state: Literal["done", "skipped", "failed", "cancelled"]
    seconds: float = 0.0
    """Duration of the last attempt."""
    error: str | None = None
    log: str | None = None
    id: str = ""
    attempts: int = 0
    failure: Failure | None = None

    def resolved(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Request:
    """A job as the queue stores it: with its id, absolute paths, and ids in ``after``."""

    id: str
    makes: Mapping[str, Any]
    """Stage, recipe identity, inputs and output location: the id is their digest."""
    job: Job

    def resolved(self) -> dict[str, Any]:
        """JSON for the ledger; :meth:`of` reads it."""
        job = vars(self.job) | {"inputs": self.makes["inputs"], "out": self.makes["out"], "cwd": str(self.job.cwd)}
        return {"id": self.id, "makes": self.makes, "job": job}

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Request":
        job = dict(values["job"])
        inputs = {role: filesystem.location(place) for role, place in job["inputs"].items()}
        job |= {"inputs": inputs, "out": filesystem.location(job["out"])}
        job |= {"after": tuple(job["after"]), "cwd": Path(job["cwd"])}
        return cls(values["id"], values["makes"], Job(**job))


def make_requests(jobs: Sequence[Job]) -> list[Request]:
    """Requests for jobs that are submitted together.

    Raises:
        StageError: two jobs have the same name or make the same artifact, or a resource amount is invalid.
    """
    ids: dict[str, str] = {}
    found: list[Request] = []
    for job in jobs:
        if job.name in ids:
            raise errors.StageError(f"two jobs are called {job.name}: give every job its own name")
        request = _request(job, ids)
        if (twin := next((name for name, known in ids.items() if known == request.id), None)) is not None:
            raise errors.StageError(f"jobs {twin} and {job.name} would make the same {job.out}: leave one of them out")
        ids[job.name] = request.id
        found.append(request)
    return found


def _check(job: Job) -> None:
    for name, amount in {"CPU": job.cpus or 0, "GPU": job.gpus, **job.resources}.items():
        if not 0 <= amount < float("inf"):
            raise errors.StageError(f"job {job.name} needs {amount:g} {name}: write a number that is not negative")
        if 0 < amount < SMALLEST:
            raise errors.StageError(f"job {job.name} needs {amount:g} {name}: write 0, or {SMALLEST:g} at least")
        if name == "GPU" and amount > 1 and amount != int(amount):
            raise errors.StageError(f"job {job.name} needs {amount:g} GPUs: write a share below 1, or a whole number")
    for word in ("memory", "object_store_memory"):
        if word in job.resources:
            raise errors.StageError(
                f"job {job.name} names the resource {word}, which the queue does not schedule: leave it out, and limit "
                "how many jobs run at a time with cpus or a custom resource"
            )
    if reserved := sorted({"CPU", "GPU"} & set(job.resources)):
        word = {"CPU": "cpus", "GPU": "gpus"}[reserved[0]]
        raise errors.StageError(f"job {job.name} names the resource {reserved[0]}: write {word} instead")
    if job.deadline is not None and not job.deadline > 0:
        raise errors.StageError(f"job {job.name} has a deadline of {job.deadline:g} s: write the seconds it may take")


def _request(job: Job, ids: Mapping[str, str]) -> Request:
    called = _called(job)
    job = _with_defaults(job, called)
    _check(job)
    if called is not None and called.starts_jobs and not job.need.needs_nothing:
        raise errors.StageError(
            f"job {job.name}: {job.stage} waits for jobs that it starts, and would hold what these need: leave out "
            "cpus, gpus, resources and alone"
        )
    cwd = Path(job.cwd).absolute()
    inputs = {role: _absolute(place, cwd) for role, place in job.inputs.items()}
    makes = {"stage": job.stage, "recipe": _identity(job, called), "inputs": inputs, "out": _absolute(job.out, cwd)}
    after = tuple(dict.fromkeys(ids.get(name, name) for name in job.after))
    complete = replace(job, recipe=dict(job.recipe), resources=dict(job.resources), after=after, cwd=cwd)
    return Request(artifact.digest(makes)[:_ID_LETTERS], makes, complete)


def _called(job: Job) -> stage.Stage[Any] | None:
    """The job's stage; an unknown one is no error here, because the worker reports it when it runs the job."""
    try:
        return registry.find(job.stage)
    except (ValueError, ImportError):
        return None


def _with_defaults(job: Job, called: stage.Stage[Any] | None) -> Job:
    """The job with what its stage declares in the place of what its submitter left open."""
    if called is None:
        return replace(job, cpus=1 if job.cpus is None else job.cpus, alone=bool(job.alone), kind=job.kind or job.stage)
    return replace(
        job,
        cpus=called.cpus if job.cpus is None else job.cpus,
        alone=called.alone if job.alone is None else job.alone,
        kind=job.kind or called.job_kind or called.produces,
    )


def _identity(job: Job, called: stage.Stage[Any] | None) -> Mapping[str, Any]:
    """Identity of the recipe; the worker reports an invalid one when it runs the job."""
    with contextlib.suppress(ValueError, ImportError):
        if called is not None:
            found: Mapping[str, Any] = called.read(job.recipe, job.name).identity()
            return found
    return dict(job.recipe)


def _absolute(place: Path, cwd: Path) -> str:
    return os.path.normpath(cwd / place) if isinstance(place, Path) else str(place)
