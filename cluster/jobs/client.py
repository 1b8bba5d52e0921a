"""The job queue on Ray: submit, wait, look, cancel, retry.

::

    python -m cluster.jobs start --ledger DIR
    python -m cluster.jobs submit MODULE RECIPE --<role> DIR … --out DIR [--after ID] [--gpus 1] …
    python -m cluster.jobs list | show ID | logs ID | wait ID … | cancel ID … | retry ID … | drain

A job is one stage call and what it needs of a node. It is done when its artifact is complete, so asking for the same
again runs only what is missing, and asking for what waits or runs already is joining in. A failed job stops only those
that come after it. What the cluster broke (a worker or node died) is tried again; what the user broke is not.

The queue is an actor of the cluster: it outlives whoever submitted, and its ledger on shared storage outlives the
cluster.
"""

import contextlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import ActorDiedError, RayActorError, RayTaskError

from cluster.actors import ray_cluster, ray_state
from cluster.artifacts import errors
from cluster.jobs.failures import RetryPolicy
from cluster.jobs.job import Job, Outcome, settle
from cluster.jobs.ledger import SupersededError
from cluster.jobs.queue_actor import JobQueue, UnreadyError
from cluster.jobs.worker_pool import NAMESPACE
from cluster.telemetry import progress

LEDGER = "STILLHOUSE_JOBS"
"""The environment variable that names the ledger where no option does."""

_NAME = "job-queue"
_LOOK_SECONDS = (0.1, 1.0)
"""Between looks at what is waited for, at first and when nothing has happened for a while."""
_KEPT_SECONDS = 60.0
"""For the queue of a cluster that is ending to let go of its ledger."""
_PATIENCE_SECONDS = 120.0
"""For a queue that is being started again."""


def run(jobs: Sequence[Job], ledger: Path) -> list[Outcome]:
    """Run all jobs on the connected Ray cluster; one outcome each, in the order given.

    They join the queue of the cluster where there is one, whatever its ledger; otherwise one is started with this.

    Raises:
        StageError: a job needs more than a node of the cluster has, comes after a job that is not before it, or would
            make something else where another job is at work.
    """
    if not jobs:
        return []
    found = queue(ledger)
    printed = found.enter(jobs)
    ids = list(printed)
    names = dict(zip(ids, (job.name for job in jobs), strict=True))
    ended: dict[str, Outcome] = {}
    with progress.Progress("jobs", len(jobs), "jobs") as shown, _telling_who_leaves():
        for outcome in found.follow(names, printed):
            ended[outcome.id] = outcome
            shown.advance()
            progress.say(sentence(outcome))
    return [ended[name] for name in ids]


@contextlib.contextmanager
def _telling_who_leaves() -> Iterator[None]:
    """Say what becomes of the jobs of a shared cluster when whoever waits for them is interrupted."""
    try:
        yield
    except KeyboardInterrupt:
        if not ray_cluster.is_private():
            progress.say("the jobs go on: python -m cluster.jobs list shows them, cancel ends them")
        raise


def queue(ledger: Path | None = None) -> "Queue":
    """The queue of the connected cluster.

    Without one it is started with this ledger, or that of ``STILLHOUSE_JOBS``.

    Raises:
        StageError: no queue runs and no ledger is named.
    """
    if (found := _running()) is not None:
        return found
    asked = ledger or (Path(named) if (named := os.environ.get(LEDGER)) else None)
    if asked is None:
        raise errors.StageError(
            f"no job queue runs on this cluster: start one with python -m cluster.jobs start --ledger DIR, or set "
            f"{LEDGER} to a folder that all nodes see"
        )
    return start(asked)


