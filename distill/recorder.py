"""What a run says of itself: metrics.jsonl, Prometheus, the terminal, and its checkpoints.

Numbers stay on the device until they are read, once for all steps since the last reading.
"""

import contextlib
import math
import time
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from cluster import telemetry
from distill.distillation import Training
from distill.engine import Engine, Workers
from distill.losses import TERMS
from distill.run import Checkpoint, Run


class TrainingError(ValueError):
    """Training cannot go on: the loss left the numbers."""


@dataclass(frozen=True)
class Length:
    """How long a run is."""

    steps: int
    tokens_per_step: int


@dataclass(frozen=True)
class _Step:
    """What an optimizer step measured, not read yet."""

    losses: Tensor
    learning_rate: float
    gradient_norm: float | Tensor | None
    loss_scale: float
    skipped_steps: int


class Recorder:
    """Keeps a run's numbers and writes them down; a context manager, used by every worker together.

    Only the first worker writes; it holds the run folder meanwhile.
    """

    def __init__(
        self, run: Run, training: Training, length: Length, workers: Workers, before: Checkpoint | None
    ) -> None:
        known = before.facts if before else {}
        self._run, self._training, self._length, self._workers = run, training, length, workers
        self._step = before.step if before else 0
        self._device_seconds = float(known.get("device_seconds", 0.0))
        self._skipped_before = int(known.get("skipped_steps", 0))
        self._skipped = self._skipped_before
        self._validation: dict[str, float | None] = {}
        self._validated_at = -1
        self._micro: Tensor | None = None
        self._pending: list[_Step] = []
        self._log: telemetry.MetricsLog | None = None
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Self:
        if self._workers.leads:
            self._open.enter_context(self._run.held())
            self._log = telemetry.MetricsLog(self._run.metrics, self._step)
            self._open.callback(self._log.close)
            what, steps = f"{self._run.path.name}: training", self._length.steps
            self._progress = self._open.enter_context(telemetry.Progress(what, steps, "steps", self._step))
            telemetry.STEPS.set(steps)
            if (port := self._training.placement.metrics_port) is not None:
                telemetry.serve(port)
        self._started = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def add(self, losses: Tensor) -> None:
        """Losses ``[total, soft, masked, cosine]`` of one micro-batch, already divided by the accumulation."""
        self._micro = losses if self._micro is None else self._micro + losses

    def end_step(self, learning_rate: float, engine: Engine) -> None:
        assert self._micro is not None
        skipped = self._skipped_before + engine.skipped_steps
        self._pending.append(_Step(self._micro, learning_rate, engine.gradient_norm, engine.loss_scale, skipped))
        self._micro = None

    def drain(self) -> None:
        """Read what the steps since the last call measured: one reduction and one transfer for all of them.

        Raises:
            TrainingError: a loss is not finite; says at which step.
        """
        if not self._pending:
            return
        losses = torch.stack([step.losses for step in self._pending])
        torch.distributed.all_reduce(losses)
        means = (losses / self._workers.world_size).tolist()
        seconds = time.monotonic() - self._started
        self._device_seconds += seconds * self._workers.world_size
        for pending, values in zip(self._pending, means, strict=True):
            self._step += 1
            self._record(pending, dict(zip(TERMS, values, strict=True)), seconds / len(self._pending))
        self._pending = []
        self._started = time.monotonic()

    def _record(self, pending: _Step, losses: dict[str, float], seconds: float) -> None:
        if not all(math.isfinite(value) for value in losses.values()):
            telemetry.NONFINITE.inc()
            raise TrainingError(
                f"the loss of step {self._step} is not finite ({losses}): start a new --out with a lower "
                "optimizer.learning_rate or another precision"
            )
        if self._log is None:
            return
        rate = self._length.tokens_per_step / seconds
        norm = None if pending.gradient_norm is None else float(pending.gradient_norm)
        line: dict[str, Any] = {
            "kind": "train",
            "step": self._step,
            "steps": self._length.steps,
            **losses,
            "learning_rate": pending.learning_rate,
            "gradient_norm": norm,
            "loss_scale": pending.loss_scale,
            "skipped_steps": pending.skipped_steps,
            "tokens": self._step * self._length.tokens_per_step,
            "step_seconds": seconds,
            "tokens_per_second": rate,
        }
        self._log.write(**line)
        telemetry.record_step(self._step, losses, pending.learning_rate, norm, pending.loss_scale, seconds)
        telemetry.TOKENS.inc(self._length.tokens_per_step)
        telemetry.RATE.set(rate)
        telemetry.SKIPPED.inc(pending.skipped_steps - self._skipped)
        self._skipped = pending.skipped_steps
        self._progress.advance(note=telemetry.training_note(line))

    def validated(self, values: dict[str, float | None]) -> None:
        """Record a validation of the weights as they are after the last drained step."""
        self._validation, self._validated_at = values, self._step
        if self._log is not None:
            self._log.write(kind="validation", step=self._step, **values)
            telemetry.record_validation(values)
        # Validation is not training time.
        self._started = time.monotonic()

    def save(self, engine: Engine) -> None:
        """Write a checkpoint of the last drained step."""
        started = time.monotonic()
        state = engine.state(keep=self._workers.leads)
        if self._workers.leads:
            self._run.save(
                state,
                self._step,
                self._training.placement.keep_checkpoints,
                tokens=self._step * self._length.tokens_per_step,
                device_seconds=self._device_seconds,
                skipped_steps=self._skipped,
                world_size=self._workers.world_size,
                device=self._workers.device_name,
                # Only a validation of these very weights belongs to them.
                validation=self._validation if self._validated_at == self._step else {},
            )
            telemetry.CHECKPOINT_TIME.set_to_current_time()
            telemetry.CHECKPOINT_SECONDS.set(time.monotonic() - started)
        torch.distributed.barrier()
        self._started = time.monotonic()
