"""Checks on each worker, before training, that its device, memory and disk suffice. It does not measure.

Raises errors for what cannot work; the first worker logs warnings about what may fail later.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from cluster.artifacts import artifact
from cluster.models.precision import Precision, check_bf16
from cluster.telemetry.formatting import file_size, memory_size
from cluster.telemetry.progress import say
from distill.config import Training
from distill.cost_model import costs, step_prediction
from distill.cost_model.forecast import checkpoints_kept, lacks_kernels
from distill.cost_model.hardware import Cluster, Device
from distill.cost_model.step_prediction import Layout
from distill.data.schedule import Schedule
from distill.engine.process_group import Workers, gpu_memory
from distill.modeling import model_shape
from distill.modeling.model_shape import ModelShape


class PreflightError(ValueError):
    """This machine cannot run the recipe."""


@dataclass(frozen=True)
class Machine:
    """Device and disk of a worker."""

    device: Device
    free_disk_bytes: int
    checkpoints: int
    """Checkpoints of this run on the disk already."""

    @classmethod
    def of(cls, workers: Workers, out: Path) -> "Machine":
        """The machine of this worker, which writes to ``out``."""
        disk = next(path for path in (out, *out.parents) if path.exists())
        device = device_of("cpu", "this machine's CPU", workers.free_memory)
        if workers.device.type == "cuda":
            capability = torch.cuda.get_device_capability(workers.device)
            device = device_of("gpu", workers.device_name, *gpu_memory(workers.device), capability)
        return cls(device, shutil.disk_usage(disk).free, len([*out.glob("checkpoints/step_*")]))


def device_of(
    kind: Literal["gpu", "cpu"],
    name: str,
    memory_bytes: int,
    reserved_bytes: int = 0,
    capability: tuple[int, int] | None = None,
) -> Device:
    """A device for predictions of memory, which use none of its speeds."""
    speeds: dict[Precision, float] = dict.fromkeys(get_args(Precision), 1.0)
    return Device(
        name=name,
        kind=kind,
        memory_gib=memory_bytes / 2**30,
        capability=capability,
        peak_tflops=speeds,
        efficiency=speeds,
        efficiency_source="not used",
        memory_gb_per_second=1.0,
        link_gb_per_second=1.0,
        overhead_seconds=0.0,
        reserved_gib=reserved_bytes / 2**30,
    )


def check_worker(schedule: Schedule, teacher: Any, model: Any, workers: Workers, out: Path) -> None:
    """Refuse a run that cannot work here, and log warnings. ``teacher`` and ``model`` are ``transformers`` models.

    Raises:
        PreflightError: device, memory or disk do not suffice.
        PrecisionError: the device lacks the precision.
        ArtifactError: the rows were changed (``placement.verify``).
    """
    teacher_shape = model_shape.of_config(teacher.config.to_dict(), "the teacher") if teacher is not None else None
    student = model_shape.of_config(model.config.to_dict(), "the student")
    machine = Machine.of(workers, out)
    found = []
    for phase in schedule.phases:
        phase.training.check_divides(workers.world_size)
        cluster = Cluster(machine.device, workers.world_size)
        found.append(check(phase.training, teacher_shape, student, cluster, phase.seq_len))
    # The first phase has the largest micro-batches in tokens.
    warnings = found[0] + check_disk(schedule.first.training, student, machine, schedule.steps)
    if workers.is_main_process:
        for warning in warnings:
            say(f"warning: {warning}")
    if schedule.first.training.placement.verify == "hashes" and workers.local_rank == 0:
        for path in {phase.tokens.path for phase in schedule.phases}:
            artifact.verify(path, "tokens")


def check(
    training: Training, teacher: ModelShape | None, student: ModelShape, cluster: Cluster, seq_len: int
) -> list[str]:
    """Warnings about the workers' device.

    Raises:
        PreflightError: another device than the recipe's, no kernels for it, or too little memory for one row.
        PrecisionError: the device lacks the precision.
    """
    device, placement = cluster.device, training.placement
    if device.kind == "gpu" and placement.device == "cpu":
        raise PreflightError(
            f'placement.device is "cpu", and this process would train on {device.name}: start it with '
            'CUDA_VISIBLE_DEVICES= (stillhouse launch does that itself), or write placement.device = "auto"'
        )
    if device.capability is not None:
        if lacking := lacks_kernels(device.capability):
            raise PreflightError(f"{device.name}: {lacking}")
        check_bf16(training.precision, device.name, device.capability)
    written = step_prediction.as_written(training, teacher, student, seq_len, cluster)
    needs = step_prediction.predict(training, teacher, student, seq_len, cluster, written)
    if needs.fits:
        return []
    least = Layout(cluster.workers, 1, placement.zero_stage, placement.teacher)
    smallest = step_prediction.predict(training, teacher, student, seq_len, cluster, least)
    room = f"of the {memory_size(device.memory_bytes)} of {device.name}"
    if smallest.used_bytes > device.memory_bytes:
        raise PreflightError(
            f"one row at a time still takes {memory_size(smallest.used_bytes)} {room}: write "
            f"{_remedy(placement.zero_stage, placement.teacher, teacher)}"
        )
    return [
        f"micro-batches of {written.micro_rows} rows take about {memory_size(needs.used_bytes)} {room}: should it "
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
            f"a checkpoint takes {file_size(each)}, and {file_size(free)} are free at --out: free some space or "
            "choose another --out"
        )
    coming = max(1, checkpoints_kept(training, steps) - machine.checkpoints)
    if free >= coming * each:
        return []
    return [
        f"{coming} more checkpoints take {file_size(coming * each)}, and {file_size(free)} are free at --out: free "
        "some space, or write fewer placement.keep_checkpoints"
    ]
