"""Prometheus metrics of a run.

The first worker of every node serves an endpoint; the first worker of the run alone sets the metrics of the whole run.
"""

import math
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from cluster.telemetry import exporter, metrics
from cluster.telemetry.loss_terms import LOSS_TERMS
from cluster.telemetry.progress import say
from distill.config import Training
from distill.cost_model import costs, hardware
from distill.data.schedule import Schedule
from distill.engine.process_group import Workers
from distill.engine.step_timer import PARTS
from distill.modeling.losses import TERMS
from distill.modeling.model_shape import ModelShape

CAUSES = ("death", "drain", "growth")
"""Why workers restart: one of them or its node died, a node was drained, or there was room for more workers."""


_OF_HIDDEN_WORDS = (
    (metrics.HIDDEN_LOSS, "hidden_loss"),
    (metrics.ACCURACY, "accuracy"),
    (metrics.VISIBLE_ACCURACY, "visible_accuracy"),
)
"""Metrics of the student, the teacher and word counts, with their names in a validation."""


class RunMetrics:
    """Sets the metrics of one run."""

    def __init__(
        self,
        name: str,
        training: Training,
        schedule: Schedule,
        models: tuple[ModelShape | None, ModelShape],
        workers: Workers,
    ) -> None:
        self._name, self._training, self._schedule, self._workers = name, training, schedule, workers
        self._models = models
        self._peak = hardware.peak_flops(workers.device_name, workers.memory, training.precision)
        self._served, self._warned = False, False

    def begin(self, step: int) -> None:
        """Set the metrics that describe the run, which starts at ``step``, and serve them."""
        if self._workers.is_main_process:
            self._describe(step)
        if self._workers.local_rank == 0:
            metrics.NODE_WORKERS.labels(self._name).set(self._workers.local_world_size)
            self.serve()

    def serve(self) -> None:
        """Serve this node's endpoint. When the port is taken, warn once and try again at the next log."""
        port = self._training.placement.metrics_port
        if port is None or self._served or self._workers.local_rank != 0:
            return
        try:
            exporter.serve(port)
            self._served = True
        except OSError as error:
            if not self._warned:
                say(f"warning: placement.metrics_port {port}: {error.strerror}: no metrics until it is free")
            self._warned = True

    def _describe(self, step: int) -> None:
        name, placement = self._name, self._training.placement
        metrics.RUN.labels(name).info(described(self._training, self._workers))
        metrics.STARTED.labels(name).set_to_current_time()
        metrics.STEP_TIME.labels(name).set_to_current_time()
        metrics.STEP.labels(name).set(step)
        metrics.STEPS.labels(name).set(self._schedule.steps)
        metrics.STEP_SECONDS.labels(name).set(0)
        metrics.WORKERS.labels(name).set(self._workers.world_size)
        metrics.CHECKPOINT_STEPS.labels(name).set(placement.save_every)
        # Prometheus misses the first event of a counter that does not exist before it.
        for counter in (metrics.SKIPPED, metrics.NONFINITE, metrics.FAILED_CHECKPOINTS, metrics.TOKENS):
            counter.labels(name)
        metrics.ROWS.labels(name)
        for cause in CAUSES:
            metrics.RESTARTS.labels(name, cause)

    def mark_step(self) -> None:
        """Record the time of a step. :meth:`show_steps` shows its measurements later."""
        if self._workers.is_main_process:
            metrics.STEP_TIME.labels(self._name).set_to_current_time()

    def show_steps(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Show the steps since the last log: lines of the metrics file, oldest first."""
        name, last = self._name, lines[-1]
        for term in TERMS:
            metrics.LOSS.labels(name, term).set(last[term])
        norms = [line["gradient_norm"] for line in lines if math.isfinite(line["gradient_norm"])]
        metrics.GRADIENT_NORM.labels(name).set(max(norms, default=math.nan))
        metrics.LEARNING_RATE.labels(name).set(last["learning_rate"])
        if self._training.precision == "fp16":
            metrics.LOSS_SCALE.labels(name).set(last["loss_scale"])
        self._show_pace(lines)

    def _show_pace(self, lines: Sequence[Mapping[str, Any]]) -> None:
        name, last = self._name, lines[-1]
        step, rate = last["step"], last["tokens_per_second"]
        metrics.STEP.labels(name).set(step)
        metrics.STEP_SECONDS.labels(name).set(last["step_seconds"])
        metrics.RATE.labels(name).set(rate)
        left = self._schedule.tokens_after(self._schedule.steps) - last["tokens"]
        metrics.REMAINING.labels(name).set(left / rate)
        phases = [self._schedule.at(line["step"] - 1) for line in lines]
        metrics.TOKENS.labels(name).inc(sum(phase.tokens_per_step for phase in phases))
        metrics.ROWS.labels(name).inc(sum(phase.training.rows_per_step for phase in phases))
        if self._peak is not None:
            teacher, student = self._models
            phase = phases[-1]
            used = rate * costs.step_flops_per_token(phase.training, teacher, student, phase.seq_len)
            metrics.UTILIZATION.labels(name).set(used / (self._peak * self._workers.world_size))

    def show_parts(self, parts: Sequence[float]) -> None:
        """Show the mean seconds of a step by part: those of the first worker, then those of the next."""
        for number, part in enumerate(PARTS):
            seconds = parts[number :: len(PARTS)]
            metrics.PART_SECONDS.labels(self._name, part, "mean").set(sum(seconds) / len(seconds))
            metrics.PART_SECONDS.labels(self._name, part, "slowest").set(max(seconds))

    def show_validation(self, values: Mapping[str, float | None]) -> None:
        """Show a validation; None means not measured."""
        name = self._name
        for term in TERMS:
            if (value := values[term]) is not None:
                metrics.VALIDATION.labels(name, term).set(value)
        for model, prefix in (("student", ""), ("teacher", "teacher_"), ("word counts", "counts_")):
            for gauge, key in _OF_HIDDEN_WORDS:
                if (value := values.get(f"{prefix}{key}")) is not None:
                    gauge.labels(name, model).set(value)
        if (value := values["agreement"]) is not None:
            metrics.AGREEMENT.labels(name).set(value)

    def count_skipped(self, steps: int) -> None:
        metrics.SKIPPED.labels(self._name).inc(steps)

    def count_nonfinite(self) -> None:
        """Count a loss or gradient that is not finite. Every worker calls this; only the first counts it."""
        if self._workers.is_main_process:
            metrics.NONFINITE.labels(self._name).inc()

    def show_checkpoint_pause(self, seconds: float) -> None:
        """Show how long training paused to take a checkpoint."""
        metrics.CHECKPOINT_SECONDS.labels(self._name, "blocked").set(seconds)


def described(training: Training, workers: Workers) -> dict[str, str]:
    """Labels that describe a run; no paths or host names."""
    loss, optimizer, placement = training.loss, training.optimizer, training.placement
    found = {
        "precision": training.precision,
        "rows_per_step": training.rows_per_step,
        "learning_rate": optimizer.learning_rate,
        "temperature": loss.temperature,
        "weights": ", ".join(f"{term} {weight:g}" for term in LOSS_TERMS if (weight := getattr(loss, term))),
        "soft_positions": loss.soft_positions,
        "seed": training.seed,
        "zero_stage": placement.zero_stage,
        "teacher": placement.teacher,
        "device": workers.device_name,
        "version": version("stillhouse"),
    }
    return {key: str(value) for key, value in found.items()}
