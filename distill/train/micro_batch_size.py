"""Finds the micro-batch size by measuring (``placement.rows_per_device = "auto"``).

Larger micro-batches use the device better, up to a point, and take memory in proportion. Sizes are tried from one row
upwards, each only when the peaks of smaller sizes predict that it fits, so a trial never runs out of memory. All
workers try the same sizes together and agree on one.
"""

import copy
import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from cluster.models.precision import dtype_of
from cluster.telemetry import host_memory, progress
from cluster.telemetry.formatting import memory_size
from distill.config import Training
from distill.data.batches import Batch
from distill.data.schedule import OpenPhase
from distill.engine.deepspeed_engine import compile_layers
from distill.engine.process_group import Workers
from distill.engine.teacher_engine import TeacherEngine
from distill.modeling.masked_lm import Outputs, Projection, Taps, set_dropout
from distill.train.student_objective import StudentObjective

# Share of memory that stays free: the prediction is a line through few points, and fragmentation takes memory too.
_MARGIN = 0.15
# A larger micro-batch must train this much faster to be worth its memory.
_GAIN = 1.02
_REPEATS = 2


@dataclass(frozen=True)
class Trial:
    """Result of one size: seconds of a micro-batch on the slowest worker, and the largest peak in bytes."""

    rows: int
    seconds: float
    peak: int

    @property
    def rows_per_second(self) -> float:
        return self.rows / self.seconds


def rows(
    phase: OpenPhase, objective: StudentObjective, teacher: TeacherEngine | None, taps: Taps | None, workers: Workers
) -> int:
    """Rows of a micro-batch in this phase: from the recipe, or measured. Collective.

    The teacher computes ``taps``; nothing where they are None.
    """
    training = phase.training
    if training.placement.rows_per_device != "auto":
        return training.micro_rows(workers.world_size)
    taught = None if teacher is None or taps is None else partial(teacher, taps=taps)
    projection = teacher.projection if teacher else None
    take = partial(phase.batches.take, phase.first_step, 0)
    return measure(objective, taught, projection, take, training, workers)


def measure(
    objective: StudentObjective,
    teacher: Callable[[Batch], Outputs] | None,
    projection: Projection | None,
    take: Callable[[int], Batch],
    training: Training,
    workers: Workers,
) -> int:
    """Rows of the fastest micro-batch; divides a worker's rows of a step. Collective.

    ``take(n)`` returns a batch of ``n`` rows.
    """
    training.check_divides(workers.world_size)
    sizes = candidates(training.rows_per_step // workers.world_size)
    # A copy, because DeepSpeed needs the original weights in fp32.
    probe = copy.deepcopy(objective).to(device=workers.device, dtype=dtype_of(training.precision))
    set_dropout(probe, training.dropout)
    if training.placement.compiles(workers.device.type):
        compile_layers(probe)
    reserve = _training_state_bytes(probe, training, workers)

    def train(rows: int) -> None:
        batch = take(rows).to(workers.device)
        targets = teacher(batch) if teacher else None
        probe(batch, targets, projection).losses.total.backward()
        for parameter in probe.parameters():
            parameter.grad = None

    before = in_use(workers)
    limit = workers.free_memory - reserve
    trials = search(sizes, lambda rows: run_trial(train, rows, before, workers), limit, workers)
    del probe
    gc.collect()
    if workers.device.type == "cuda":
        torch.cuda.empty_cache()
    chosen = choose(trials)
    if workers.is_main_process:
        speeds = ", ".join(f"{trial.rows}: {trial.rows_per_second:.1f}" for trial in trials)
        progress.say(
            f"micro-batches of {chosen.rows} rows, {memory_size(chosen.peak)} on top of the weights (rows a second "
            f"and worker by size: {speeds})"
        )
    return chosen.rows


def candidates(rows: int) -> list[int]:
    """Sizes to try: divisors of a worker's rows of a step, each at least 1.5 times the one before."""
    sizes = [1]
    for size in range(2, rows + 1):
        if rows % size == 0 and size >= 1.5 * sizes[-1]:
            sizes.append(size)
    return sizes


def search(sizes: list[int], attempt: Callable[[int], Trial], limit: int, workers: Workers) -> list[Trial]:
    """Try rising sizes, up to the last that fits ``limit`` bytes or the second in a row that is no faster."""
    trials: list[Trial] = []
    for rows in sizes:
        if trials and not _all_agree(predicted_peak(trials, rows) <= limit * (1 - _MARGIN), workers):
            break
        trials.append(attempt(rows))
        if len(trials) > 2 and choose(trials).rows <= trials[-3].rows:
            break
    return trials


def predicted_peak(trials: list[Trial], rows: int) -> float:
    """Predicted peak bytes of a size: on the line through the last two trials, or in proportion to the only one."""
    if len(trials) == 1:
        return trials[0].peak / trials[0].rows * rows
    previous, last = trials[-2:]
    slope = max(0.0, (last.peak - previous.peak) / (last.rows - previous.rows))
    return last.peak + slope * (rows - last.rows)


def choose(trials: list[Trial]) -> Trial:
    """The smallest size that is about as fast as the fastest."""
    best = max(trial.rows_per_second for trial in trials)
    return next(trial for trial in trials if trial.rows_per_second * _GAIN >= best)


def run_trial(train: Callable[[int], None], rows: int, before: int, workers: Workers) -> Trial:
    """Time a micro-batch and measure its peak above the ``before`` bytes in use before the first trial.

    Not before this trial: on a CPU, the process keeps much of the memory that a trial frees.
    """
    train(rows)  # compiles and warms caches
    _reset_peak(workers)
    seconds = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        train(rows)
        if workers.device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    measured = torch.tensor([statistics.median(seconds), float(_peak(workers) - before)], dtype=torch.float64)
    measured = measured.to(workers.device)
    torch.distributed.all_reduce(measured, op=torch.distributed.ReduceOp.MAX)
    slowest, peak = measured.tolist()
    return Trial(rows, slowest, int(peak))


def _all_agree(fits: bool, workers: Workers) -> bool:
    votes = torch.tensor(float(fits), device=workers.device)
    torch.distributed.all_reduce(votes, op=torch.distributed.ReduceOp.MIN)
    return bool(votes)


def _training_state_bytes(probe: StudentObjective, training: Training, workers: Workers) -> int:
    """Bytes that training holds besides a trial's: gradients, their sums, fp32 weights and two moments."""
    elements = sum(parameter.numel() for parameter in probe.parameters() if parameter.requires_grad)
    shared = workers.world_size if training.placement.zero_stage else 1
    return elements * (4 + 4) + elements * 3 * 4 // shared


def in_use(workers: Workers) -> int:
    """Bytes of device memory that this worker uses."""
    if workers.device.type == "cuda":
        return int(torch.cuda.memory_allocated(workers.device))
    return host_memory.resident()


def _reset_peak(workers: Workers) -> None:
    gc.collect()
    if workers.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(workers.device)
    else:
        host_memory.reset_peak()


def _peak(workers: Workers) -> int:
    if workers.device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(workers.device))
    peak = host_memory.status("VmHWM")
    assert peak is not None, "a peak needs Linux"
    return peak
