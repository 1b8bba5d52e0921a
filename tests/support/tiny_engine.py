"""A tiny student in the DeepSpeed engine, and one optimizer step of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from distill.config import Loss, Placement, Student, Training
from distill.data.batches import Batch
from distill.engine import process_group
from distill.engine.deepspeed_engine import Engine
from distill.engine.process_group import Workers
from distill.modeling import masked_lm, student
from distill.train.student_objective import HeadSettings, StudentObjective

ROWS, LENGTH = 8, 16

Spoil: TypeAlias = Callable[[Tensor], Tensor]


def training(precision: str = "fp32", zero_stage: int = 1, rows_per_device: int = 2, **values: Any) -> Training:
    placement = Placement(zero_stage=zero_stage, rows_per_device=rows_per_device)
    return Training(steps=4, rows_per_step=ROWS, precision=precision, placement=placement, **values)


def started(folder: Path, recipe: Training, workers: Workers) -> Engine:
    teacher, _ = masked_lm.load(folder)
    model = student.make(teacher, Student(), seed=1)
    return Engine(
        StudentObjective(model, Loss(soft=0.0, masked=1.0, cosine=0.0), HeadSettings("fused", 64)), recipe, workers
    )


def one_step(made: Engine, seed: int = 0, spoil: Spoil | None = None) -> float:
    """A step on rows drawn from ``seed``; ``spoil`` changes the loss of one micro-batch of the last worker."""
    rows = torch.randint(5, 300, (ROWS, LENGTH), generator=torch.Generator().manual_seed(seed))
    workers = process_group.join(1)
    total = 0.0
    for micro in range(made.accumulation):
        first = (micro * workers.world_size + workers.rank) * made.micro_rows
        part = rows[first : first + made.micro_rows]
        loss = made(Batch(part, torch.arange(part.numel()), part.flatten()), None, None).losses.total
        if spoil and workers.rank == workers.world_size - 1 and micro == made.accumulation // 2:
            loss = spoil(loss)
        made.backward(loss)
        total += loss.item() / made.accumulation
    made.step(1e-3)
    return total
