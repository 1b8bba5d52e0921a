"""Submit jobs to the queue of the connected Ray cluster, wait for them, and control them.

A job is done when its artifact is complete: submitting the same jobs again runs only what is missing, and submitting a
job that waits or runs joins it. A failed job stops only the jobs that come after it. The queue retries what the cluster
broke, and not what the user has to correct.

The queue outlives its submitters; its ledger on shared storage outlives the cluster.
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
from cluster.jobs.job import Job, Outcome, make_requests
from cluster.jobs.ledger import SupersededError
from cluster.jobs.queue_actor import JobQueue, NotReadyError
from cluster.jobs.worker_pool import NAMESPACE
from cluster.telemetry import progress

LEDGER = "STILLHOUSE_JOBS"
"""Environment variable of the ledger's folder."""

_NAME = "job-queue"
_POLL_SECONDS = (0.1, 1.0)
"""Between two requests: at first, and when nothing has happened for a while."""
_LEDGER_SECONDS = 60.0
"""Wait for the previous queue to release the ledger lock."""
_RESTART_SECONDS = 120.0
"""Wait for the queue to restart."""


def run(jobs: Sequence[Job], ledger: Path) -> list[Outcome]:
    """Run all jobs on the connected Ray cluster; returns their outcomes in the same order.

    Uses the queue of the cluster, whatever its ledger; starts one with this ledger if there is none.

    Raises:
        StageError: a job needs more than any node has, comes after an unknown job, or conflicts with another one.
    """
    if not jobs:
        return []
    found = queue(ledger)
    offsets = found.submit_with_offsets(jobs)
    names = dict(zip(offsets, (job.name for job in jobs), strict=True))
    ended: dict[str, Outcome] = {}
    try:
        with contextlib.ExitStack() as stack:
            # The line of a single job says as much as a count of jobs.
            shown = stack.enter_context(progress.Progress("jobs", len(jobs), "jobs")) if len(jobs) > 1 else None
            for outcome in found.follow(offsets, names):
                ended[outcome.id] = outcome
                if shown is not None:
                    shown.advance()
                progress.say(sentence(outcome))
    except KeyboardInterrupt:
        if not ray_cluster.is_private():
            progress.say("the jobs keep running: stillhouse jobs list shows them, stillhouse jobs cancel ends them")
        raise
    return [ended[name] for name in offsets]


def queue(ledger: Path | None = None) -> "Queue":
    """The queue of the connected cluster; if there is none, a new one with this ledger or that of ``STILLHOUSE_JOBS``.

    Raises:
        StageError: no queue runs and no ledger is given.
    """
    if (handle := _find()) is not None:
        return Queue(handle)
    if (folder := ledger or os.environ.get(LEDGER)) is None:
        raise errors.StageError(
            f"no job queue runs on this cluster: start one with stillhouse jobs start --ledger DIR, or set {LEDGER} to "
            "a folder that all nodes see"
        )
    return start(Path(folder))


