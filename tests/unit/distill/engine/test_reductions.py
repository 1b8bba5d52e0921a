"""Gradients cross the network once per optimizer step for any accumulation, counted where torch sends them."""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import torchrun_workers
from tiny_engine import one_step, started, training
from torch.utils._python_dispatch import TorchDispatchMode

from distill.engine import process_group

WORKERS, ACCUMULATION = 2, 4
LAYOUTS = [("fp32", 0), *((precision, zero_stage) for precision in ("fp32", "bf16") for zero_stage in (1, 2, 3))]
# Bytes of one number of a gradient on the network.
BYTES = {"fp32": 4, "bf16": 2}

_C10D = torch.ops.c10d
# Index of the argument with the tensors of each reduction.
_SENT = {_C10D.allreduce_: 0, _C10D.reduce_: 0, _C10D.reduce_scatter_: 1, _C10D._reduce_scatter_base_: 1}


class Traffic(TorchDispatchMode):
    """Counts the bytes that this worker sends to reductions inside the block."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if (place := _SENT.get(func.overloadpacket)) is not None:
            tensors, _ = torch.utils._pytree.tree_flatten(args[place])
            self.bytes += sum(tensor.nbytes for tensor in tensors)
        return func(*args, **(kwargs or {}))


def traffic(folder: str, precision: str, zero_stage: int, coalesced: bool) -> float:
    """Bytes reduced in the second step, per parameter of the model."""
    made = started(Path(folder), training(precision, zero_stage, rows_per_device=1), process_group.join(1))
    assert made.accumulation == ACCUMULATION
    if not coalesced:
        made._engine.coalesce_grad_reduction = made._engine.no_sync = contextlib.nullcontext
    one_step(made)
    with Traffic() as counted:
        one_step(made, seed=1)
    parameters = sum(getattr(parameter, "ds_numel", parameter.numel()) for _, parameter in made._trained())
    return counted.bytes / parameters


def measure_all_traffic(folder: str) -> dict[str, float]:
    found = {
        f"{precision} {zero_stage}": traffic(folder, precision, zero_stage, True) for precision, zero_stage in LAYOUTS
    }
    return found | {f"control {zero_stage}": traffic(folder, "fp32", zero_stage, False) for zero_stage in range(4)}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, float]]:
    folder = tiny.bert_teacher(tmp_path_factory.mktemp("reductions"), layers=2)
    return torchrun_workers.run_on_workers(WORKERS, measure_all_traffic, str(folder))


@pytest.mark.parametrize(("precision", "zero_stage"), LAYOUTS)
def test_a_step_of_four_micro_batches_reduces_one_gradient(
    measured: list[dict[str, float]], precision: str, zero_stage: int
) -> None:
    """Besides the gradient, a step reduces its norm and a flag: a few bytes."""
    for worker in measured:
        assert 1 <= worker[f"{precision} {zero_stage}"] / BYTES[precision] < 1.01


@pytest.mark.parametrize("zero_stage", range(4))
def test_without_coalescing_every_micro_batch_would_be_reduced(
    measured: list[dict[str, float]], zero_stage: int
) -> None:
    """A control: the same counter sees DeepSpeed's usual reductions."""
    for worker in measured:
        assert worker[f"control {zero_stage}"] / BYTES["fp32"] == pytest.approx(ACCUMULATION, rel=0.01)
