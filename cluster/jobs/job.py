"""Jobs as they are asked for: a stage call, what it needs, how it ends, and what tells two of them apart.

A job is known by what it makes: its id is a digest of the module, the identity of the recipe, the inputs and the place
of the artifact. Whoever asks for the same thing gets the same job.
"""

import getpass
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from cluster.artifacts import artifact, errors, registry
from cluster.jobs.scheduler import SMALLEST, Need
from cluster.storage import filesystem

State: TypeAlias = Literal["waiting", "running", "done", "skipped", "failed", "cancelled"]
Failure: TypeAlias = Literal["cluster", "user", "memory", "deadline", "dependency"]

GOOD = ("done", "skipped")
OPEN = ("waiting", "running")

_LETTERS = 12
"""Of a digest in an id."""


class JobsFailedError(errors.StageError):
    """Some jobs of many have failed; what did not need them is done."""


def login() -> str:
    """Who is asking, where the machine knows: containers often have a number and no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


@dataclass(frozen=True)
class Job:
    """One stage call: module, recipe values, inputs by role, where its artifact will be, and what it needs."""

    name: str
    stage: str
    recipe: Mapping[str, Any]
    inputs: Mapping[str, Path]
    """Or ``UPath`` for what lies in an object store, like ``out``."""
    out: Path
    after: tuple[str, ...] = ()
    """What must be done first: names of jobs before it in the same submission, or ids of jobs the queue knows."""
    cpus: float = 1
    gpus: float = 0
    """Less than 1 shares a GPU with other jobs."""
    resources: Mapping[str, float] = field(default_factory=dict)
    """Named resources of Ray's nodes."""
    alone: bool = False
    """It gets a node to itself, with no other job of the queue beside it: for measurements of time."""
    priority: int = 0
    """Higher ones start first."""
    deadline: float | None = None
    """Seconds after its submission after which it is given up, running or not."""
    kind: str = ""
    """What limits count it as; by default what its stage says, or produces."""
    user: str = field(default_factory=login)
    cwd: Path = field(default_factory=Path.cwd)
    """Where relative paths in the recipe start, on nodes that have this folder."""

    @property
    def need(self) -> Need:
        """What it asks of a node, by the names Ray has for it."""
        asked = {"CPU": self.cpus, "GPU": self.gpus, **self.resources}
        return Need({name: float(amount) for name, amount in asked.items() if amount}, self.alone)


@dataclass(frozen=True)
class Outcome:
    """How a job ended. ``skipped``: its artifact was complete before."""

    name: str
    state: Literal["done", "skipped", "failed", "cancelled"]
    seconds: float = 0.0
    """Of its last attempt."""
    error: str | None = None
    log: str | None = None
    id: str = ""
    attempts: int = 0
    failure: Failure | None = None
    """Whose fault it was."""

    def resolved(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Request:
    """A job as the queue keeps it: with its id, its paths whole, and what it comes after by id."""

    id: str
    makes: Mapping[str, Any]
    """Module, identity of the recipe, inputs and place of the artifact: what the id is the digest of."""
    job: Job

    def resolved(self) -> dict[str, Any]:
        """As JSON."""
        job = vars(self.job) | {"inputs": self.makes["inputs"], "out": self.makes["out"], "cwd": str(self.job.cwd)}
        return {"id": self.id, "makes": self.makes, "job": job}

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Request":
        job = dict(values["job"])
        places = {role: filesystem.location(place) for role, place in job["inputs"].items()}
        job |= {"inputs": places, "out": filesystem.location(job["out"])}
        job |= {"after": tuple(job["after"]), "cwd": Path(job["cwd"])}
        return cls(values["id"], values["makes"], Job(**job))


def settle(jobs: Sequence[Job]) -> list[Request]:
    """Requests for jobs that are submitted together.

    Raises:
        StageError: two of one name, two that make the same, or amounts that are none.
    """
    ids: dict[str, str] = {}
    found: list[Request] = []
    for job in jobs:
        _check(job)
        if job.name in ids:
            raise errors.StageError(f"two jobs are called {job.name}: give every job a name of its own")
        request = _request(job, ids)
        if (twin := next((name for name, known in ids.items() if known == request.id), None)) is not None:
            raise errors.StageError(f"jobs {twin} and {job.name} would make the same {job.out}: leave one of them out")
        ids[job.name] = request.id
        found.append(request)
    return found


def _check(job: Job) -> None:
    for name, amount in {"CPU": job.cpus, "GPU": job.gpus, **job.resources}.items():
        if not 0 <= amount < float("inf"):
            raise errors.StageError(f"job {job.name} needs {amount:g} {name}: write a number that is not negative")
        if 0 < amount < SMALLEST:
            raise errors.StageError(f"job {job.name} needs {amount:g} {name}: write 0, or {SMALLEST:g} at least")
        if name == "GPU" and amount > 1 and amount != int(amount):
            raise errors.StageError(f"job {job.name} needs {amount:g} GPUs: write a share below 1, or whole ones")
    for word in ("memory", "object_store_memory"):
        if word in job.resources:
            raise errors.StageError(
                f"job {job.name} names the resource {word}, which is no share of a node here: leave it out, and let "
                "few enough jobs run at a time with cpus or a resource of your own"
            )
    if reserved := sorted({"CPU", "GPU"} & set(job.resources)):
        word = {"CPU": "cpus", "GPU": "gpus"}[reserved[0]]
        raise errors.StageError(f"job {job.name} names the resource {reserved[0]}: write {word} instead")
    if job.deadline is not None and not job.deadline > 0:
        raise errors.StageError(f"job {job.name} has a deadline of {job.deadline:g} s: write the seconds it may take")


def _request(job: Job, ids: Mapping[str, str]) -> Request:
    kind, identity = _stage_facts(job)
    cwd = Path(job.cwd).absolute()
    inputs = {role: _whole(place, cwd) for role, place in job.inputs.items()}
    makes = {"stage": job.stage, "recipe": identity, "inputs": inputs, "out": _whole(job.out, cwd)}
    after = tuple(dict.fromkeys(ids.get(name, name) for name in job.after))
    recipe, resources = dict(job.recipe), dict(job.resources)
    settled = replace(job, recipe=recipe, resources=resources, after=after, kind=job.kind or kind, cwd=cwd)
    return Request(artifact.digest(makes)[:_LETTERS], makes, settled)


def _stage_facts(job: Job) -> tuple[str, Mapping[str, Any]]:
    """The kind of the stage's jobs, and the identity of the recipe.

    A stage or recipe that is refused here is refused again where the job runs, which is where people are told.
    """
    try:
        called = registry.find(job.stage)
        return called.job_kind or called.produces, called.recipe.of(job.recipe, job.name).identity()
    except (ValueError, ImportError):
        return job.stage, dict(job.recipe)


def _whole(place: Path, cwd: Path) -> str:
    return os.path.normpath(cwd / place) if isinstance(place, Path) else str(place)
