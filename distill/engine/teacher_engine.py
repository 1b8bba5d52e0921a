"""The teacher, which only runs forward."""

import contextlib
from collections.abc import Callable
from typing import Any

import deepspeed
import torch
from torch import nn

from cluster.models.precision import dtype_of
from distill.config import BUCKET_VALUES, Training
from distill.data.batches import Batch
from distill.engine.deepspeed_engine import compile_layers
from distill.engine.deepspeed_patches import suppressed_warnings
from distill.engine.process_group import Workers
from distill.modeling import fused_head
from distill.modeling.masked_lm import MaskedLM, Outputs, Projection, Taps


class TeacherEngine:
    """A teacher in the precision of the run: a replica on every worker, or sharded over the workers (ZeRO-3).

    ``watched`` are the layers whose queries, keys and values a call may ask for.
    """

    def __init__(self, module: MaskedLM, training: Training, workers: Workers, watched: tuple[int, ...] = ()) -> None:
        kind = training.placement.teacher
        dtype, device = dtype_of(training.precision), workers.device.type
        module = module.eval().requires_grad_(False).to(dtype)
        for layer in watched:
            module.watch(layer)
        self.config = module.model.config
        # The projection is a replica even of a sharded teacher, because the fused head reads it in chunks.
        last = module.projection
        self.chunk = fused_head.chunk_positions(len(last.weight), dtype.itemsize, workers.memory, device)
        self.projection = Projection(*(part.detach().to(workers.device) for part in (last.weight, last.bias)))
        if kind == "replica":
            self._module: nn.Module = module.to(workers.device)
            if training.placement.compiles(device):
                compile_layers(module)
            self._mode: Callable[[], contextlib.AbstractContextManager[Any]] = torch.inference_mode
            return
        # The whole teacher never moves to the device, where it may not fit.
        self.projection = Projection(self.projection.weight.clone(), self.projection.bias.clone())
        with suppressed_warnings():
            self._module, *_ = deepspeed.initialize(model=module, config=_settings(training, kind))
        # ZeRO-3 cannot release weights that it gathered in inference mode.
        self._mode = torch.no_grad

    def __call__(self, batch: Batch, taps: Taps = Taps()) -> Outputs:  # noqa: B008  # frozen
        with self._mode():
            outputs: Outputs = self._module(batch.input_ids, batch.positions, taps)
        return outputs


def _settings(training: Training, kind: str) -> dict[str, Any]:
    """DeepSpeed's configuration of a ``sharded`` or ``offloaded`` teacher."""
    offload = {"offload_param": {"device": "cpu", "pin_memory": torch.cuda.is_available()}}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {
            "stage": 3,
            "stage3_prefetch_bucket_size": BUCKET_VALUES,
            **(offload if kind == "offloaded" else {}),
        },
        "bf16": {"enabled": training.precision == "bf16"},
        "fp16": {"enabled": training.precision == "fp16"},
    }
