"""Everything DeepSpeed: processes, settings, student and teacher engines, the step, saving and loading.

The only door to ``deepspeed``, on GPUs and on CPUs alike: there is no second training path. Model precision, gradient
accumulation, clipping, loss scaling and ZeRO sharding are DeepSpeed's; the learning rate is arithmetic and set before
every step.
"""

import contextlib
from dataclasses import dataclass
from typing import Any

import deepspeed
import torch
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from torch import Tensor, nn

from cluster.models.precision import Precision, parameter_groups
from distill.config import Training
from distill.engine.deepspeed_patches import local_share, suppressed_output, time_collectives
from distill.engine.process_group import Workers
from distill.engine.step_timer import StepTimer
from distill.modeling import fused_head
from distill.modeling.masked_lm import MaskedLM

MOMENTS = ("exp_avg", "exp_avg_sq")
_SCALER = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")

# The default of 5e8 elements takes up to 4 GB of a 16 GB card.
BUCKET = 25_000_000


class EngineError(ValueError):
    """This machine cannot run what the recipe asks for."""


def check_precision(precision: Precision, device: torch.device) -> None:
    """Refuse a precision the device emulates or lacks.

    Compute capability decides: torch and DeepSpeed both report bf16 on a V100, where it is emulated.

    Raises:
        EngineError: not supported here; says which is.
    """
    if device.type == "cuda" and precision == "bf16" and torch.cuda.get_device_capability(device) < (8, 0):
        raise EngineError('this GPU has no bf16 (compute capability below 8.0): write precision = "fp16"')
    if precision == "fp16" and not deepspeed.accelerator.get_accelerator().is_fp16_supported():
        raise EngineError('this processor has no fp16 arithmetic: write precision = "bf16" or "fp32"')


def settings(training: Training, world_size: int) -> dict[str, Any]:
    """DeepSpeed's configuration of a run on so many workers; pure, compared with golden files.

    Raises:
        ValueError: the rows of a step cannot be divided by the workers.
    """
    training.check_divides(world_size)
    rows = training.rows_per_step // world_size
    return {
        # One micro-batch a step, as DeepSpeed sees it: accumulation is ours, so that gradients add up in fp32 and are
        # reduced once a step under every stage.
        "train_batch_size": training.rows_per_step,
        "train_micro_batch_size_per_gpu": rows,
        "gradient_accumulation_steps": 1,
        # Clipping too: DeepSpeed waits for the device to look at the norm, once a step and once a parameter group.
        "gradient_clipping": 0.0,
        "steps_per_print": 2**31,
        "zero_optimization": {
            "stage": training.placement.zero_stage,
            "reduce_bucket_size": BUCKET,
            "allgather_bucket_size": BUCKET,
            "stage3_prefetch_bucket_size": BUCKET,
            "contiguous_gradients": True,
            "overlap_comm": False,
            # Ours as well, on the device.
            **({"compute_grad_norm": False} if training.placement.zero_stage in (1, 2) else {}),
        },
        "bf16": {"enabled": training.precision == "bf16", "check_grad_overflow": False},
        "fp16": {
            "enabled": training.precision == "fp16",
            "loss_scale": 0,
            "initial_scale_power": 16,
            "loss_scale_window": 1000,
            "hysteresis": 2,
            "min_loss_scale": 1,
        },
    }


@dataclass(frozen=True)
class TrainingState:
    """Everything a resume needs: fp32 weights and AdamW moments by name, whole, and two scalars."""

    weights: dict[str, Tensor]
    moments: dict[str, Tensor]
    """``exp_avg.<name>`` and ``exp_avg_sq.<name>``."""
    optimizer_steps: float
    """Steps AdamW took: steps skipped by fp16 are not among them."""
    scaler: dict[str, float]
    """Where the dynamic loss scale stands; empty outside fp16."""


