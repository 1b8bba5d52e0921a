"""Stand in for a phone on this host: exports on few threads, in processes of their own with little memory.

It is a proxy and says so: another processor, another clock. What it does tell is whether a model fits into a phone's
share of memory, how it scales over threads, and how two models compare in one runtime.

A model's process takes a line of JSON for what to open, and then answers every empty line with the milliseconds of a
call.
"""

import contextlib
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from cluster import exported, runtimes, telemetry
from cluster.stage import StageError
from eval import machine
from eval.mobile_rows import Model, Row, compared, row

MEGABYTE = 2**20
_OUT_OF_MEMORY = ("alloc", "memory")
"""Words that the runtimes use for it."""


@dataclass(frozen=True)
class Asked:
    """What is measured."""

    lengths: Sequence[int]
    threads: Sequence[int]
    warmup: int
    repeats: int
    memory_megabytes: int


class DoesNotFitError(StageError):
    """A model needs more memory than it was given."""


def measure(models: Sequence[Model], asked: Asked) -> dict[str, Any]:
    """Facts of a benchmark: rows, what did not fit, the host, and how quiet it was.

    Raises:
        StageError: a model does not run at all, or fewer cores than threads.
    """
    rows: list[Row] = []
    problems: list[dict[str, Any]] = []
    conditions = []
    turns = [(length, count) for length in asked.lengths for count in asked.threads]
    for length, count in telemetry.progress(turns, "proxy", len(turns), "settings"):
        with machine.pinned(count) as cores:
            watch = machine.Watch(count, cores)
            found, refused = _turns(models, asked, length, count)
            conditions.append(watch.conditions())
        rows += found
        problems += refused
    reasons = [each.unfit for each in conditions if each.unfit]
    about = {**machine.describe(), "conditions": [each.facts() for each in conditions]}
    return {"device": about, "rows": compared(rows), "problems": problems, "unfit": reasons[0] if reasons else None}


def _turns(models: Sequence[Model], asked: Asked, length: int, count: int) -> tuple[list[Row], list[dict[str, Any]]]:
    """All models in turns at one length on one number of threads."""
    with contextlib.ExitStack() as stack:
        opened: dict[str, _Process] = {}
        problems = []
        for model in models:
            try:
                opened[model.role] = stack.enter_context(_process(model, length, count, asked.memory_megabytes))
            except DoesNotFitError as error:
                problems.append({"model": model.role, "length": length, "threads": count, "error": str(error)})
        times: dict[str, list[float]] = {role: [] for role in opened}
        for _ in range(1 + asked.warmup + asked.repeats):
            for role, process in opened.items():
                times[role].append(process.call())
        ends = {role: process.end() for role, process in opened.items()}
    rows = [
        row(
            model.role, runtimes.described(model.known), count, length, times[model.role][1 + asked.warmup :],
            **model.facts(), **ends[model.role], first_ms=times[model.role][0],
            load_seconds=opened[model.role].load_seconds,
        )
        for model in models
        if model.role in opened
    ]  # fmt: skip
    return rows, problems


class _Process:
    """A model's process, asked from outside."""

    def __init__(self, process: "subprocess.Popen[str]", model: Model, memory: int) -> None:
        self._process, self._model, self._memory = process, model, memory
        self.load_seconds = 0.0

    @classmethod
    def opening(cls, process: "subprocess.Popen[str]", model: Model, asked: Mapping[str, Any]) -> Self:
        found = cls(process, model, int(asked["megabytes"]))
        found.load_seconds = float(found._ask(json.dumps(asked))["load_seconds"])
        return found

    def call(self) -> float:
        """Milliseconds of one call."""
        return float(self._ask("")["ms"])

    def end(self) -> dict[str, int]:
        """What it took: ``peak_memory_bytes`` with the interpreter, ``model_memory_bytes`` without."""
        said = self._ask("end")
        return {key: int(said[key]) for key in ("peak_memory_bytes", "model_memory_bytes")}

    def _ask(self, line: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it died; the answer that does not come says so
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()
        answer = self._process.stdout.readline()
        said: dict[str, Any] = json.loads(answer) if answer else {"error": "memory: the process was ended"}
        if (error := said.get("error")) is None:
            return said
        if any(word in error.lower() for word in _OUT_OF_MEMORY):
            raise DoesNotFitError(f"does not fit into {self._memory} MB")
        raise StageError(f"--{self._model.role} {self._model.path}: {error}")


@contextlib.contextmanager
def _process(model: Model, length: int, threads: int, megabytes: int) -> Iterator[_Process]:
    command = [sys.executable, "-m", "eval.mobile_proxy"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            asked = {"folder": str(model.path), "length": length, "threads": threads, "megabytes": megabytes}
            yield _Process.opening(process, model, asked)
        finally:
            process.kill()


def serve() -> None:
    """Be a model's process: open what the first line says, then answer line by line."""
    try:
        asked = json.loads(sys.stdin.readline())
        folder = Path(asked["folder"])
        known = exported.read(folder)
        runtimes.prepare(known)
        before = _resident()
        _limit(asked["megabytes"])
        started = time.perf_counter()
        call = runtimes.open_export(folder, asked["threads"])
        _say(load_seconds=time.perf_counter() - started)
        feed = _feed(known, asked["length"])
        while sys.stdin.readline() == "\n":
            started = time.perf_counter()
            call(feed)
            _say(ms=1000 * (time.perf_counter() - started))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        _say(peak_memory_bytes=peak, model_memory_bytes=max(0, peak - before))
    except Exception as error:  # whatever a runtime raises goes to whoever asked
        _say(error=f"{type(error).__name__}: {error}")


def _limit(megabytes: int) -> None:
    """Let the process allocate so much beyond what Python and the runtime's library took; mapped files do not count."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    taken = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmData"))
    most = taken + megabytes * MEGABYTE
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()


def _feed(known: exported.Exported, length: int) -> runtimes.Feed:
    ids = np.random.default_rng(length).integers(known.vocab_size // 2, known.vocab_size, (1, length))
    made = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    return {name: made[name] for name in known.inputs}


def _say(**values: Any) -> None:
    print(json.dumps(values), flush=True)


if __name__ == "__main__":
    serve()
