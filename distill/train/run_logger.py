"""Logs a run to metrics.jsonl, Prometheus and the terminal, and takes its checkpoints.

Measurements stay on the device until :meth:`RunLogger.drain` reads those of all steps since the last call. It also
detects losses that are not finite. The engine skips every update from such a loss on, so the weights are still those
of the last good step.
"""

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from cluster.telemetry import metrics_log, progress
from cluster.telemetry.progress import say
from cluster.tokens import word_count_gain
from distill.checkpointing.checkpoint import CheckpointError
from distill.checkpointing.checkpoint_writer import CheckpointWriter, from_first, newest_agreed
from distill.checkpointing.run_folder import Run
from distill.config import Training
from distill.data.batches import I64
from distill.data.schedule import OpenPhase, Schedule
from distill.engine.deepspeed_engine import Engine, EngineError
from distill.engine.process_group import Workers
from distill.engine.step_timer import PARTS
from distill.follow import followers
from distill.modeling.losses import TERMS
from distill.train.run_metrics import RunMetrics
from distill.train.validation import Validated

RowsOf: TypeAlias = Callable[[], tuple[I64, I64]]
"""Computes the numbers of a micro-batch's training rows and their epochs."""

_LISTED_ROWS = 8


class TrainingError(ValueError):
    """A loss or gradient is not finite."""


@dataclass(frozen=True)
class _Step:
    """Measurements of an optimizer step, still on the device."""

    losses: Float[Tensor, "micros terms"]
    rows: tuple[RowsOf, ...]
    """One per micro-batch."""
    learning_rate: float
    gradient_norm: Tensor
    loss_scale: float
    skipped_steps: int


def _nonfinite(losses: Float[Tensor, "micros terms"], rows: Sequence[RowsOf]) -> str | None:
    """``cosine, at training rows 3, 17``: the losses that are not finite on any worker, or None. Collective."""
    bad = ~losses.isfinite()
    terms = [term for term, hit in zip(TERMS, bad.any(dim=0).tolist(), strict=True) if hit]
    numbers = [int(row) for hit, found in zip(bad.any(dim=1).tolist(), rows, strict=True) if hit for row in found()[0]]
    gathered: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, (terms, numbers))
    hit = {term for found, _ in gathered for term in found}
    if not hit:
        return None
    # A term that is not finite makes the total so; a total alone means that the weighted sum overflowed.
    named = [term for term in TERMS[1:] if term in hit] or ["total"]
    every = sorted({row for _, found in gathered for row in found})
    listed = ", ".join(map(str, every[:_LISTED_ROWS]))
    more = f" and {len(every) - _LISTED_ROWS:,} more" if len(every) > _LISTED_ROWS else ""
    return f"{', '.join(named)}, at training rows {listed}{more}"


def _short(value: float) -> float | int | None:
    """A number for JSON: whole ones as such, others to a millionth, None where it is not finite."""
    return None if not math.isfinite(value) else int(value) if value.is_integer() else round(value, 6)


