"""The training engine: DeepSpeed's settings, the optimizer step, and the state of a run.

DeepSpeed trains on GPUs and CPUs alike; there is no second training path. It does precision, loss scaling and ZeRO
sharding. The engine accumulates gradients in fp32, clips them, and checks that they are finite, on the device.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import deepspeed
import torch
from torch import Tensor, nn

from cluster.models.precision import parameter_groups
from distill.config import BUCKET_VALUES, Training
from distill.engine.deepspeed_patches import (
    MOMENTS,
    initialize_adamw_state,
    is_minimum_loss_scale,
    suppressed_warnings,
    time_collectives,
    zero3_partition,
)
from distill.engine.process_group import Workers, check_device
from distill.engine.step_timer import StepTimer
from distill.modeling import fused_head
from distill.modeling.masked_lm import MaskedLM, set_dropout

_OF_HEAD = "of_head"
"""Key of an optimizer group: whether its parameters are those of the vocabulary head."""
_SCALER = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


class EngineError(ValueError):
    """Training cannot continue with this precision and learning rate."""


def settings(training: Training, world_size: int) -> dict[str, Any]:
    """DeepSpeed's configuration of a run on ``world_size`` workers. Golden files pin it.

    Raises:
        ValueError: the rows of a step do not divide by the workers.
    """
    training.check_divides(world_size)
    rows = training.rows_per_step // world_size
    return {
        # DeepSpeed sees one micro-batch a step. The engine accumulates: gradients add up in fp32 and are reduced once.
        "train_batch_size": training.rows_per_step,
        "train_micro_batch_size_per_gpu": rows,
        "gradient_accumulation_steps": 1,
        # The engine clips: DeepSpeed waits for the device to read the norm, once a step and parameter group.
        "gradient_clipping": 0.0,
        "steps_per_print": 2**31,
        "zero_optimization": {
            "stage": training.placement.zero_stage,
            "reduce_bucket_size": BUCKET_VALUES,
            "allgather_bucket_size": BUCKET_VALUES,
            "stage3_prefetch_bucket_size": BUCKET_VALUES,
            "contiguous_gradients": True,
            "overlap_comm": False,
            # The engine computes the norm, on the device.
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
    """The state of a run: whole fp32 weights and AdamW moments by name, and scalars."""

    weights: dict[str, Tensor]
    moments: dict[str, Tensor]
    """``exp_avg.<name>`` and ``exp_avg_sq.<name>``."""
    optimizer_steps: float
    """Steps that AdamW made, without those that fp16 skipped."""
    scaler: dict[str, float]
    """State of the dynamic loss scale; empty outside fp16."""


class Engine:
    """A model in training under DeepSpeed. All workers call every method together.

    No method of a step waits for the device, except that in fp16 DeepSpeed reads one flag a step: whether a gradient
    overflowed.
    """

    def __init__(self, module: MaskedLM, training: Training, workers: Workers) -> None:
        check_device(training.precision, workers.device)
        configuration = settings(training, workers.world_size)
        module = module.to(workers.device)
        set_dropout(module, training.dropout)
        if training.placement.compiles(workers.device.type):
            compile_layers(module)
        self._optimizer = torch.optim.AdamW(
            _parameter_groups(module, training.optimizer.weight_decay),
            lr=training.optimizer.learning_rate,
            betas=(training.optimizer.beta1, training.optimizer.beta2),
            eps=training.optimizer.epsilon,
            fused=True,
        )
        self._optimizer.register_step_pre_hook(self._clip)
        self._stage: int = training.placement.zero_stage
        self._fp16 = training.precision == "fp16"
        self._drops = training.dropout > 0
        self._largest_norm = training.optimizer.clip
        with suppressed_warnings():
            self._engine, *_ = deepspeed.initialize(model=module, optimizer=self._optimizer, config=configuration)
        initialize_adamw_state(self._engine, self._optimizer)
        self.begin_phase(training.rows_per_step, training.micro_rows(workers.world_size))
        self._micros = 0
        self._coalescing = contextlib.ExitStack()
        self._sums: dict[str, Tensor] = {}
        self.gradient_norm: Tensor | None = None
        """Norm of the last step's whole gradient before clipping; None before the first, not finite on overflow."""
        self._scaling = torch.ones((), device=workers.device)
        self._losses = torch.zeros((), device=workers.device)
        # Fused AdamW takes a float and skips the update where it is 1.
        self._optimizer.found_inf = torch.zeros((), device=workers.device)  # type: ignore[attr-defined]
        self.step_timer = StepTimer(workers.device)
        time_collectives(self.step_timer)

    def begin_phase(self, rows_per_step: int, micro_rows: int, trains_head: bool = True) -> None:
        """Set the rows of a step and of a micro-batch, and whether the vocabulary head learns, from now on."""
        self.micro_rows = micro_rows
        self._trains_head = trains_head
        self.accumulation = rows_per_step // (micro_rows * torch.distributed.get_world_size())

    def __call__(self, *inputs: Any) -> Any:
        return self._engine(*inputs)

    def seed_dropout(self, seed: int) -> None:
        """Seed the next forward pass. Nothing but dropout draws random numbers in training."""
        if self._drops:
            torch.manual_seed(seed)

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Inside the block forward passes have no dropout."""
        self._engine.module.eval()
        try:
            yield
        finally:
            self._engine.module.train(self._drops)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a micro-batch; after the last one of a step, reduce them over the workers."""
        self._micros += 1
        last = self._micros == self.accumulation
        if self._micros == 1 and not last and self._stage > 0:
            self._coalescing.enter_context(self._engine.coalesce_grad_reduction())
        # Without ZeRO, every backward pass reduces the gradients unless inside no_sync.
        with self._engine.no_sync() if self._stage == 0 and not last else contextlib.nullcontext():
            self._engine.backward(loss / self.accumulation)
        self._losses = self._losses + loss.detach()
        if self._engine.module.model.dtype != torch.float32 and self.accumulation > 1:
            self._accumulate_in_fp32(last)
        if last:
            self._coalescing.close()
            self._micros = 0

    def step(self, learning_rate: float) -> None:
        """Update the weights with this learning rate.

        From the first step on whose loss, on any worker, or gradient (except in fp16) is not finite, no step changes
        the weights: when the losses are read later, the engine still holds the last good state.
        """
        for group in self._engine.optimizer.param_groups:
            # A head without a loss has gradients of 0, but weight decay would still change it.
            group["lr"] = learning_rate if self._trains_head or not group[_OF_HEAD] else 0.0
        self._check_gradient()
        try:
            self._engine.step()
        except Exception as error:
            if not is_minimum_loss_scale(error):
                raise
            raise EngineError(
                "fp16 gradients overflow at every step, and the loss scale cannot fall further: start a new --out with "
                "a lower optimizer.learning_rate or another precision"
            ) from None

    @property
    def loss_scale(self) -> float:
        scaler = getattr(self._engine.optimizer, "loss_scaler", None)
        return 1.0 if scaler is None else float(scaler.cur_scale)

    @property
    def skipped_steps(self) -> int:
        """Steps that this process skipped because an fp16 gradient overflowed."""
        return int(self._engine.skipped_steps)

    def _accumulate_in_fp32(self, last: bool) -> None:
        """Sum half-precision gradients in fp32; after the last micro-batch, round the sum once."""
        for name, parameter in self._trained():
            assert parameter.grad is not None
            if self._micros == 1:
                self._sums[name] = parameter.grad.float()
            else:
                fused_head.accumulate(self._sums[name], parameter.grad)
            parameter.grad = self._sums.pop(name).to(parameter.dtype) if last else None

    def _check_gradient(self) -> None:
        """Compute the gradient's norm, the clipping factor and the flag that skips the update, on the device."""
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
        self.gradient_norm = norm
        self._scaling = (self._largest_norm / (norm + 1e-6)).clamp(max=1.0)
        flag = self._optimizer.found_inf  # type: ignore[attr-defined]
        self._optimizer.found_inf = torch.maximum(flag, (found[1] > 0).float())  # type: ignore[attr-defined]

    def _clip(self, *_: Any) -> None:
        """Clip the gradients just before AdamW uses them, in fp32 and without the loss scale."""
        for group in self._optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad.mul_(self._scaling)

    def state(self, keep: bool) -> TrainingState:
        """The state of the run, independent of the number of workers and the ZeRO stage. Collective.

        A worker that does not write it passes ``keep=False`` and gets empty dictionaries, which saves the memory of a
        second copy of the model.
        """
        steps = float(next(iter(self._optimizer.state.values()))["step"])
        scaler = self._engine.optimizer.loss_scaler if self._fp16 else None
        state = TrainingState({}, {}, steps, {name: float(getattr(scaler, name)) for name in _SCALER if scaler})
        for name, parameter in self._trained():
            weight = self._read(parameter, None)
            moments = {f"{moment}.{name}": self._read(parameter, moment) for moment in MOMENTS}
            if keep:
                state.weights[name] = weight
                state.moments.update(moments)
        return state

    def restore(self, state: TrainingState) -> None:
        """Load a state from :meth:`state` of any number of workers and any ZeRO stage."""
        for name, parameter in self._trained():
            self._write(parameter, state.weights[name], None)
            for moment in MOMENTS:
                self._write(parameter, state.moments[f"{moment}.{name}"], moment)
        for inner in self._optimizer.state.values():
            inner["step"].fill_(state.optimizer_steps)
        for name, value in state.scaler.items():
            setattr(self._engine.optimizer.loss_scaler, name, value)

    def _trained(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, found) for name, found in self._engine.module.named_parameters() if found.requires_grad]

    def _read(self, parameter: nn.Parameter, moment: str | None) -> Tensor:
        if self._stage == 0:
            found = parameter if moment is None else self._optimizer.state[parameter][moment]
        elif moment is None:
            found = deepspeed.utils.safe_get_full_fp32_param(parameter)
        else:
            found = deepspeed.utils.safe_get_full_optimizer_state(parameter, moment)
        assert found is not None, "DeepSpeed holds no state of a trained parameter"
        return found.detach().to("cpu", torch.float32, copy=True)

    def _write(self, parameter: nn.Parameter, value: Tensor, moment: str | None) -> None:
        value = value.to(self._engine.device)
        if self._stage == 0:
            target = parameter if moment is None else self._optimizer.state[parameter][moment]
            target.data.copy_(value)
        elif moment is not None and self._stage == 3:
            deepspeed.utils.safe_set_local_optimizer_state(parameter, zero3_partition(parameter, value), moment)
        elif moment is not None:
            deepspeed.utils.safe_set_full_optimizer_state(parameter, value, moment)
        elif self._stage == 3:
            deepspeed.utils.safe_set_local_fp32_param(parameter, zero3_partition(parameter, value))
            with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
                parameter.data.copy_(value)
        else:
            deepspeed.utils.safe_set_full_fp32_param(parameter, value)
            parameter.data.copy_(value)


def _parameter_groups(module: MaskedLM, weight_decay: float) -> list[dict[str, Any]]:
    """The groups of :func:`parameter_groups`, those of the vocabulary head apart."""
    head = {id(parameter) for parameter in module.head_parameters()}
    found = []
    for group in parameter_groups(module, weight_decay):
        for of_head in (False, True):
            if params := [parameter for parameter in group["params"] if (id(parameter) in head) == of_head]:
                found.append({**group, "params": params, _OF_HEAD: of_head})
    return found


def compile_layers(module: MaskedLM) -> None:
    """Compile the transformer layers in place. They share one graph, because all have the same shapes."""
    # Beyond torch's default of 8 graphs, layers would silently run uncompiled.
    torch._dynamo.config.recompile_limit = fused_head.MAX_GRAPHS
    for layer in module.layers():
        layer.compile(dynamic=False)
