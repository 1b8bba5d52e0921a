"""The worker of a job: a detached Ray actor that outlives the queue's actor, so that a restarted queue finds it again.

A worker runs one call at a time and keeps the result of each. A request for the result waits in the actor's queue
behind the running call; that is how a restarted queue learns the end of a job that its predecessor started.
"""

import contextlib
import io
import os
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypedDict

import psutil

from cluster.artifacts import artifact, commit, errors, registry, stage
from cluster.jobs.failures import is_busy, is_memory, is_outage
from cluster.jobs.job import Job
from cluster.storage import filesystem
from cluster.telemetry.host_memory import memory_kills, memory_numbers, node_memory


class WorkerProcess(TypedDict):
    """Where a worker runs, and what :func:`clear` compares later."""

    host: str
    process: int
    created: float
    memory_kills: int | None


@dataclass(frozen=True)
class Call:
    """One attempt at a job."""

    key: str
    """Unique to this attempt."""
    job: Job
    log: Path
    halves: bool
    """Use half the micro-batch, if the stage can."""
    first: bool
    """The job's first attempt: an artifact that already exists was not made by it."""


@dataclass(frozen=True)
class CallResult:
    """How an attempt ended in its worker."""

    status: Literal["done", "skipped", "user", "outage", "memory", "busy"]
    seconds: float
    error: str | None = None
    reusable: bool = True
    """Whether the worker may run another job."""


class Worker:
    """The actor."""

    def __init__(self) -> None:
        self._results: dict[str, CallResult] = {}

    def describe(self) -> WorkerProcess:
        process = psutil.Process()
        return {
            "host": socket.gethostname(),
            "process": process.pid,
            "created": process.create_time(),
            "memory_kills": memory_kills(),
        }

    def run(self, call: Call) -> CallResult:
        """Run a call and write its output to its log; a repeated call returns the stored result."""
        if call.key not in self._results:
            _set_environment(call)
            result = attempt(call)
            left = psutil.Process().children(recursive=True)
            kill(left)
            self._results[call.key] = replace(result, reusable=result.reusable and not left)
        return self._results[call.key]

    def result(self, key: str) -> CallResult | None:
        """Result of an attempt; None for one that this worker never received."""
        return self._results.get(key)


def _set_environment(call: Call) -> None:
    if not call.job.gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # if unset, a job without a GPU would use one
    if call.job.alone:
        # The worker holds all CPUs of its node, so Ray sets this to all of them instead of what the job asked for.
        os.environ["OMP_NUM_THREADS"] = str(max(1, int(call.job.cpus or 0)))


def attempt(call: Call) -> CallResult:
    """Run a call in this process."""
    started = time.monotonic()
    try:
        complete = filesystem.is_file(call.job.out / commit.MANIFEST)
        log = call.log.open("a", encoding="utf-8", errors="backslashreplace")
        with log as file, _output_to(file), working_in(call.job.cwd):
            try:
                _execute(call)
            except BaseException as error:
                if (line := errors.explain(error)) is not None:
                    print(f"error: {line}", file=file)
                else:
                    traceback.print_exc(file=file)
                raise
    except BaseException as error:  # SystemExit too: a stage must not end the worker
        return _failed(call, error, time.monotonic() - started)
    return CallResult("skipped" if complete and call.first else "done", time.monotonic() - started)


def _execute(call: Call) -> None:
    called = registry.find(call.job.stage)
    recipe = called.read(call.job.recipe, call.job.name)
    if call.halves and (halved := called.halved(recipe)) is not None:
        changed = artifact.first_difference(recipe.identity(), halved.identity())
        assert changed is None, f"{call.job.stage} halves more than its placement: {changed}"
        print("memory ran out before: this attempt has half the micro-batch", flush=True)
        recipe = halved
    stage.execute(called, recipe, call.job.inputs, call.job.out)


def _failed(call: Call, error: BaseException, seconds: float) -> CallResult:
    text = errors.describe(error).encode(errors="backslashreplace").decode()  # file names need not be Unicode
    if is_busy(error):
        return CallResult("busy", seconds, text)
    if is_memory(error):
        return CallResult("memory", seconds, f"{text}; {memory_numbers()}", reusable=False)
    bug = errors.explain(error) is None
    if is_outage(error):
        return CallResult("outage", seconds, text, reusable=not bug)
    return CallResult("user", seconds, f"{text} (a bug: see {call.log})" if bug else text, reusable=not bug)


def clear(worker: WorkerProcess) -> str | None:
    """On a worker's node: kill the worker, if it lives, and all its child processes.

    Returns the memory of the node if the kernel has killed a process for memory since the worker started. The
    creation time tells the worker from a later process with the same id.
    """
    kills, group = memory_kills(), worker["process"]
    ran_out = kills is not None and worker["memory_kills"] is not None and kills > worker["memory_kills"]
    memory = node_memory() if ran_out else None
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(group)
        if process.create_time() != worker["created"]:
            return memory
        kill([process, *process.children(recursive=True)])
    # Ray makes each worker a process group leader; the system reuses the id only after the whole group is gone.
    kill([process for process in psutil.process_iter() if _group(process.pid) == group != os.getpgrp()])
    return memory


def kill(processes: list[psutil.Process]) -> None:
    """Kill processes and wait until they are gone."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=10)


def _group(process: int) -> int | None:
    try:
        return os.getpgid(process)
    except OSError:
        return None


@contextlib.contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """Inside the block, resolve relative paths in the submitter's folder, if this node has it."""
    with contextlib.chdir(folder) if folder.is_dir() else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def _output_to(file: io.TextIOWrapper) -> Iterator[None]:
    """Redirect stdout and stderr to ``file``, output of C libraries included."""
    saved = [os.dup(descriptor) for descriptor in (1, 2)]
    sys.stdout.flush()
    sys.stderr.flush()
    for descriptor in (1, 2):
        os.dup2(file.fileno(), descriptor)
    try:
        with errors.logging_to_stderr():
            yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for descriptor, before in zip((1, 2), saved, strict=True):
            os.dup2(before, descriptor)
            os.close(before)
