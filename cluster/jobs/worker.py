"""The worker that a job runs in: a Ray actor that outlives the queue, so that a queue that was lost finds it again.

A worker runs one call at a time and remembers how each ended. Whoever asks meanwhile is answered when the call has
ended: that is how a new queue waits for a job that an old one has started.
"""

import contextlib
import io
import os
import socket
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import psutil

from cluster.artifacts import artifact, commit, errors, registry, stage
from cluster.artifacts.recipe import Recipe
from cluster.jobs.failures import is_busy, is_memory, is_outage
from cluster.storage import filesystem
from cluster.telemetry.host_memory import memory_kills, memory_numbers, node_memory


@dataclass(frozen=True)
class Call:
    """One attempt at a job."""

    key: str
    """Of this attempt and no other."""
    name: str
    stage: str
    recipe: Mapping[str, Any]
    inputs: Mapping[str, str]
    out: str
    cwd: str
    log: str
    cpus: float
    gpus: float
    alone: bool
    halves: bool
    """Run with half the micro-batch, where the stage knows how."""
    first: bool
    """No attempt at this job was made before: what is there already was not made by it."""


@dataclass(frozen=True)
class Ended:
    """How an attempt ended."""

    result: Literal["done", "skipped", "user", "outage", "memory", "busy"]
    seconds: float
    error: str | None = None
    fit: bool = True
    """Whether the worker may run another job."""


class Worker:
    """The actor."""

    def __init__(self) -> None:
        self._ended: dict[str, Ended] = {}

    def about(self) -> dict[str, Any]:
        """Where it is, and what :func:`clear` must know of it."""
        process = psutil.Process()
        return {
            "host": socket.gethostname(),
            "process": process.pid,
            "created": process.create_time(),
            "memory_kills": memory_kills(),
        }

    def run(self, call: Call) -> Ended:
        """Run a call, everything it prints going to its log; the same call again is only answered."""
        if call.key not in self._ended:
            _settle_environment(call)
            ended = attempt(call)
            left = psutil.Process().children(recursive=True)
            kill(left)
            self._ended[call.key] = replace(ended, fit=ended.fit and not left)
        return self._ended[call.key]

    def ended(self, key: str) -> Ended | None:
        """How a call ended; None for one that never came here."""
        return self._ended.get(key)


def _settle_environment(call: Call) -> None:
    if not call.gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # left unset, a job without a GPU would take one all the same
    if call.alone:
        # It holds all CPUs of its node, so Ray tells it to use them all; it is to use what it asked for.
        os.environ["OMP_NUM_THREADS"] = str(max(1, int(call.cpus)))


def attempt(call: Call) -> Ended:
    """Run a call in this process."""
    started = time.monotonic()
    try:
        complete = filesystem.is_file(filesystem.location(call.out) / commit.MANIFEST)
        with (
            Path(call.log).open("a", encoding="utf-8", errors="backslashreplace") as file,
            _printing_to(file),
            working_in(Path(call.cwd)),
        ):
            try:
                _execute(call)
            except BaseException as error:
                if (line := errors.explain(error)) is not None:
                    print(f"error: {line}", file=file)
                else:
                    traceback.print_exc(file=file)
                raise
    except BaseException as error:  # also what would end the process: a stage must not take the worker along
        return _failed(call, error, time.monotonic() - started)
    return Ended("skipped" if complete and call.first else "done", time.monotonic() - started)


def _execute(call: Call) -> None:
    called = registry.find(call.stage)
    recipe = called.recipe.of(call.recipe, call.name)
    if call.halves and called.halved is not None and (halved := called.halved(recipe)) is not None:
        _check_halved(call.stage, recipe, halved)
        print("memory ran out before: this attempt has half the micro-batch", flush=True)
        recipe = halved
    inputs = {role: filesystem.location(place) for role, place in call.inputs.items()}
    stage.execute(called, recipe, inputs, filesystem.location(call.out))


def _check_halved(module: str, recipe: Recipe, halved: Recipe) -> None:
    changed = artifact.first_difference(recipe.identity(), halved.identity())
    assert changed is None, f"{module} halves more than its placement: {changed}"


def _failed(call: Call, error: BaseException, seconds: float) -> Ended:
    plain = errors.describe(error).encode(errors="backslashreplace").decode()  # names of files need not be Unicode
    if is_busy(error):
        return Ended("busy", seconds, plain)
    if is_memory(error):
        return Ended("memory", seconds, f"{plain}; {memory_numbers()}", fit=False)
    bug = errors.explain(error) is None
    if is_outage(error):
        return Ended("outage", seconds, plain, fit=not bug)
    return Ended("user", seconds, f"{plain} (a bug: see {call.log})" if bug else plain, fit=not bug)


def clear(worker: Mapping[str, Any]) -> str | None:
    """On a worker's node: kill what is left of it, its child processes included.

    Returns the memory of the node in words where the kernel has killed somebody for it since the worker began. The
    number of a process may have been given to another one since; that one is left alone.
    """
    kills, group = memory_kills(), worker["process"]
    ran_out = kills is not None and worker["memory_kills"] is not None and kills > worker["memory_kills"]
    words = node_memory() if ran_out else None
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(group)
        if process.create_time() != worker["created"]:
            return words
        kill([process, *process.children(recursive=True)])
    # Ray makes each worker the leader of a group of processes, whose number is not given again while any of it lives.
    kill([process for process in psutil.process_iter() if _group(process.pid) == group != os.getpgrp()])
    return words


def kill(processes: list[psutil.Process]) -> None:
    """Kill processes, and wait until they are gone."""
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
        with errors.logging_to_stderr():
            yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for descriptor, before in zip((1, 2), saved, strict=True):
            os.dup2(before, descriptor)
            os.close(before)
