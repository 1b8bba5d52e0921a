"""Jobs: stage calls with resources and an order, run as Ray tasks.

A job is done when its artifact is complete, so running the same jobs again runs only what is missing. Jobs start in
the order they are given, as soon as what they come after is done and the cluster has room; a failed job stops only
those that come after it. What the cluster broke (a worker or node died) is tried again; what the user broke is not.
"""

import contextlib
import io
import os
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import ray

from cluster import artifact, stage, telemetry

RETRIES = 2
POLL_SECONDS = 1.0


@dataclass(frozen=True)
class Job:
    """One stage call: module, recipe values, inputs by role, where its artifact will be, and what it needs."""

    name: str
    module: str
    recipe: Mapping[str, Any]
    inputs: Mapping[str, Path]
    out: Path
    after: tuple[str, ...] = ()
    """Names of jobs that must be done first."""
    cpus: float = 1
    gpus: float = 0
    alone: bool = False
    """Nothing else of these jobs runs meanwhile: for measurements of time."""
    cwd: Path = field(default_factory=Path.cwd)
    """Where relative paths in the recipe start, on nodes that have this folder."""


@dataclass(frozen=True)
class Outcome:
    """How a job ended. ``skipped``: its artifact was complete before."""

    name: str
    state: Literal["done", "skipped", "failed"]
    seconds: float = 0.0
    error: str | None = None
    log: str | None = None

    def resolved(self) -> dict[str, Any]:
        return asdict(self)


def run(jobs: Sequence[Job], logs: Path) -> list[Outcome]:
    """Run all jobs on the connected Ray cluster; one outcome each, in the order given.

    Raises:
        StageError: a job needs more than the cluster has, or comes after a job that is not before it.
    """
    _check(jobs)
    queue = _Queue(list(jobs), logs)
    with telemetry.Progress("jobs", len(jobs), "jobs") as shown:
        for outcome in queue.outcomes():
            shown.advance()
            telemetry.say(_sentence(outcome))
    return [queue.ended[job.name] for job in jobs]


@dataclass
class _Queue:
    waiting: list[Job]
    logs: Path
    ended: dict[str, Outcome] = field(default_factory=dict)
    running: dict[Any, Job] = field(default_factory=dict)
    shown: dict[str, int] = field(default_factory=dict)
    """Characters of each log that were shown."""

    def outcomes(self) -> Iterator[Outcome]:
        """Outcomes as they come, until there is nothing left to run."""
        while self.waiting or self.running:
            for outcome in self._start_what_can():
                yield self._end(outcome)
            finished, _ = (
                ray.wait(list(self.running), num_returns=1, timeout=POLL_SECONDS) if self.running else ([], [])
            )
            self._show_logs()
            for reference in finished:
                yield self._end(_collected(self.running.pop(reference), reference))

    def _show_logs(self) -> None:
        """Repeat what the running jobs have written to their logs since the last look."""
        for job in self.running.values():
            log = _log(self.logs, job)
            text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
            end = text.rfind("\n") + 1
            for line in filter(str.strip, text[self.shown[job.name] : end].splitlines()):
                telemetry.say(f"[{job.name}] {line}")
            self.shown[job.name] = end

    def _end(self, outcome: Outcome) -> Outcome:
        self.ended[outcome.name] = outcome
        return outcome

    def _start_what_can(self) -> Iterator[Outcome]:
        for job in list(self.waiting):
            before = [self.ended[name] for name in job.after if name in self.ended]
            if (lost := next((outcome for outcome in before if outcome.state == "failed"), None)) is not None:
                self.waiting.remove(job)
                yield Outcome(job.name, "failed", error=f"{lost.name} failed, which comes before it")
            elif len(before) == len(job.after):
                if not self._fits(job):
                    # Strict order: nothing overtakes a job that is ready but waits for room.
                    return
                self.waiting.remove(job)
                self.running[self._submit(job)] = job

    def _fits(self, job: Job) -> bool:
        if not self.running:
            return True  # and where a node has left meanwhile, Ray waits for it to come back
        if job.alone or any(other.alone for other in self.running.values()):
            return False
        free = ray.cluster_resources()
        cpus = sum(other.cpus for other in self.running.values()) + job.cpus
        gpus = sum(other.gpus for other in self.running.values()) + job.gpus
        return bool(cpus <= free.get("CPU", 0) and gpus <= free.get("GPU", 0))

    def _submit(self, job: Job) -> Any:
        log = _log(self.logs, job)
        log.parent.mkdir(parents=True, exist_ok=True)
        # What an earlier attempt wrote stays in the log, but is not shown again.
        self.shown[job.name] = len(log.read_text(encoding="utf-8", errors="replace")) if log.exists() else 0
        options = {"num_cpus": job.cpus, "num_gpus": job.gpus, "max_retries": RETRIES, "name": job.name}
        # A worker that had a GPU ends with its job: it would keep the memory, and Ray would call the GPU free.
        work = ray.remote(max_calls=1)(_work) if job.gpus else ray.remote(_work)
        return work.options(**options).remote(job, str(log))


