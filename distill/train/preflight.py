"""Checks on each worker, before training, that its device, memory and disk suffice. It does not measure.

Raises errors for what cannot work; the first worker logs warnings about what may fail later.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cluster.artifacts import artifact
from cluster.models.precision import check_bf16
from cluster.telemetry import host_memory
from cluster.telemetry.formatting import size
from cluster.telemetry.progress import say
from distill.config import Training
from distill.cost_model import costs, step_prediction
from distill.cost_model.forecast import checkpoints_kept, lacks_kernels
from distill.cost_model.hardware import Cluster, Device
from distill.cost_model.step_prediction import Layout
from distill.data.schedule import Schedule
from distill.engine.process_group import Workers
from distill.modeling import model_shape
from distill.modeling.model_shape import ModelShape


class PreflightError(ValueError):
    """This machine cannot run the recipe."""


@dataclass(frozen=True)
class Machine:
    """Device and disk of a worker."""

    kind: str
    """``cuda`` or ``cpu``."""
    name: str
    memory_bytes: int
    """Memory for this worker."""
    reserved_bytes: int
    """Part of it in use already."""
    free_disk_bytes: int
    checkpoints: int
    """Checkpoints of this run on the disk already."""
    capability: tuple[int, int] | None = None

    @classmethod
    def of(cls, device: torch.device, out: Path) -> "Machine":
        """The machine of this worker, which writes to ``out``."""
        disk = next(path for path in (out, *out.parents) if path.exists())
        free, checkpoints = shutil.disk_usage(disk).free, len([*out.glob("checkpoints/step_*")])
        if device.type == "cpu":
            shared = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
            free_memory = host_memory.available() // shared
            return cls("cpu", "this machine's CPU", free_memory, 0, free, checkpoints)
        available, total = torch.cuda.mem_get_info(device)
        reserved = total - available - torch.cuda.memory_reserved(device)
        capability = torch.cuda.get_device_capability(device)
        return cls("cuda", torch.cuda.get_device_name(device), total, reserved, free, checkpoints, capability)


def check_worker(schedule: Schedule, teacher: Any, model: Any, workers: Workers, out: Path) -> None:
    """Refuse a run that cannot work here, and log warnings. ``teacher`` and ``model`` are ``transformers`` models.

    Raises:
        PreflightError: device, memory or disk do not suffice.
        PrecisionError: the device lacks the precision.
        ArtifactError: the rows were changed (``placement.verify``).
    """
    teacher_shape = model_shape.of_config(teacher.config.to_dict(), "the teacher") if teacher is not None else None
    student = model_shape.of_config(model.config.to_dict(), "the student")
    machine = Machine.of(workers.device, out)
    found = []
    for phase in schedule.phases:
        phase.training.check_divides(workers.world_size)
        found.append(check(phase.training, teacher_shape, student, machine, workers.world_size, phase.seq_len))
    # The first phase has the largest micro-batches in tokens.
    warnings = found[0] + check_disk(schedule.first.training, student, machine, schedule.steps)
    if workers.is_main_process:
        for warning in warnings:
            say(f"warning: {warning}")
    if schedule.first.training.placement.verify == "hashes" and workers.local_rank == 0:
        for path in {phase.tokens.path for phase in schedule.phases}:
            artifact.verify(path, "tokens")


def check(
    training: Training, teacher: ModelShape | None, student: ModelShape, machine: Machine, workers: int, seq_len: int
) -> list[str]:
    """Warnings about a worker's device.

    Raises:
        PreflightError: another device than the recipe's, no kernels for it, or too little memory for one row.
        PrecisionError: the device lacks the precision.
    """
    if machine.kind == "cuda" and training.placement.device == "cpu":
        raise PreflightError(
            f'placement.device is "cpu", and this process would train on {machine.name}: start it with '
            'CUDA_VISIBLE_DEVICES= (distill.launch does that itself), or write placement.device = "auto"'
        )
    if machine.capability is not None:
        if lacking := lacks_kernels(machine.capability):
            raise PreflightError(f"{machine.name}: {lacking}")
        check_bf16(training.precision, machine.name, machine.capability)
    return _check_memory(training, teacher, student, machine, workers, seq_len)


def _check_memory(
    training: Training, teacher: ModelShape | None, student: ModelShape, machine: Machine, workers: int, seq_len: int
) -> list[str]:
    placement = training.placement
    cluster = _cluster(training, machine, workers)
    written = step_prediction.as_written(training, teacher, student, seq_len, cluster)
    needs = step_prediction.predict(training, teacher, student, seq_len, cluster, written)
    if needs.fits:
        return []
    least = Layout(workers, 1, placement.zero_stage, placement.teacher)
    smallest = step_prediction.predict(training, teacher, student, seq_len, cluster, least)
    room = f"of the {size(machine.memory_bytes)} of {machine.name}"
    if smallest.used_bytes > machine.memory_bytes:
        raise PreflightError(
            f"one row at a time still takes {size(smallest.used_bytes)} {room}: write "
            f"{_remedy(placement.zero_stage, placement.teacher, teacher)}"
        )
    return [
        f"micro-batches of {written.micro_rows} rows take about {size(needs.used_bytes)} {room}: should it "
        f'run out, write placement.rows_per_device = {max(1, written.micro_rows // 2)} or "auto"'
    ]


def _remedy(zero_stage: int, placed: str, teacher: ModelShape | None) -> str:
    if teacher is not None and placed == "replica":
        return 'placement.teacher = "sharded" (or "offloaded"), or take a device with more memory'
    if zero_stage < 3:
        return "placement.zero_stage = 3, or take a device with more memory"
    return "more placement.workers, or take a device with more memory"


def check_disk(training: Training, student: ModelShape, machine: Machine, steps: int) -> list[str]:
    """Warnings about the disk of the checkpoints.

    Raises:
        PreflightError: it has no room for one checkpoint.
    """
    each = costs.checkpoint_bytes(student)
    free = machine.free_disk_bytes
    if free < each:
        raise PreflightError(
            f"a checkpoint takes {each / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free at --out: free some space or "
            "choose another --out"
        )
    coming = max(1, checkpoints_kept(training, steps) - machine.checkpoints)
    if free >= coming * each:
        return []
    return [
        f"{coming} more checkpoints take {coming * each / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free at --out: free "
        "some space, or write fewer placement.keep_checkpoints"
    ]


def _cluster(training: Training, machine: Machine, workers: int) -> Cluster:
    """The workers as a cluster; memory predictions do not use its speeds."""
    device = Device(
        name=machine.name,
        kind="gpu" if machine.kind == "cuda" else "cpu",
        memory_gib=machine.memory_bytes / 2**30,
        capability=machine.capability,
        peak_tflops={training.precision: 1.0},
        efficiency={training.precision: 1.0},
        efficiency_source="not used",
        memory_gb_per_second=1.0,
        link_gb_per_second=1.0,
        overhead_seconds=0.0,
        reserved_gib=machine.reserved_bytes / 2**30,
    )
    return Cluster(device, workers)
