"""Stand in for a phone on this host: exports on few threads, in processes of their own with little memory.

It is a proxy and says so: another processor, another clock. What it does tell is whether a model fits into a phone's
share of memory, how it scales over threads, and how two models compare in one runtime.
"""

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.artifacts.errors import StageError
from cluster.telemetry import progress
from eval.benchmark import host, workloads
from eval.benchmark.model_process import ModelProcess, ModelProcessError, Opening, write_inputs
from eval.mobile.timing_rows import MeasuredExport, Row, compared, row

_OUT_OF_MEMORY = ("alloc", "memory", "died (signal")
"""Words that the runtimes use for it, or what is left of those that do not look at what they are given."""


@dataclass(frozen=True)
class ProxyRequest:
    """What is measured."""

    lengths: Sequence[int]
    threads: Sequence[int]
    warmup: int
    repeats: int
    memory_megabytes: int


class DoesNotFitError(StageError):
    """A model needs more memory than it was given."""


def measure(models: Sequence[MeasuredExport], asked: ProxyRequest) -> dict[str, Any]:
    """Facts of a benchmark: rows, what did not fit, the host, and how quiet it was.

    Raises:
        StageError: a model does not run at all, or not one of ``asked.threads`` has cores enough.
    """
    rows: list[Row] = []
    problems: list[dict[str, Any]] = []
    conditions, cores = [], host.usable_cores()
    turns = [(length, count) for length in asked.lengths for count in asked.threads]
    for length, count in progress.progress(turns, "proxy", len(turns), "settings"):
        # As a phone does: what it has no cores for is told. One that has none for anything refuses below.
        if count > max(cores, min(asked.threads)):
            problems.append({"length": length, "threads": count, "error": f"only {cores} cores may be used here"})
            continue
        with host.pinned(count) as held:
            watch = host.InterferenceMonitor(count, held)
            found, refused = _turns(models, asked, length, count)
            conditions.append(watch.conditions())
        rows += found
        problems += refused
    reasons = [each.unfit for each in conditions if each.unfit]
    about = {**host.describe(), "conditions": [each.facts() for each in conditions]}
    return {"device": about, "rows": compared(rows), "problems": problems, "unfit": reasons[0] if reasons else None}


def _turns(
    models: Sequence[MeasuredExport], asked: ProxyRequest, length: int, count: int
) -> tuple[list[Row], list[dict[str, Any]]]:
    """All models in turns at one length on one number of threads."""
    with contextlib.ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "inputs.npz"
        opened: dict[str, ModelProcess] = {}
        times: dict[str, list[float]] = {}
        problems = []
        for model in models:
            try:
                process, first = stack.enter_context(_open(model, length, count, asked.memory_megabytes, place))
                opened[model.role], times[model.role] = process, [first]
            except DoesNotFitError as error:
                problems.append({"model": model.role, "length": length, "threads": count, "error": str(error)})
        for _ in range(asked.warmup + asked.repeats):
            for role, process in opened.items():
                times[role].append(process.first())
        rows = [
            row(
                model.role, opened[model.role].opened["runtime"], count, length,
                times[model.role][1 + asked.warmup :], **model.facts(), **opened[model.role].end(),
                first_ms=times[model.role][0], load_seconds=opened[model.role].opened["open_seconds"],
            )
            for model in models
            if model.role in opened
        ]  # fmt: skip
    return rows, problems


@contextlib.contextmanager
def _open(
    model: MeasuredExport, length: int, threads: int, megabytes: int, place: Path
) -> Iterator[tuple[ModelProcess, float]]:
    """A model's process, and the milliseconds of its first call, after which it takes no more memory.

    Raises:
        DoesNotFitError: it needs more memory.
        StageError: it does not run at all.
    """
    opening = Opening(f"--{model.role} {model.path}", "export", model.path, threads, megabytes)
    with contextlib.ExitStack() as stack:
        try:
            process = stack.enter_context(ModelProcess(opening))
            write_inputs(place, workloads.drawn(length, 1, 1, model.known.vocab_size, 0).rows)
            process.take(place)
            first = process.first()
        except ModelProcessError as error:
            if any(word in str(error).lower() for word in _OUT_OF_MEMORY):
                raise DoesNotFitError(f"does not fit into {megabytes} MB") from None
            raise
        yield process, first
