"""Measure on this host in place of a phone: exports on few threads, in processes with little memory.

Such a proxy has another processor and clock, and the result says so. It shows whether a model fits into a phone's share
of memory, how it scales with threads, and how two models compare in one runtime.
"""

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import PositiveInt

from cluster.artifacts.errors import StageError
from cluster.artifacts.recipe import Recipe
from cluster.telemetry import progress
from eval.benchmark import host, workloads
from eval.benchmark.model_process import ModelProcess, ModelProcessError, Opening, write_inputs
from eval.mobile.timing_rows import MeasuredExport, Measurement, Row, compared, row

_OUT_OF_MEMORY = ("alloc", "memory", "died (signal")
"""Parts of the messages of runtimes that lack memory; some crash instead."""


class Proxy(Recipe):
    """This host with a phone's memory; no report calls it a phone."""

    kind: Literal["proxy"] = "proxy"
    """A stand-in on this host."""
    memory_megabytes: PositiveInt = 1024
    """Memory for the model and its calls; most phones give an app less."""


class DoesNotFitError(StageError):
    """A model needs more memory than it may use."""


def measure(models: Sequence[MeasuredExport], settings: Measurement, megabytes: int) -> dict[str, Any]:
    """Facts of a benchmark: rows, problems, the host, and how quiet it was.

    Raises:
        StageError: a model does not run at all, or this host has not enough cores for any entry of ``threads``.
    """
    rows: list[Row] = []
    problems: list[dict[str, Any]] = []
    conditions, cores = [], host.usable_cores()
    turns = [(length, count) for length in settings.lengths for count in settings.threads]
    for length, count in progress.progress(turns, "proxy", len(turns), "settings"):
        # The smallest number of threads is not skipped, so that host.pinned raises if no number has enough cores.
        if count > max(cores, min(settings.threads)):
            problems.append({"length": length, "threads": count, "error": f"only {cores} cores may be used here"})
            continue
        with host.pinned(count) as held:
            watch = host.InterferenceMonitor(count, held)
            found, refused = _turns(models, settings, megabytes, length, count)
            conditions.append(watch.conditions())
        rows += found
        problems += refused
    reasons = [each.unfit for each in conditions if each.unfit]
    about = {**host.describe(), "conditions": [each.facts() for each in conditions]}
    return {"device": about, "rows": compared(rows), "problems": problems, "unfit": reasons[0] if reasons else None}


def _turns(
    models: Sequence[MeasuredExport], settings: Measurement, megabytes: int, length: int, count: int
) -> tuple[list[Row], list[dict[str, Any]]]:
    """Rows and problems of all models, called in turns, at one length and number of threads."""
    with contextlib.ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "inputs.npz"
        opened: dict[str, ModelProcess] = {}
        times: dict[str, list[float]] = {}
        problems = []
        for model in models:
            try:
                process, first = stack.enter_context(_open(model, length, count, megabytes, place))
                opened[model.role], times[model.role] = process, [first]
            except DoesNotFitError as error:
                problems.append({"model": model.role, "length": length, "threads": count, "error": str(error)})
        for _ in range(settings.warmup + settings.repeats):
            for role, process in opened.items():
                times[role].append(process.first())
        rows = [
            row(
                model.role, opened[model.role].opened["runtime"], count, length,
                times[model.role][1 + settings.warmup :], **model.facts(), **opened[model.role].end(),
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
    """A model's process, and the milliseconds of its first call, after which it needs no more memory.

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
