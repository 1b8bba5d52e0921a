"""Number formats, the devices that have them, and the parameters that weight decay spares."""

from typing import Any, Literal

import torch
from torch import nn

Precision = Literal["fp32", "bf16", "fp16"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_NO_DECAY = ("bias", "LayerNorm.weight", "layer_norm.weight")


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    # Biases and LayerNorm weights are not decayed: decay pulls towards 0, and a scale should stay near 1.
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        (free if name.endswith(_NO_DECAY) else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