def _log(logs: Path, job: Job) -> Path:
    return logs / f"{job.name.replace('/', '-')}.log"


def _check(jobs: Sequence[Job]) -> None:
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    names = set[str]()
    for job in jobs:
        if job.name in names:
            raise stage.StageError(f"two jobs are called {job.name}: give every job a name of its own")
        if unknown := sorted({*job.after} - names):
            raise stage.StageError(f"job {job.name} comes after {unknown[0]}, which is not among the jobs before it")
        names.add(job.name)
        if not any(job.cpus <= node.get("CPU", 0) and job.gpus <= node.get("GPU", 0) for node in nodes):
            have = ", ".join(f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes)
            raise stage.StageError(
                f"job {job.name} needs {job.cpus:g} CPUs and {job.gpus:g} GPUs on one node, the nodes have {have}: "
                "ask for less, or start a larger node"
            )


def _work(job: Job, log: str) -> Outcome:
    """Run a job in this worker, everything it prints going to its log."""
    if not job.gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # left unset, a job without a GPU would take one all the same
    started = time.monotonic()
    complete = (job.out / artifact.MANIFEST).is_file()
    error = None
    with Path(log).open("a", encoding="utf-8") as file, _printing_to(file), working_in(job.cwd):
        try:
            called = stage.find(job.module)
            stage.execute(called, called.recipe.of(job.recipe, job.name), job.inputs, job.out)
        except Exception as raised:  # one failed job never stops the others; the report lists it
            error = stage.explain(raised) or f"{type(raised).__name__}: {raised} (a bug: see {log})"
            traceback.print_exc(file=file)
    seconds = time.monotonic() - started
    state: Literal["done", "skipped", "failed"] = "failed" if error else "skipped" if complete else "done"
    return Outcome(job.name, state, seconds, error, log)


def _collected(job: Job, reference: Any) -> Outcome:
    try:
        found: Outcome = ray.get(reference)
    except ray.exceptions.RayError as error:
        reason = str(error).splitlines()[0]
        return Outcome(job.name, "failed", error=f"its worker died {RETRIES + 1} times: {reason}")
    return found


@contextlib.contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """Inside the block, relative paths mean what they mean to whoever started the work, where that folder exists."""
    with contextlib.chdir(folder) if folder.is_dir() else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def _printing_to(file: io.TextIOWrapper) -> Iterator[None]:
    """Send stdout and stderr to ``file``, those of libraries written in C too."""
    saved = [os.dup(descriptor) for descriptor in (1, 2)]
    sys.stdout.flush()
    sys.stderr.flush()
    for descriptor in (1, 2):
        os.dup2(file.fileno(), descriptor)
    try:
        with stage.logging_to_stderr():
            yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for descriptor, before in zip((1, 2), saved, strict=True):
            os.dup2(before, descriptor)
            os.close(before)


def _sentence(outcome: Outcome) -> str:
    if outcome.state == "failed":
        return f"{outcome.name}: failed: {outcome.error}"
    return f"{outcome.name}: {'already complete' if outcome.state == 'skipped' else f'done in {outcome.seconds:.1f} s'}"
