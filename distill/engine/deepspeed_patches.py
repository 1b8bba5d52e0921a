"""Every change to DeepSpeed 0.19.8 and every way around it, each with its reason and its place in the sources.

Importing the package ``distill.engine`` imports this module first: it sets the environment, imports DeepSpeed, and
calls :func:`apply`. ``test_deepspeed_patches.py`` has a test per patch, which fails when the installed DeepSpeed no
longer needs it. Line numbers are those of DeepSpeed 0.19.8.
"""

import contextlib
import importlib
import logging
import os
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from distill.engine.step_timer import StepTimer

MOMENTS = ("exp_avg", "exp_avg_sq")
_COLLECTIVES = ("all_reduce", "reduce", "reduce_scatter_tensor", "all_gather_into_tensor", "all_gather", "broadcast")

ORIGINALS: dict[str, Any] = {}
"""Name to the function that :func:`apply` replaced."""


def set_environment() -> None:
    """Set what DeepSpeed and torch read at import; existing values stay.

    - ``DS_ACCELERATOR``: without a GPU, DeepSpeed probes for other vendors' devices and warns
      (accelerator/real_accelerator.py:213).
    - ``DS_SKIP_CUDA_CHECK``: DeepSpeed refuses to build an op when the CUDA toolkit and torch differ in version
      (ops/op_builder/builder.py:107).
    - ``THP_MEM_ALLOC_ENABLE``: torch 2.13 allocates large tensors in huge pages only when told (torch's
      c10/core/impl/alloc_cpu.cpp); without them a CPU spends much of a step on page faults.
    """
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("DS_SKIP_CUDA_CHECK", "1")
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


set_environment()

import deepspeed  # noqa: E402
from deepspeed.runtime.zero import stage3  # noqa: E402


def apply() -> None:
    """Patch DeepSpeed, once per process."""
    quiet_logger()
    ignore_deprecated_collectives()
    # By its name: the attribute ``torch`` of ``deepspeed.comm`` is the library.
    _replace(importlib.import_module("deepspeed.comm.torch"), "build_shm_op", no_shm_op)
    _replace(stage3.DeepSpeedZeroOptimizer_Stage3, "_get_norm_groups", no_norm_groups)
    _replace(stage3, "combine_grad_norm_groups", zero_norm)


def _replace(owner: Any, name: str, patch: Any) -> None:
    ORIGINALS.setdefault(name, getattr(owner, name))
    setattr(owner, name, patch)


def quiet_logger() -> None:
    """Log errors only: ZeRO-3 warns about the dataclasses in which our models return tensors.

    runtime/zero/parameter_offload.py:406. It cannot hook the tensors inside them, which the losses do not need.
    """
    deepspeed.utils.logger.setLevel(logging.ERROR)


def ignore_deprecated_collectives() -> None:
    """Ignore torch's deprecation warnings: DeepSpeed calls collectives by names that torch 2.13 deprecates.

    comm/torch.py:246, ``all_gather_into_tensor``: torch warns at every call.
    """
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")


def no_shm_op() -> None:
    """Never build the shared-memory all-reduce for CPUs (comm/torch.py:47, pull request 5391).

    DeepSpeed compiles it at the first start. It waits in a loop without end when a peer dies
    (ops/csrc/cpu/comm/shm.cpp:121); gloo raises an error.
    """


def no_norm_groups(optimizer: Any) -> list[Any]:
    """Skip the gradient norm of ZeRO-3 (runtime/zero/stage3.py:2573); with :func:`zero_norm`.

    DeepSpeed reads the norm from the device to check that it is finite (runtime/utils.py:231). The engine computes and
    checks the norm without waiting. Stages 1 and 2 have the setting ``compute_grad_norm`` for this, stage 3 has none.
    """
    return []


def zero_norm(norms: Any) -> float:
    """The norm of ZeRO-3 without groups (runtime/zero/stage3.py:2887)."""
    return 0.0


def time_collectives(timer: StepTimer) -> None:
    """Count DeepSpeed's collectives within a step as communication; DeepSpeed has no hook for it (comm/comm.py).

    Transfers in parallel with computation (weights that ZeRO-3 prefetches) count where DeepSpeed waits for them.
    """
    backend = deepspeed.comm.comm.cdb
    for name in _COLLECTIVES:
        # Wrap the method of the class: the attribute of the instance belongs to the timer of an earlier engine.
        setattr(backend, name, timer.within("communication")(getattr(type(backend), name).__get__(backend)))


def initialize_adamw_state(engine: Any, optimizer: torch.optim.Optimizer) -> None:
    """Create AdamW's state before the first step, so that it can be read and written from the start.

    DeepSpeed links the optimizer state of all parameter groups after it steps the first one, when the others have no
    state yet (runtime/zero/stage_1_and_2.py:2987); theirs could never be read.
    """
    for parameter in _stepped_tensors(engine, optimizer):
        optimizer.state[parameter] = {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            **{moment: torch.zeros_like(parameter) for moment in MOMENTS},
        }
    if hasattr(engine.optimizer, "_lazy_init_hp_params_optimizer_state"):
        engine.optimizer._lazy_init_hp_params_optimizer_state()


def _stepped_tensors(engine: Any, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """The tensors that AdamW steps: flat fp32 partitions under ZeRO-3, otherwise those of the parameter groups."""
    if hasattr(engine.optimizer, "fp32_partitioned_groups_flat"):
        return list(engine.optimizer.fp32_partitioned_groups_flat)
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def zero3_partition(parameter: Any, whole: Tensor) -> Tensor:
    """This worker's partition of a tensor under ZeRO-3: equal parts, the last one padded with zeros.

    DeepSpeed's setter for whole tensors does not pad (runtime/zero/stage3.py:3196, pull request 4192), and fails where
    the size does not divide by the number of workers.
    """
    length = parameter.ds_tensor.numel()
    missing = length * torch.distributed.get_world_size() - whole.numel()
    padded = nn.functional.pad(whole.flatten(), (0, missing))
    return padded.narrow(0, torch.distributed.get_rank() * length, length)


def is_minimum_loss_scale(error: Exception) -> bool:
    """Whether fp16 gradients overflow at the smallest loss scale; DeepSpeed raises a plain ``Exception`` for it.

    runtime/fp16/loss_scaler.py:258
    """
    return "loss scale already at minimum" in str(error)


@contextlib.contextmanager
def suppressed_warnings() -> Iterator[None]:
    """Ignore warnings while DeepSpeed starts: its first start imports modules that use deprecated parts of torch.

    torch warns about ``torch.jit.script_method`` when a ZeRO optimizer starts.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


apply()
