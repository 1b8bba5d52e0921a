"""What DeepSpeed needs from outside: each patch names the version it is for."""

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from distill.engine.step_timer import StepTimer

# DeepSpeed picks its accelerator at import; without a GPU it would look for other vendors' and complain.
if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("DS_SKIP_CUDA_CHECK", "1")
# Large tensors in large pages: a CPU otherwise spends a good part of a step on getting fresh memory page by page.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import deepspeed

deepspeed.utils.logger.setLevel(logging.ERROR)
# DeepSpeed 0.19.8 calls collectives by the names torch 2.13 deprecates, and torch says so on every call.
warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")

# Shared-memory reduction would be compiled on first use and spins for ever when a peer dies; gloo raises.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
# ZeRO-3 waits for the device while it finds the gradient's norm, and to see whether it is finite; Engine does both
# without waiting.
deepspeed.runtime.zero.stage3.DeepSpeedZeroOptimizer_Stage3._get_norm_groups = lambda optimizer: []
deepspeed.runtime.zero.stage3.combine_grad_norm_groups = lambda norms: 0.0

_COLLECTIVES = ("all_reduce", "reduce", "reduce_scatter_tensor", "all_gather_into_tensor", "all_gather", "broadcast")


def time_collectives(step_timer: StepTimer) -> None:
    """Count what DeepSpeed does over the network within a step as communication.

    What it starts and lets run beside the computation (the weights ZeRO-3 fetches ahead) is counted where it is
    waited for.
    """
    backend = deepspeed.comm.comm.cdb
    for name in _COLLECTIVES:
        # The method of the class: that of an earlier engine's step_timer would be counted as well.
        setattr(backend, name, step_timer.during("communication", getattr(type(backend), name).__get__(backend)))


def local_share(parameter: Any, whole: Tensor) -> Tensor:
    """This worker's part of a tensor that ZeRO-3 shards: equal parts, the last one padded with zeros.

    DeepSpeed 0.19.8 has a setter for whole tensors too, which fails where their size does not divide by the workers.
    """
    length = parameter.ds_tensor.numel()
    missing = length * torch.distributed.get_world_size() - whole.numel()
    padded = nn.functional.pad(whole.flatten(), (0, missing))
    return padded.narrow(0, torch.distributed.get_rank() * length, length)


@contextlib.contextmanager
def suppressed_output() -> Iterator[None]:
    """DeepSpeed prints memory reports and warnings while it starts, whatever its log level."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