def start(ledger: Path, patience: RetryPolicy | None = None) -> "Queue":
    """Start the queue of the connected cluster, which takes up what its ledger says; one that runs is joined.

    Raises:
        StageError: the ledger cannot be kept, or the queue that runs has another one.
    """
    ledger = ledger.absolute()
    remote: Any = ray.remote(JobQueue)
    handle = remote.options(
        name=_NAME,
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        max_restarts=-1,
        max_task_retries=0,
        num_cpus=0,
        max_concurrency=32,
        # On the head, which lives as long as the cluster. A soft affinity is not enough: a node that has
        # just joined does not know the head yet, and keeps what Ray asks it to place.
        resources={ray_state.HEAD: 0.001},
    ).remote(str(ledger), ray_cluster.is_private(), patience or RetryPolicy())
    found = Queue(handle)
    if found.ledger != ledger:
        raise errors.StageError(f"the queue of this cluster has the ledger {found.ledger}, not {ledger}: name that one")
    found.await_ledger()
    return found


def stop() -> bool:
    """End the queue, not its jobs: the next one to be started finds them; whether there was one."""
    if (found := _handle()) is None:
        return False
    ray.kill(found)
    return True


def sentence(outcome: Outcome) -> str:
    """An outcome for people."""
    if outcome.state in ("failed", "cancelled"):
        return f"{outcome.name}: {outcome.state}: {outcome.error}"
    tries = f", attempt {outcome.attempts}" if outcome.attempts > 1 else ""
    done = "already complete" if outcome.state == "skipped" else f"done in {outcome.seconds:.1f} s{tries}"
    return f"{outcome.name}: {done}"