class RunLogger:
    """Collects and writes a run's measurements; a context manager that every worker enters.

    Only the first worker writes, and locks the run folder meanwhile. When the block ends without an exception, every
    worker waits until the last checkpoint is on disk.
    """

    def __init__(
        self, run: Run, training: Training, schedule: Schedule, workers: Workers, run_metrics: RunMetrics
    ) -> None:
        self._run, self._training, self._schedule, self._workers = run, training, schedule, workers
        self._metrics = run_metrics
        self._parts = [0.0] * len(PARTS)
        """Mean seconds of a step by part, measured by this worker before the last log."""
        self._fp16 = training.precision == "fp16"
        self._step = 0
        self.resumed = False
        """Whether the run goes on from a checkpoint."""
        self._device_seconds = 0.0
        self._skipped_before, self._skipped, self._skipped_in_a_row = 0, 0, 0
        self._validation: dict[str, Any] = {}
        """What a checkpoint keeps of the last validation: its values, and its held-out rows."""
        self._validated_at = -1
        self._named = False
        self._agreement: float | None = None
        self._micros: list[Tensor] = []
        self._rows: list[RowsOf] = []
        self._pending: list[_Step] = []
        self._log: metrics_log.MetricsLog | None = None
        self._writer: CheckpointWriter | None = None
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Self:
        if self._workers.is_main_process:
            self._open.enter_context(self._run.held())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._open:
            # All workers raise it at the same step, so they can still drain earlier steps together.
            if isinstance(error, EngineError):
                self.drain()
            if error is None:
                self._raise_together(self._writer.last() if self._writer else None)

    def resume(self, engine: Engine) -> int:
        """Load the newest intact checkpoint into the engine; returns the first step to make (0-based).

        Raises:
            RunError: there are checkpoints, and all of them are damaged.
        """
        self._engine = engine
        if (newest := newest_agreed(self._run, self._workers)) is not None:
            engine.restore(newest.load())
            self.resumed = True
            self._step = newest.step
            self._device_seconds = float(newest.facts["device_seconds"])
            self._skipped = self._skipped_before = int(newest.facts["skipped_steps"])
        if self._workers.is_main_process:
            self._log = metrics_log.MetricsLog(self._run.metrics, self._step)
            # The followers end after the log has its last lines.
            self._open.enter_context(followers.following(self._run.path, self._training.placement.follow))
            self._open.callback(self._log.close)
            writer = CheckpointWriter(self._run, self._training.placement)
            self._writer = self._open.enter_context(contextlib.closing(writer))
            label, steps = f"{self._run.path.name}: training", self._schedule.steps
            self._progress = self._open.enter_context(progress.Progress(label, steps, "steps", self._step))
        self._metrics.begin(self._step)
        self._started = time.monotonic()
        return self._step

    def add(self, losses: Float[Tensor, "terms"], rows: RowsOf) -> None:
        """Add the losses ``[total, soft, masked, cosine]`` of a micro-batch, already divided by the accumulation."""
        self._micros.append(losses)
        self._rows.append(rows)

    def end_step(self, learning_rate: float) -> None:
        """Keep the measurements of a step, without reading them from the device."""
        engine = self._engine
        norm = engine.gradient_norm
        assert norm is not None, "no step was made yet"
        skipped = self._skipped_before + engine.skipped_steps
        losses, rows = torch.stack(self._micros), tuple(self._rows)
        self._pending.append(_Step(losses, rows, learning_rate, norm, engine.loss_scale, skipped))
        self._micros, self._rows = [], []
        self._metrics.mark_step()

    def drain(self) -> None:
        """Read and log the steps since the last call, with one reduction and one transfer for all of them.

        Raises:
            TrainingError: a loss is not finite; names the step and the rows.
            CheckpointError: several checkpoints in a row could not be written.
        """
        if not self._pending:
            return
        stop = self._writer.fatal_failure() if self._writer else None
        pending, self._pending = self._pending, []
        norms_read, losses_read, parts_read, (stops,) = self._read(pending, stop is not None)
        self._parts = [part / len(pending) for part in self._engine.step_timer.read().values()]
        seconds = (time.monotonic() - self._started) / len(pending)
        lines = []
        for number, (step, norm) in enumerate(zip(pending, norms_read, strict=True)):
            losses = losses_read[number * len(TERMS) : (number + 1) * len(TERMS)]
            # In fp16 the loss scaler handles an infinite gradient: DeepSpeed skipped the step.
            if not all(map(math.isfinite, losses if self._fp16 else [norm, *losses])):
                self._refuse(step)
            self._step += 1
            lines.append(self._record(step, dict(zip(TERMS, losses, strict=True)), norm, seconds))
        self._metrics.serve()
        if self._workers.is_main_process:
            self._metrics.show_steps(lines)
            if any(parts_read):  # all 0 at the first log
                self._metrics.show_parts(parts_read)
        if stops > 0:
            self._raise_together(stop)
        self._started = time.monotonic()

    def _read(self, pending: list[_Step], stop: bool) -> list[list[float]]:
        """Norms, losses, every worker's seconds by part before the last log, and the number of stop requests."""
        sums = torch.stack([step.losses.sum(0) for step in pending]) / self._workers.world_size
        # One slot per worker and part. Each worker fills its own, so the sum over workers gathers all.
        parts = [0.0] * (self._workers.world_size * len(PARTS))
        first = self._workers.rank * len(PARTS)
        parts[first : first + len(PARTS)] = self._parts
        read = torch.cat([sums.flatten(), sums.new_tensor([*parts, float(stop)])])
        torch.distributed.all_reduce(read)
        # The norms are those of the whole gradient, the same on every worker.
        norms = torch.stack([step.gradient_norm for step in pending])
        values = iter(torch.cat([norms, read]).tolist())
        return [list(itertools.islice(values, count)) for count in (len(pending), sums.numel(), len(parts), 1)]

    def _record(self, step: _Step, losses: dict[str, float], norm: float, seconds: float) -> dict[str, Any]:
        """The metrics line of a step; the first worker writes it."""
        self._device_seconds += seconds * self._workers.world_size
        skipped, self._skipped = step.skipped_steps - self._skipped, step.skipped_steps
        self._skipped_in_a_row = self._skipped_in_a_row + skipped if skipped else 0
        phase = self._phase()
        rate = phase.tokens_per_step / seconds
        line: dict[str, Any] = {
            "kind": "train",
            "step": self._step,
            "steps": self._schedule.steps,
            **losses,
            "learning_rate": step.learning_rate,
            "gradient_norm": norm,
            "loss_scale": step.loss_scale,
            "skipped_steps": step.skipped_steps,
            "skipped_in_a_row": self._skipped_in_a_row,
            "seq_len": phase.seq_len,
            "tokens": self._schedule.tokens_after(self._step),
            "step_seconds": seconds,
            "tokens_per_second": rate,
        }
        if self._log is not None:
            self._log.write(**line)
            self._metrics.count_skipped(skipped)
            self._progress.advance(note=progress.training_note(line, self._agreement))
        return line

    def _refuse(self, step: _Step) -> None:
        """Save the state before this step, whose loss or gradient is not finite, and raise TrainingError."""
        self._metrics.count_nonfinite()
        found = _nonfinite(step.losses, step.rows)
        number = self._step + 1
        what = f"loss of step {number} is not finite ({found}): look at these rows"
        if found is None:
            what = f"gradient of step {number} is not finite, although its loss is: look at the loss curve before it"
        if from_first(self._writer is not None and not self._writer.has(self._step), self._workers):
            self.save()
        unwritten = from_first(self._writer.last() if self._writer else None, self._workers)
        kept = f"the weights of step {self._step} are kept" if self._step else "no step was made before it"
        raise TrainingError(
            f"the {what}, or start a new --out with a lower optimizer.learning_rate or another precision; "
            f"{unwritten or kept}"
        )

    def validated(self, found: Validated) -> None:
        """Log a validation of the weights after the last drained step."""
        values = {"seq_len": self._phase().seq_len, **found.values}
        finite = {name: metrics_log.finite(value) for name, value in values.items()}
        rows = {name: [_short(value) for value in column] for name, column in found.rows.items()}
        self._validation = {"validation": finite, "heldout_rows": rows}
        self._validated_at = self._step
        self._agreement = values["agreement"]
        if self._log is not None:
            self._log.write(kind="validation", step=self._step, steps=self._schedule.steps, **values)
            self._metrics.show_validation(values)
            self._name_a_weak_teacher(values)
        # Validation does not count as training time.
        self._started = time.monotonic()

    def _name_a_weak_teacher(self, values: Mapping[str, float | None]) -> None:
        """Say once that the student can learn little from its teacher."""
        losses = values["teacher_hidden_loss"], values["counts_hidden_loss"]
        if not self._named and (warning := word_count_gain.warning("the teacher", *losses)):
            say(f"warning: {warning}")
            self._named = True

    def save(self) -> None:
        """Take a checkpoint of the last drained step. A thread writes it while training continues."""
        started = time.monotonic()
        if self._writer is not None:
            self._writer.wait()
        state = self._engine.state(keep=self._workers.is_main_process)
        assert state.optimizer_steps == self._step - self._skipped, "the weights are not those of this step"
        if self._writer is not None:
            self._writer.start(
                state,
                self._step,
                tokens=self._schedule.tokens_after(self._step),
                device_seconds=self._device_seconds,
                skipped_steps=self._skipped,
                world_size=self._workers.world_size,
                device=self._workers.device_name,
                # An older validation measured other weights.
                **(self._validation if self._validated_at == self._step else {"validation": {}, "heldout_rows": {}}),
            )
        self._started = time.monotonic()
        if self._workers.is_main_process:
            self._metrics.show_checkpoint_pause(self._started - started)

    def _phase(self) -> OpenPhase:
        """The phase of the last drained step."""
        return self._schedule.at(self._step - 1)

    def _raise_together(self, failure: str | None) -> None:
        """Raise CheckpointError on every worker when the first worker could not write its checkpoints."""
        if (failure := from_first(failure, self._workers)) is not None:
            raise CheckpointError(f"{failure}; then run the same command again")
