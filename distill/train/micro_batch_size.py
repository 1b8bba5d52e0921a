"""How many rows a micro-batch should have, found by measuring (``placement.rows_per_device = "auto"``).

Larger micro-batches fill the device better until nothing is gained, and take memory in proportion. Sizes are tried from
one row upwards, each only when the memory of the ones before says that it will fit, so that nothing ever runs out of
memory on the way. All workers try the same sizes together and agree.
"""

import copy
import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from cluster.models.precision import DTYPES
from cluster.telemetry import host_memory, progress
from distill.config import Training
from distill.data.batches import Batch
from distill.data.schedule import OpenPhase
from distill.engine.deepspeed_engine import compile_layers
from distill.engine.process_group import Workers
from distill.engine.teacher_engine import TeacherEngine
from distill.train.student_objective import Learner

# Memory that stays free: a prediction is a straight line through few points, and fragments take their share.
_MARGIN = 0.15
# A larger micro-batch must train this much faster to be worth its memory.
_GAIN = 1.02
_REPEATS = 2
_PEAK_RESET = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Trial:
    """What one size took: seconds of a micro-batch on the slowest worker, and peak memory in bytes of the fullest."""

    rows: int
    seconds: float
    peak: int

    @property
    def rows_per_second(self) -> float:
        return self.rows / self.seconds


def rows(phase: OpenPhase, learner: Learner, teacher: TeacherEngine | None, workers: Workers) -> int:
    """Rows of a micro-batch in this phase: what the recipe says, or what was measured to train fastest.

    Called by all workers together.
    """
    training = phase.training
    if training.placement.rows_per_device != "auto":
        return training.micro_rows(workers.world_size)
    return measure(learner, teacher, lambda count: phase.batches.take(phase.first_step, 0, count), training, workers)


def measure(
    learner: Learner, teacher: TeacherEngine | None, take: Callable[[int], Batch], training: Training, workers: Workers
) -> int:
    """Rows of the micro-batch that trains fastest; divides a worker's rows of a step. Called by all workers together.

    ``take(n)`` gives a batch of ``n`` rows.
    """
    training.check_divides(workers.world_size)
    sizes = candidates(training.rows_per_step // workers.world_size)
    # A copy: DeepSpeed wants the weights as they are, in fp32.
    probe = copy.deepcopy(learner).to(device=workers.device, dtype=DTYPES[training.precision])
    if training.placement.compiles(workers.device.type):
        compile_layers(probe)
    reserve = _still_to_come(probe, training, workers)

    def once(rows: int) -> None:
        batch = take(rows).to(workers.device)
        taught = teacher(batch) if teacher else None
        probe(batch, taught, teacher.projection if teacher else None).losses.total.backward()
        for parameter in probe.parameters():
            parameter.grad = None

    held = in_use(workers)
    trials = search(sizes, lambda rows: tried(once, rows, held, workers), _limit(workers) - reserve, workers)
    del probe
    gc.collect()
    if workers.device.type == "cuda":
        torch.cuda.empty_cache()
    chosen = choose(trials)
    if workers.leads:
        progress.say(_said(trials, chosen))
    return chosen.rows


def candidates(rows: int) -> list[int]:
    """Sizes to try for so many rows a step and worker: its divisors, each at least half as large again as the last."""
    found = [1]
    for size in range(2, rows + 1):
        if rows % size == 0 and size >= 1.5 * found[-1]:
            found.append(size)
    return found


def search(sizes: list[int], attempt: Callable[[int], Trial], limit: int, workers: Workers) -> list[Trial]:
    """Trials of rising sizes, up to the last that fits ``limit`` bytes or the second that gains nothing."""
    trials: list[Trial] = []
    for rows in sizes:
        if trials and not _all_agree(predicted_peak(trials, rows) <= limit * (1 - _MARGIN), workers):
            break
        trials.append(attempt(rows))
        if len(trials) > 2 and choose(trials).rows <= trials[-3].rows:
            break
    return trials


def predicted_peak(trials: list[Trial], rows: int) -> float:
    """Bytes a size will take: on the straight line through the last two trials, or in proportion to the only one."""
    if len(trials) == 1:
        return trials[0].peak / trials[0].rows * rows
    before, last = trials[-2:]
    slope = max(0.0, (last.peak - before.peak) / (last.rows - before.rows))
    return last.peak + slope * (rows - last.rows)


def choose(trials: list[Trial]) -> Trial:
    """The smallest size that is about as fast as the fastest."""
    best = max(trial.rows_per_second for trial in trials)
    return next(trial for trial in trials if trial.rows_per_second * _GAIN >= best)


def tried(once: Callable[[int], None], rows: int, held: int, workers: Workers) -> Trial:
    """What a micro-batch takes beside the ``held`` bytes that were in use before the first trial.

    Not before this one: much of what a trial frees stays with the process, on a CPU, and is still taken.
    """
    once(rows)  # compiles, and warms caches
    _reset_peak(workers)
    seconds = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        once(rows)
        if workers.device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    found = torch.tensor([statistics.median(seconds), float(_peak(workers) - held)], dtype=torch.float64)
    found = found.to(workers.device)
    torch.distributed.all_reduce(found, op=torch.distributed.ReduceOp.MAX)
    slowest, peak = found.tolist()
    return Trial(rows, slowest, int(peak))


def _all_agree(fits: bool, workers: Workers) -> bool:
    votes = torch.tensor(float(fits), device=workers.device)
    torch.distributed.all_reduce(votes, op=torch.distributed.ReduceOp.MIN)
    return bool(votes)


def _still_to_come(probe: Learner, training: Training, workers: Workers) -> int:
    """Bytes that training will hold and the trial does not: gradients, their sums, fp32 weights and two moments."""
    elements = sum(parameter.numel() for parameter in probe.parameters() if parameter.requires_grad)
    shared = workers.world_size if training.placement.zero_stage else 1
    return elements * (4 + 4) + elements * 3 * 4 // shared


def _limit(workers: Workers) -> int:
    """Bytes that may be taken beside what is taken now."""
    if workers.device.type == "cuda":
        return int(torch.cuda.mem_get_info(workers.device)[0])
    return host_memory.available() // workers.local_world_size


def in_use(workers: Workers) -> int:
    """Bytes of device memory this worker uses."""
    if workers.device.type == "cuda":
        return int(torch.cuda.memory_allocated(workers.device))
    return int(psutil.Process().memory_info().rss)


def _reset_peak(workers: Workers) -> None:
    """Forget the peak so far."""
    gc.collect()
    if workers.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(workers.device)
    else:
        _PEAK_RESET.write_text("5")


def _peak(workers: Workers) -> int:
    if workers.device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(workers.device))
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def _said(trials: list[Trial], chosen: Trial) -> str:
    tried = ", ".join(f"{trial.rows}: {trial.rows_per_second:.1f}" for trial in trials)
    return (
        f"micro-batches of {chosen.rows} rows, {chosen.peak / 2**30:.1f} GiB beside the weights (rows a second and "
        f"worker by size: {tried})"
    )
