"""The teacher, which only runs forward: a replica per worker, or sharded with ZeRO-3."""

import contextlib
from collections.abc import Callable
from typing import Any

import deepspeed
import torch
from torch import nn

from cluster.models.precision import DTYPES
from distill.config import Training
from distill.data.batches import Batch
from distill.engine.deepspeed_engine import BUCKET, compile_layers
from distill.engine.deepspeed_patches import suppressed_output
from distill.engine.process_group import Workers
from distill.modeling import fused_head
from distill.modeling.masked_lm import MaskedLM, Outputs, Projection


class TeacherEngine:
    """A teacher, which only runs forward: a replica in the run's precision, or sharded over the workers (ZeRO-3)."""

    def __init__(self, module: MaskedLM, training: Training, workers: Workers) -> None:
        kind = training.placement.teacher
        module = module.eval().requires_grad_(False).to(DTYPES[training.precision])
        self.config = module.model.config
        # The projection is a replica even of a sharded teacher: the fused head takes it a chunk at a time.
        given = module.projection
        dtype, device = DTYPES[training.precision], workers.device.type
        self.chunk = fused_head.chunk_positions(len(given.weight), dtype.itemsize, workers.memory, device)
        self.projection = Projection(*(part.detach().to(workers.device) for part in (given.weight, given.bias)))
        if kind == "replica":
            self._module: nn.Module = module.to(workers.device)
            if training.placement.compiles(workers.device.type):
                compile_layers(module)
            self._mode: Callable[[], contextlib.AbstractContextManager[Any]] = torch.inference_mode
            return
        # Never whole on the device: a teacher that fits there needs no sharding.
        self.projection = Projection(self.projection.weight.clone(), self.projection.bias.clone())
        with suppressed_output():
            self._module, *_ = deepspeed.initialize(model=module, config=_teacher_settings(training, kind))
        # Gathered weights must stay ordinary tensors for ZeRO-3 to let go of.
        self._mode = torch.no_grad

    def __call__(self, batch: Batch) -> Outputs:
        with self._mode():
            found: Outputs = self._module(batch.input_ids, batch.positions)
        return found


def _teacher_settings(training: Training, kind: str) -> dict[str, Any]:
    offload = {"offload_param": {"device": "cpu", "pin_memory": torch.cuda.is_available()}}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {
            "stage": 3,
            "stage3_prefetch_bucket_size": BUCKET,
            **(offload if kind == "offloaded" else {}),
        },
        "bf16": {"enabled": training.precision == "bf16"},
        "fp16": {"enabled": training.precision == "fp16"},
    }