def start(ledger: Path, policy: RetryPolicy | None = None) -> "Queue":
    """Start the queue of the connected cluster from its ledger, or join a running one with the same ledger.

    Raises:
        StageError: the ledger is in use or not writable, or the running queue has another one.
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
        # On the head, which lives as long as the cluster. A soft node affinity does not suffice: a node that has just
        # joined does not know the head yet, and keeps the actors that Ray wants to place there.
        resources={ray_state.HEAD: 0.001},
    ).remote(str(ledger), ray_cluster.is_private(), policy or RetryPolicy())
    found = Queue(handle)
    if found.ledger != ledger:
        raise errors.StageError(f"the queue of this cluster has the ledger {found.ledger}, not {ledger}: name that one")
    found.await_ledger()
    return found


def stop() -> bool:
    """End the queue but not its jobs, which the next queue finds again; returns whether there was a queue."""
    if (found := _find()) is None:
        return False
    ray.kill(found)
    return True


def line_of(job: str, line: str) -> str:
    """A line of a job's output after the job's name, once: progress of a stage often begins with it."""
    return line if line.startswith(f"{job}: ") else f"{job}: {line}"


def sentence(outcome: Outcome) -> str:
    """An outcome as one line."""
    if outcome.state in ("failed", "cancelled"):
        return f"{outcome.name}: {outcome.state}: {outcome.error}"
    tries = f", attempt {outcome.attempts}" if outcome.attempts > 1 else ""
    done = "already complete" if outcome.state == "skipped" else f"done in {outcome.seconds:.1f} s{tries}"
    return f"{outcome.name}: {done}"


class Queue:
    """Client of a cluster's queue. Its calls wait while the queue restarts."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self._last_trouble = ""
        self.ledger = Path(str(self._call("ledger")))

    def await_ledger(self) -> None:
        """Wait until the queue owns its ledger; the queue of a cluster that is ending may hold it for a while.

        Raises:
            StageError: it cannot own it. The queue is ended, so that the next one can name another ledger.
        """
        deadline = time.monotonic() + _LEDGER_SECONDS
        while True:
            trouble, temporary = self._call("unready")
            if not trouble:
                return
            if not temporary or time.monotonic() > deadline:
                ray.kill(self._handle)
                raise errors.StageError(f"the job queue cannot open its ledger: {trouble}")
            time.sleep(_POLL_SECONDS[1])

    def about(self) -> dict[str, Any]:
        """As :meth:`JobQueue.about`."""
        return dict(self._call("about"))

    def submit(self, jobs: Sequence[Job]) -> Sequence[str]:
        """Submit all jobs or none; returns their ids in the same order.

        Raises:
            StageError: as :func:`run`.
        """
        return tuple(self.submit_with_offsets(jobs))

    def submit_with_offsets(self, jobs: Sequence[Job]) -> dict[str, int]:
        """:meth:`submit`; returns for each id the size of its log, which holds the output of earlier attempts."""
        found = self._call("submit", [request.resolved() for request in make_requests(jobs)])
        for job, (_, _, changed) in zip(jobs, found, strict=True):
            if changed:
                progress.say(f"{job.name} is already in the queue, where {changed}: cancel it first to change that")
        return {name: offset for name, offset, _ in found}

    def follow(self, offsets: Mapping[str, int | None], names: Mapping[str, str]) -> Iterator[Outcome]:
        """Yield outcomes as jobs end; meanwhile print their output from an offset (None: no output).

        Both arguments are by id. A line of output follows the job's name in ``names``, and the outcome has this name.
        """
        left = dict(offsets)
        held: dict[str, str] = {}
        pause = _POLL_SECONDS[0]
        while left:
            news = False
            for name, seen in self._call("look", left).items():
                for line in filter(str.strip, seen["text"].splitlines()):
                    if line.startswith("error: "):
                        # The outcome repeats the last error.
                        line, held[name] = held.get(name, ""), line
                    if line:
                        progress.say(line_of(names[name], line))
                left[name] = seen["offset"]
                news |= bool(seen["text"])
                if seen["outcome"] is not None and not seen["text"]:
                    del left[name]
                    news = True
                    last, error = held.pop(name, ""), seen["outcome"]["error"]
                    if last and not (error and error in last):
                        progress.say(f"[{names[name]}] {last}")
                    yield Outcome(**{**seen["outcome"], "name": names.get(name, seen["outcome"]["name"])})
            pause = _POLL_SECONDS[0] if news else min(pause * 1.5, _POLL_SECONDS[1])
            if left:
                self._pause(pause)

    def outcomes(self, ids: Sequence[str]) -> dict[str, Outcome]:
        """Outcomes of the jobs that have ended, by id."""
        found = self._call("look", dict.fromkeys(ids))
        return {name: Outcome(**seen["outcome"]) for name, seen in found.items() if seen["outcome"] is not None}

    def wait(self, ids: Sequence[str]) -> Sequence[Outcome]:
        """Wait until all jobs have ended; returns their outcomes in the same order."""
        found = {outcome.id: outcome for outcome in self.follow(dict.fromkeys(ids), {})}
        return [found[name] for name in ids]

    def list(self) -> Sequence[dict[str, Any]]:
        """A summary of every job, in order of submission."""
        return tuple(self._call("listing"))

    def show(self, job: str) -> dict[str, Any]:
        """Summary, request, history and log of one job."""
        return dict(self._call("show", job))

    def log(self, job: str, offset: int = 0) -> dict[str, Any]:
        """Part of a job's output (negative offsets count from the end), and the ``offset`` of the next part."""
        return dict(self._call("log", job, offset))

    def id_of(self, text: str) -> str:
        """Full id of a job, from the id, its beginning, or the name of one job."""
        return str(self._call("log", text, -1)["id"])

    def cancel(self, jobs: Sequence[str]) -> Sequence[str]:
        """As :meth:`JobQueue.cancel`."""
        return tuple(self._call("cancel", [*jobs]))

    def retry(self, jobs: Sequence[str]) -> Sequence[str]:
        """As :meth:`JobQueue.retry`."""
        return tuple(self._call("retry", [*jobs]))

    def drain(self, on: bool = True) -> None:
        """Start no more jobs, while running ones continue; ``False`` resumes."""
        self._call("drain", on)

    def limit(self, users: Mapping[str, int] | None = None, kinds: Mapping[str, int] | None = None) -> None:
        """As :meth:`JobQueue.limit`."""
        self._call("limit", users and dict(users), kinds and dict(kinds))

    def serve(self, port: int) -> None:
        """Serve the queue's metrics on this port of its node."""
        self._call("serve", port)

    def _pause(self, seconds: float) -> None:
        """Sleep; in a long wait, report a new problem of the queue."""
        time.sleep(seconds)
        if seconds < _POLL_SECONDS[1]:
            return
        trouble = self.about()["trouble"]
        if trouble and trouble != self._last_trouble:
            progress.say(f"the job queue has a problem and keeps trying: {trouble}")
        self._last_trouble = trouble

    def _call(self, method: str, *arguments: Any) -> Any:
        deadline = time.monotonic() + _RESTART_SECONDS
        while True:
            try:
                return ray.get(getattr(self._handle, method).remote(*arguments))
            except RayTaskError as error:
                starting = isinstance(error.cause, NotReadyError | SupersededError)
                if not starting or time.monotonic() > deadline:
                    raise error.cause from None
            except ActorDiedError:
                if (handle := _find()) is None:
                    raise errors.StageError(
                        "the job queue was stopped; its jobs keep running: stillhouse jobs start --ledger DIR manages "
                        "them again"
                    ) from None
                self._handle = handle
            except RayActorError as error:
                if time.monotonic() > deadline:
                    raise errors.StageError(f"the job queue does not answer: {error}") from None
            time.sleep(_POLL_SECONDS[1])


def _find() -> Any:
    """Ray's handle of the running queue, or None."""
    try:
        return ray.get_actor(_NAME, namespace=NAMESPACE)
    except ValueError:
        return None
