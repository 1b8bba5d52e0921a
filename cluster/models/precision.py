"""Precisions of models, the devices that have them, and the parameters that weight decay spares.

Importing this module does not import torch.
"""

from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    import torch
    from torch import nn

Precision: TypeAlias = Literal["fp32", "bf16", "fp16"]

_NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


class PrecisionError(ValueError):
    """This device lacks the precision of the recipe."""


def dtype_of(precision: Precision) -> "torch.dtype":
    """The torch type of a precision."""
    import torch

    return getattr(torch, _NAMES[precision])  # type: ignore[no-any-return]


def check_bf16(precision: Precision, device_name: str, capability: tuple[int, int]) -> None:
    """Refuse bf16 on a GPU that emulates it.

    The compute capability decides: torch and DeepSpeed report bf16 as supported on a V100, which emulates it.

    Raises:
        PrecisionError: the precision is bf16 and the capability is below 8.0.
    """
    if precision == "bf16" and capability < (8, 0):
        raise PrecisionError(f'{device_name} has no bf16 (compute capability below 8.0): write precision = "fp16"')


def check_precision(precision: Precision, device: "torch.device", cpu_has_fp16: bool = False) -> None:
    """Refuse a precision that the device lacks or emulates.

    Raises:
        PrecisionError: names a precision that the device has.
    """
    import torch

    if device.type == "cuda":
        check_bf16(precision, torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device))
    elif precision == "fp16" and not cpu_has_fp16:
        raise PrecisionError('precision = "fp16" needs a GPU: write precision = "bf16" or "fp32"')


def parameter_groups(module: "nn.Module", weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters for an optimizer: those with weight decay, then those without.

    Biases and LayerNorm weights, all of one dimension, do not decay: decay pulls towards 0, and a scale should stay
    near 1.
    """
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in trained if parameter.ndim > 1], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trained if parameter.ndim <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