class Queue:
    """The queue of a cluster, seen from outside. Waits for it where it is being started again."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self._told = ""
        self.ledger = Path(str(self._ask("ledger")))

    def await_ledger(self) -> None:
        """Wait until the queue has its ledger, which that of a cluster that is ending may keep for a while.

        Raises:
            StageError: it cannot have it; then there is no queue, and the next to start one may name a better ledger.
        """
        deadline = time.monotonic() + _KEPT_SECONDS
        while (trouble := self._ask("unready"))[0]:
            if not trouble[1] or time.monotonic() > deadline:
                ray.kill(self._handle)
                raise errors.StageError(f"the job queue cannot keep its ledger: {trouble[0]}")
            time.sleep(_LOOK_SECONDS[1])

    def about(self) -> dict[str, Any]:
        """Its ledger, limits, counts of jobs by state, whether it is drained, and what troubles it."""
        return dict(self._ask("about"))

    def submit(self, jobs: Sequence[Job]) -> Sequence[str]:
        """Submit jobs, all or none; their ids in the order given.

        Raises:
            StageError: as :func:`run`.
        """
        return tuple(self.enter(jobs))

    def enter(self, jobs: Sequence[Job]) -> dict[str, int]:
        """:meth:`submit`; id to the length of its log in bytes, which earlier attempts may have written to."""
        found = self._ask("submit", [request.resolved() for request in settle(jobs)])
        for job, (_, _, unlike) in zip(jobs, found, strict=True):
            if unlike:
                progress.say(f"{job.name} is in the queue already, where {unlike}: cancel it first to change that")
        return {name: printed for name, printed, _ in found}

    def follow(self, names: Mapping[str, str], printed: Mapping[str, int]) -> Iterator[Outcome]:
        """Outcomes of jobs as they end, repeating what the running ones print behind what they have ``printed``.

        ``names`` by id stand before the lines.
        """
        offsets = dict(printed)
        pause = _LOOK_SECONDS[0]
        while offsets:
            found = self._ask("look", offsets)
            news = False
            for name, seen in found.items():
                news |= _show(names[name], seen["text"])
                offsets[name] = seen["offset"]
                if seen["outcome"] is not None and not seen["text"]:
                    del offsets[name]
                    news = True
                    yield Outcome(**{**seen["outcome"], "name": names[name]})
            pause = _LOOK_SECONDS[0] if news else min(pause * 1.5, _LOOK_SECONDS[1])
            if offsets:
                self._pause(pause)

    def ended(self, ids: Sequence[str]) -> dict[str, Outcome]:
        """Outcomes of those of the jobs that have ended, by id."""
        found = self._ask("look", dict.fromkeys(ids))
        return {name: Outcome(**seen["outcome"]) for name, seen in found.items() if seen["outcome"] is not None}

    def wait(self, ids: Sequence[str]) -> Sequence[Outcome]:
        """Outcomes of jobs when all have ended, in the order given."""
        found = self.ended(ids)
        pause = _LOOK_SECONDS[0]
        while left := [name for name in ids if name not in found]:
            self._pause(pause)
            pause = min(pause * 1.5, _LOOK_SECONDS[1])
            found |= self.ended(left)
        return [found[name] for name in ids]

    def list(self) -> Sequence[dict[str, Any]]:
        """Every job in the order of submission, in short."""
        return tuple(self._ask("listing"))

    def show(self, job: str) -> dict[str, Any]:
        """Everything about one job, its history included."""
        return dict(self._ask("show", job))

    def log(self, job: str, offset: int = 0) -> dict[str, Any]:
        """Part of what a job printed, from an offset on (negative: from the end), and the ``offset`` behind it."""
        return dict(self._ask("log", job, offset))

    def id_of(self, text: str) -> str:
        """The id that a text means: an id, how one begins, or the name of one job."""
        return str(self._ask("log", text, -1)["id"])

    def cancel(self, jobs: Sequence[str]) -> Sequence[str]:
        """End jobs, waiting or running; ids of those that had not ended."""
        return tuple(self._ask("cancel", [*jobs]))

    def retry(self, jobs: Sequence[str]) -> Sequence[str]:
        """Try failed and cancelled jobs again, with those that failed because of them; ids of all of these."""
        return tuple(self._ask("retry", [*jobs]))

    def drain(self, on: bool = True) -> None:
        """Start nothing new while what runs ends; off, go on again."""
        self._ask("drain", on)

    def limit(self, users: Mapping[str, int] | None = None, kinds: Mapping[str, int] | None = None) -> None:
        """How many jobs of a user, or of a kind, may run at a time, instead of those limits before; ``*``: of any."""
        self._ask("limit", users and dict(users), kinds and dict(kinds))

    def serve(self, port: int) -> None:
        """Serve the queue's metrics on this port of the node it is on."""
        self._ask("serve", port)

    def _pause(self, seconds: float) -> None:
        """Wait, and say what troubles the queue where nothing else is said for a while."""
        time.sleep(seconds)
        if seconds < _LOOK_SECONDS[1]:
            return
        trouble = self.about()["trouble"]
        if trouble and trouble != self._told:
            progress.say(f"the job queue is in trouble and goes on trying: {trouble}")
        self._told = trouble

    def _ask(self, method: str, *arguments: Any) -> Any:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            try:
                return ray.get(getattr(self._handle, method).remote(*arguments))
            except RayTaskError as error:
                unready = isinstance(error.cause, UnreadyError | SupersededError)
                if not unready or time.monotonic() > deadline:
                    raise error.cause from None
            except ActorDiedError:
                self._handle = _again()
            except RayActorError as error:
                if time.monotonic() > deadline:
                    raise errors.StageError(f"the job queue does not answer: {error}") from None
            time.sleep(_LOOK_SECONDS[1])


def _running() -> Queue | None:
    handle = _handle()
    return None if handle is None else Queue(handle)


def _handle() -> Any:
    try:
        return ray.get_actor(_NAME, namespace=NAMESPACE)
    except ValueError:
        return None


def _again() -> Any:
    """The queue that was started in the place of one that was stopped."""
    if (handle := _handle()) is None:
        raise errors.StageError(
            "the job queue was stopped; its jobs go on: python -m cluster.jobs start --ledger DIR takes them up again"
        )
    return handle


def _show(name: str, text: str) -> bool:
    """Repeat what a job has printed; whether that was anything."""
    for line in filter(str.strip, text.splitlines()):
        progress.say(f"[{name}] {line}")
    return bool(text)