class Engine:
    """A model in training under DeepSpeed. Every method is called by all workers together.

    Nothing here waits for the device between two steps, except that in fp16 DeepSpeed reads one flag a step: whether
    a gradient overflowed.
    """

    def __init__(self, module: MaskedLM, training: Training, workers: Workers) -> None:
        check_precision(training.precision, workers.device)
        configuration = settings(training, workers.world_size)
        # Dropout stays off: teacher and student see the same network, and no curve depends on the layout.
        module = module.eval().to(workers.device)
        if training.placement.compiles(workers.device.type):
            compile_layers(module)
        self._optimizer = torch.optim.AdamW(
            parameter_groups(module, training.optimizer.weight_decay),
            lr=training.optimizer.learning_rate,
            betas=(training.optimizer.beta1, training.optimizer.beta2),
            eps=training.optimizer.epsilon,
            fused=True,
        )
        self._optimizer.register_step_pre_hook(self._clip)
        self._stage: int = training.placement.zero_stage
        self._fp16 = training.precision == "fp16"
        self._largest_norm = training.optimizer.clip
        with suppressed_output():
            self._engine, *_ = deepspeed.initialize(model=module, optimizer=self._optimizer, config=configuration)
        self._prime()
        self.begin_phase(training.rows_per_step, training.micro_rows(workers.world_size))
        self._micros = 0
        self._coalescing = contextlib.ExitStack()
        self._sums: dict[str, Tensor] = {}
        self._norm: float | Tensor | None = None
        self._scaling = torch.ones((), device=workers.device)
        self._losses = torch.zeros((), device=workers.device)
        # A float, as fused AdamW wants it: at 1 it leaves weights, moments and its count of steps as they are.
        self._optimizer.found_inf = torch.zeros((), device=workers.device)  # type: ignore[attr-defined]
        self.step_timer = StepTimer(workers.device)
        time_collectives(self.step_timer)

    def begin_phase(self, rows_per_step: int, micro_rows: int) -> None:
        """From the next step on, steps of so many rows in micro-batches of so many."""
        self.micro_rows = micro_rows
        self.accumulation = rows_per_step // (micro_rows * torch.distributed.get_world_size())

    def __call__(self, *inputs: Any) -> Any:
        return self._engine(*inputs)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of one micro-batch; with the last one of a step they are reduced over the workers."""
        self._micros += 1
        last = self._micros == self.accumulation
        if self._micros == 1 and not last and self._stage > 0:
            self._coalescing.enter_context(self._engine.coalesce_grad_reduction())
        # Without ZeRO a backward pass reduces what has added up, unless it is told not to.
        waits = self._engine.no_sync() if self._stage == 0 and not last else contextlib.nullcontext()
        with waits:
            self._engine.backward(loss / self.accumulation)
        self._losses = self._losses + loss.detach()
        if self._engine.module.model.dtype != torch.float32 and self.accumulation > 1:
            self._add_up(last)
        if last:
            self._coalescing.close()
            self._micros = 0

    def step(self, learning_rate: float) -> None:
        """Move the weights, with this learning rate.

        When a loss of any worker, or outside fp16 a gradient, is not finite, neither this nor any later step changes a
        weight: whoever reads the losses later finds the last good state.
        """
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        self._judge()
        try:
            self._engine.step()
        except Exception as error:
            # DeepSpeed has no type of its own for this.
            if "loss scale already at minimum" not in str(error):
                raise
            raise EngineError(
                "fp16 gradients overflow at every step, and the loss scale cannot fall further: start a new --out with "
                "a lower optimizer.learning_rate or another precision"
            ) from None

    @property
    def gradient_norm(self) -> float | Tensor | None:
        """Norm of the last step's whole gradient before clipping; not finite when fp16 overflowed."""
        return self._norm

    @property
    def loss_scale(self) -> float:
        scaler = getattr(self._engine.optimizer, "loss_scaler", None)
        return 1.0 if scaler is None else float(scaler.cur_scale)

    @property
    def skipped_steps(self) -> int:
        """Steps skipped since this process started because an fp16 gradient overflowed."""
        return int(self._engine.skipped_steps)

    def _add_up(self, last: bool) -> None:
        """Keep the sum of half-precision gradients in fp32; hand it over, rounded once, with the last of them."""
        for name, parameter in self._trained():
            assert parameter.grad is not None
            if self._micros == 1:
                self._sums[name] = parameter.grad.float()
            else:
                fused_head.accumulate(self._sums[name], parameter.grad)
            parameter.grad = self._sums.pop(name).to(parameter.dtype) if last else None

    def _judge(self) -> None:
        """Find the gradient's norm, how to clip it, and whether anything is not finite: on the device."""
        if self._stage == 0:
            gradients = [parameter.grad for _, parameter in self._trained()]
        else:
            gradients = [part for group in self._engine.optimizer.averaged_gradients.values() for part in group]
        norms = [torch.linalg.vector_norm(part, dtype=torch.float32) for part in gradients if part is not None]
        squares = torch.stack(norms).square().sum()
        bad = (~self._losses.isfinite()).float()
        self._losses = torch.zeros_like(self._losses)
        found = torch.stack([squares, bad])
        with self.step_timer.within("communication"):
            torch.distributed.all_reduce(found)
        if self._stage == 0:  # every worker has the whole gradient
            found[0] /= torch.distributed.get_world_size()
        norm = found[0].sqrt() / self.loss_scale
        if not self._fp16:
            found[1] += (~norm.isfinite()).float()
        self._norm = norm
        self._scaling = (self._largest_norm / (norm + 1e-6)).clamp(max=1.0)
        flag = self._optimizer.found_inf  # type: ignore[attr-defined]
        self._optimizer.found_inf = torch.maximum(flag, (found[1] > 0).float())  # type: ignore[attr-defined]

    def _clip(self, *_: Any) -> None:
        """Scale the gradients AdamW is about to take; they are fp32 and free of the loss scale by now."""
        for group in self._optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad.mul_(self._scaling)

    def state(self, keep: bool) -> TrainingState:
        """The state of the run, the same whatever the number of workers and the ZeRO stage.

        Gathering is collective, keeping is not: a worker that will not write it passes ``keep=False`` and gets
        empty dictionaries instead of a second copy of the model in memory.
        """
        state = TrainingState({}, {}, self._optimizer_steps(), self._scaler_state())
        for name, parameter in self._trained():
            weight = self._whole(parameter, None)
            moments = {f"{moment}.{name}": self._whole(parameter, moment) for moment in MOMENTS}
            if keep:
                state.weights[name] = weight
                state.moments.update(moments)
        return state

    def restore(self, state: TrainingState) -> None:
        """Take over a state that :meth:`state` gave, on any number of workers and any ZeRO stage."""
        for name, parameter in self._trained():
            self._set(parameter, state.weights[name], None)
            for moment in MOMENTS:
                self._set(parameter, state.moments[f"{moment}.{name}"], moment)
        for inner in self._optimizer.state.values():
            inner["step"].fill_(state.optimizer_steps)
        for name, value in state.scaler.items():
            setattr(self._engine.optimizer.loss_scaler, name, value)

    def _trained(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, found) for name, found in self._engine.module.named_parameters() if found.requires_grad]

    def _scaler_state(self) -> dict[str, float]:
        if not self._engine.fp16_enabled():
            return {}
        scaler = self._engine.optimizer.loss_scaler
        return {name: float(getattr(scaler, name)) for name in _SCALER}

    def _optimizer_steps(self) -> float:
        return float(next(iter(self._optimizer.state.values()))["step"])

    def _prime(self) -> None:
        """Give AdamW its state before the first step, so that it can be read and written like any later one.

        DeepSpeed 0.19.8 links the state of all parameter groups after stepping the first one, when the others have
        none yet: without this, theirs could never be read.
        """
        for parameter in self._masters():
            self._optimizer.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                **{moment: torch.zeros_like(parameter) for moment in MOMENTS},
            }
        if hasattr(self._engine.optimizer, "_lazy_init_hp_params_optimizer_state"):
            self._engine.optimizer._lazy_init_hp_params_optimizer_state()

    def _masters(self) -> list[Tensor]:
        """The tensors AdamW steps: flat fp32 partitions under ZeRO, the parameters themselves without it."""
        optimizer = self._engine.optimizer
        if hasattr(optimizer, "fp32_partitioned_groups_flat"):
            return list(optimizer.fp32_partitioned_groups_flat)
        return [parameter for group in self._optimizer.param_groups for parameter in group["params"]]

    def _whole(self, parameter: nn.Parameter, moment: str | None) -> Tensor:
        if self._stage == 0:
            found = parameter if moment is None else self._optimizer.state[parameter][moment]
        elif moment is None:
            found = safe_get_full_fp32_param(parameter)
        else:
            found = safe_get_full_optimizer_state(parameter, moment)
        assert found is not None, "DeepSpeed holds no state of a trained parameter"
        return found.detach().to("cpu", torch.float32, copy=True)

    def _set(self, parameter: nn.Parameter, value: Tensor, moment: str | None) -> None:
        value = value.to(self._engine.device)
        if self._stage == 0:
            target = parameter if moment is None else self._optimizer.state[parameter][moment]
            target.data.copy_(value)
        elif moment is not None and self._stage == 3:
            safe_set_local_optimizer_state(parameter, local_share(parameter, value), moment)
        elif moment is not None:
            safe_set_full_optimizer_state(parameter, value, moment)
        elif self._stage == 3:
            safe_set_local_fp32_param(parameter, local_share(parameter, value))
            with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
                parameter.data.copy_(value)
        else:
            safe_set_full_fp32_param(parameter, value)
            parameter.data.copy_(value)


def compile_layers(module: MaskedLM) -> None:
    """Compile the transformer layers in place: one graph for all of them, as all have the same shapes."""
    # Torch's own limit is 8, and beyond it layers would run as they are, in silence.
    torch._dynamo.config.recompile_limit = fused_head.MAX_GRAPHS
    for layer in module.layers():
        layer.compile(dynamic=False)
