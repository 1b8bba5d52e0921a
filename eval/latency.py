"""Measure how long models take for one input, side by side in one process.

::

    python -m eval.latency RECIPE --student DIR [--teacher DIR] [--onnx DIR] [--int8 DIR] … --out DIR

Teacher and student run in PyTorch (eager, fp32), their exports in their own runtimes. Every repeat calls every model
once before the next repeat starts, so a machine that grows warm or busy does it to all of them alike. Token ids are
drawn from a seed and are the same for all models; tokenisation is not in the times. ``latency.json``::

    {"machine": {"processor": …, "flags": […], "pinned_cores": [1], "load_average": [0.1, 0.9],
                 "others_share_of_machine": 0.01, "others_share_of_pinned_cores": 0.0, …},
     "settings": {"lengths": [30, 128], "threads": 1, …},
     "fit": true, "unfit": null,                                  or why not: the machine was not quiet
     "rows": [{"model": "student", "runtime": "PyTorch 2.13.0", "length": 30, "p50_ms": …, "p90_ms": …, "p99_ms": …,
               "mean_ms": …, "min_ms": …, "first_ms": …, "load_seconds": …, "parameters": …, "bytes": …,
               "ratio_to_teacher": …}]}

``ratio_to_teacher`` is the teacher's PyTorch median at the same length over this one: 2 means twice as fast.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field, NonNegativeInt, PositiveInt

from cluster import artifact, exported, stage, telemetry
from cluster.recipe import Recipe
from eval import machine
from eval.runners import Ids, Runner, runner_for

FILE = "latency.json"


class Latency(Recipe):
    """A latency measurement."""

    lengths: tuple[PositiveInt, ...] = Field((30, 128), min_length=1)  # tokens of one input
    batch: PositiveInt = 1
    threads: PositiveInt = 1
    warmup: NonNegativeInt = 5  # calls of each model at each length that are not counted
    repeats: PositiveInt = 50
    seed: NonNegativeInt = 0


PYTORCH_ROLES = ("teacher", "student")


def load(inputs: Mapping[str, Path], threads: int) -> dict[str, Runner]:
    """A runner for each role.

    Raises:
        StageError: an export where the PyTorch model belongs, or a folder that does not load.
    """
    for role in PYTORCH_ROLES:
        if role in inputs and exported.is_export(inputs[role]):
            raise stage.StageError(
                f"--{role} {inputs[role]} is an export: give the model folder it was made from, and the export as "
                f"--{'onnx' if role == 'student' else 'teacher_onnx'}"
            )
    return {role: runner_for(folder, threads) for role, folder in inputs.items()}


def inputs_for(recipe: Latency, length: int, runners: Mapping[str, Runner]) -> tuple[Ids, Ids]:
    """Token ids and attention mask ``[batch, length]``, the same for every model.

    From the upper half of the smallest vocabulary, where no tokenizer keeps its padding token, which a model might
    treat in another way than a word.

    Raises:
        StageError: a model has fewer positions than ``length``.
    """
    for name, runner in runners.items():
        if length > runner.loaded.positions:
            raise stage.StageError(
                f"lengths: {length} tokens are more than {name} has positions ({runner.loaded.positions}): leave it out"
            )
    vocab_size = min(runner.loaded.vocab_size for runner in runners.values())
    chance = np.random.default_rng((recipe.seed, length))
    ids = chance.integers(vocab_size // 2, vocab_size, (recipe.batch, length))
    return ids, np.ones_like(ids)


def time_calls(
    recipe: Latency, runners: Mapping[str, Runner], given: tuple[Ids, Ids], shown: telemetry.Progress
) -> dict[str, list[float]]:
    """Milliseconds of every call by model, in order: the first, the warm-up, then the repeats."""
    times: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(1 + recipe.warmup + recipe.repeats):
        for name, runner in runners.items():
            started = time.perf_counter()
            runner(*given)
            times[name].append(1000 * (time.perf_counter() - started))
        shown.advance()
    return times


def summarise(times: list[float], warmup: int) -> dict[str, float]:
    """Percentiles of the counted calls, and the first call, in milliseconds."""
    counted = np.array(times[1 + warmup :])
    p50, p90, p99 = np.percentile(counted, (50, 90, 99))
    return {
        "p50_ms": float(p50),
        "p90_ms": float(p90),
        "p99_ms": float(p99),
        "mean_ms": float(counted.mean()),
        "min_ms": float(counted.min()),
        "first_ms": times[0],
    }


def measure(recipe: Latency, runners: Mapping[str, Runner]) -> list[dict[str, Any]]:
    """One row per length and model.

    Raises:
        StageError: a length is more than a model has positions.
    """
    given = {length: inputs_for(recipe, length, runners) for length in recipe.lengths}
    rows = []
    calls = len(given) * (1 + recipe.warmup + recipe.repeats)
    with telemetry.Progress("latency", calls, "rounds") as shown:
        for length, arrays in given.items():
            times = time_calls(recipe, runners, arrays, shown)
            found = {name: summarise(values, recipe.warmup) for name, values in times.items()}
            teacher = found.get("teacher")
            for name, numbers in found.items():
                loaded = runners[name].loaded
                rows.append(
                    {
                        "model": name,
                        "runtime": loaded.runtime,
                        "length": length,
                        **numbers,
                        "load_seconds": loaded.load_seconds,
                        "parameters": loaded.parameters,
                        "bytes": loaded.bytes,
                        "ratio_to_teacher": teacher["p50_ms"] / numbers["p50_ms"] if teacher else None,
                    }
                )
    return rows


def run(recipe: Latency, inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
    threads_before = torch.get_num_threads()
    try:
        with machine.pinned(recipe.threads) as cores:
            runners = load(inputs, recipe.threads)
            watch = machine.Watch(recipe.threads, cores)
            rows = measure(recipe, runners)
            conditions = watch.conditions()
    finally:
        torch.set_num_threads(threads_before)
    about = {**machine.describe(), "pinned_cores": cores, **conditions.facts()}
    facts = {"machine": about, **conditions.verdict(), "rows": rows}
    artifact.write_json(out / FILE, {"settings": recipe.resolved(), **facts})
    return facts


PYTORCH = stage.Role((stage.FOLDER,), optional=True)
EXPORT = stage.Role(("export",), optional=True)

STAGE = stage.Stage(
    run=run,
    recipe=Latency,
    inputs={
        "teacher": PYTORCH,
        "student": stage.Role((stage.FOLDER,)),
        "onnx": EXPORT,
        "int8": EXPORT,
        "teacher_onnx": EXPORT,
        "teacher_int8": EXPORT,
    },
    produces="benchmark",
)

if __name__ == "__main__":
    stage.main(STAGE)
