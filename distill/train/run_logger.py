"""What a run says of itself: metrics.jsonl, Prometheus, the terminal, and its checkpoints.

Numbers stay on the device until they are read, once for all steps since the last reading. Whether a loss was finite is
read there too: the engine's updates come to nothing from the first loss on that was not, so the weights are still
those of the last good step.
"""

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from cluster.telemetry import metrics_log, progress
from distill.checkpointing.checkpoint import CheckpointError
from distill.checkpointing.checkpoint_writer import Saver, agreed, from_first
from distill.checkpointing.run_folder import Run
from distill.config import Training
from distill.data.batches import I64
from distill.data.schedule import OpenPhase, Schedule
from distill.engine.deepspeed_engine import Engine, EngineError
from distill.engine.process_group import Workers
from distill.engine.step_timer import PARTS
from distill.modeling.losses import TERMS
from distill.train.run_metrics import RunMetrics

RowsOf: TypeAlias = Callable[[], tuple[I64, I64]]
"""Numbers of the training rows of a micro-batch and their epochs, worked out only when they are asked for."""

_SHOWN = 8


def where(losses: Float[Tensor, "micros terms"], rows: Sequence[RowsOf]) -> str | None:
    """``cosine, at training rows 3, 17``: what was not finite in a step, given its micro-batches here.

    None when all its losses were finite. Collective.
    """
    bad = ~losses.isfinite()
    terms = [term for term, hit in zip(TERMS, bad.any(dim=0).tolist(), strict=True) if hit]
    numbers = [int(row) for hit, found in zip(bad.any(dim=1).tolist(), rows, strict=True) if hit for row in found()[0]]
    everywhere: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everywhere, (terms, numbers))
    hit = {term for found, _ in everywhere for term in found}
    if not hit:
        return None
    # The total is not finite because a term is; alone it says that a weighted sum overflowed.
    named = [term for term in TERMS[1:] if term in hit] or ["total"]
    return f"{', '.join(named)}, at training rows {_listed(sorted({row for _, found in everywhere for row in found}))}"


def _listed(rows: list[int]) -> str:
    shown = ", ".join(map(str, rows[:_SHOWN]))
    return shown if len(rows) <= _SHOWN else f"{shown} and {len(rows) - _SHOWN:,} more"


class TrainingError(ValueError):
    """Training cannot go on: the loss left the numbers."""


@dataclass(frozen=True)
class _Step:
    """What an optimizer step measured, not read yet."""

    losses: Float[Tensor, "micros terms"]
    rows: tuple[RowsOf, ...]
    """Of every micro-batch."""
    learning_rate: float
    gradient_norm: float | Tensor
    loss_scale: float
    skipped_steps: int


class Recorder:
    """Keeps a run's numbers and writes them down; a context manager, used by every worker together.

    Only the first worker writes; it holds the run folder meanwhile. Left without an exception, every worker has waited
    until the last checkpoint was on the disk.
    """

    def __init__(self, run: Run, training: Training, schedule: Schedule, workers: Workers, live: RunMetrics) -> None:
        self._run, self._training, self._schedule, self._workers = run, training, schedule, workers
        self._live = live
        self._parts = [0.0] * len(PARTS)
        """Seconds of a mean step, by part, as this worker measured them before the last log."""
        self._fp16 = training.precision == "fp16"
        self._step = 0
        self._device_seconds = 0.0
        self._skipped_before, self._skipped, self._skipped_in_a_row = 0, 0, 0
        self._validation: dict[str, float | None] = {}
        self._validated_at = -1
        self._micros: list[Tensor] = []
        self._rows: list[RowsOf] = []
        self._pending: list[_Step] = []
        self._log: metrics_log.MetricsLog | None = None
        self._saver: Saver | None = None
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Self:
        if self._workers.leads:
            self._open.enter_context(self._run.held())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._open:
            # Workers raise these together, so they can still read together what was measured before.
            if isinstance(error, EngineError):
                self.drain()
            if error is None:
                self._tell(self._saver.last() if self._saver else None)
            if self._step == self._schedule.steps or isinstance(error, (TrainingError, EngineError)):
                self._live.linger()

    def resume(self, engine: Engine) -> int:
        """Give the engine the newest sound checkpoint; returns the first step (0-based) there is to make.

        Raises:
            RunError: checkpoints are there, and all of them are damaged.
        """
        self._engine = engine
        if (newest := agreed(self._run, self._workers)) is not None:
            engine.restore(newest.load())
            self._step = newest.step
            self._device_seconds = float(newest.facts["device_seconds"])
            self._skipped = self._skipped_before = int(newest.facts["skipped_steps"])
        if self._workers.leads:
            self._begin()
        self._live.begin(self._step)
        self._started = time.monotonic()
        return self._step

    def _begin(self) -> None:
        self._log = metrics_log.MetricsLog(self._run.metrics, self._step)
        self._open.callback(self._log.close)
        self._saver = self._open.enter_context(contextlib.closing(Saver(self._run, self._training.placement)))
        what, steps = f"{self._run.path.name}: training", self._schedule.steps
        self._progress = self._open.enter_context(progress.Progress(what, steps, "steps", self._step))

    def add(self, losses: Float[Tensor, "terms"], rows: RowsOf) -> None:
        """Losses ``[total, soft, masked, cosine]`` of one micro-batch, already divided by the accumulation."""
        self._micros.append(losses)
        self._rows.append(rows)

    def end_step(self, learning_rate: float) -> None:
        """Remember what the step measured; nothing is read from the device."""
        engine = self._engine
        norm = engine.gradient_norm
        assert norm is not None, "no step was made"
        skipped = self._skipped_before + engine.skipped_steps
        losses, rows = torch.stack(self._micros), tuple(self._rows)
        self._pending.append(_Step(losses, rows, learning_rate, norm, engine.loss_scale, skipped))
        self._micros, self._rows = [], []
        self._live.stepped()

    def drain(self) -> None:
        """Read what the steps since the last call measured: one reduction and one transfer for all of them.

        Raises:
            TrainingError: a loss is not finite; says at which step and rows.
            CheckpointError: several checkpoints in a row could not be written.
        """
        if not self._pending:
            return
        stop = self._saver.reason_to_stop() if self._saver else None
        pending, self._pending = self._pending, []
        norms_read, losses_read, parts_read, (stops,) = self._read(pending, stop is not None)
        self._parts = [part / len(pending) for part in self._engine.stopwatch.read().values()]
        seconds = (time.monotonic() - self._started) / len(pending)
        lines = []
        for number, (step, norm) in enumerate(zip(pending, norms_read, strict=True)):
            losses = losses_read[number * len(TERMS) : (number + 1) * len(TERMS)]
            # Under fp16 an infinite gradient is the loss scaler's business: the step was skipped.
            if not all(map(math.isfinite, losses if self._fp16 else [norm, *losses])):
                self._refuse(step)
            self._step += 1
            lines.append(self._record(step, dict(zip(TERMS, losses, strict=True)), norm, seconds))
        self._show(lines, parts_read)
        if stops > 0:
            self._tell(stop)
        self._started = time.monotonic()

    def _read(self, pending: list[_Step], stop: bool) -> list[list[float]]:
        """Norms, losses, every worker's seconds by part before the last log, and how many workers want to stop."""
        sums = torch.stack([step.losses.sum(0) for step in pending]) / self._workers.world_size
        # A place for every part of every worker; those of others are 0, so that the sum gathers all.
        parts = [0.0] * (self._workers.world_size * len(PARTS))
        first = self._workers.rank * len(PARTS)
        parts[first : first + len(PARTS)] = self._parts
        read = torch.cat([sums.flatten(), sums.new_tensor([*parts, float(stop)])])
        torch.distributed.all_reduce(read)
        # Every worker knows the norms already: they are those of the whole gradient.
        norms = torch.stack([torch.as_tensor(step.gradient_norm, device=read.device).float() for step in pending])
        values = iter(torch.cat([norms, read]).tolist())
        return [list(itertools.islice(values, count)) for count in (len(pending), sums.numel(), len(parts), 1)]

    def _show(self, lines: list[dict[str, Any]], parts: list[float]) -> None:
        self._live.serve()
        if self._workers.leads:
            self._live.logged(lines)
            if any(parts):  # nothing was known yet at the first log
                self._live.divided([parts[at : at + len(PARTS)] for at in range(0, len(parts), len(PARTS))])

    def _record(self, step: _Step, losses: dict[str, float], norm: float, seconds: float) -> dict[str, Any]:
        """The line of a step, written down by the first worker."""
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
            self._live.skipped(skipped)
            self._progress.advance(note=progress.training_note(line))
        return line

    def _refuse(self, step: _Step) -> None:
        """Stop at a step whose loss or gradient is not finite, with the state before it on the disk."""
        self._live.refused()
        found = where(step.losses, step.rows)
        at = f"step {self._step + 1}"
        what = f"loss of {at} is not finite ({found}): look at these rows"
        if found is None:
            what = f"gradient of {at} is not finite, although its loss is: look at the curve before"
        if from_first(self._saver is not None and not self._saver.has(self._step), self._workers):
            self.save()
        unwritten = from_first(self._saver.last() if self._saver else None, self._workers)
        kept = f"the weights of step {self._step} are kept" if self._step else "nothing was trained yet"
        raise TrainingError(
            f"the {what}, or start a new --out with a lower optimizer.learning_rate or another precision; "
            f"{unwritten or kept}"
        )

    def validated(self, values: dict[str, float | None]) -> None:
        """Record a validation of the weights as they are after the last drained step."""
        values = {"seq_len": self._phase().seq_len, **values}
        self._validation = {name: metrics_log.finite(value) for name, value in values.items()}
        self._validated_at = self._step
        if self._log is not None:
            self._log.write(kind="validation", step=self._step, **values)
            self._live.validated(values)
        # Validation is not training time.
        self._started = time.monotonic()

    def save(self) -> None:
        """Take a checkpoint of the last drained step; it is written while training goes on."""
        started = time.monotonic()
        if self._saver is not None:
            self._saver.wait()
        state = self._engine.state(keep=self._workers.leads)
        assert state.optimizer_steps == self._step - self._skipped, "the weights are not those of this step"
        if self._saver is not None:
            self._saver.start(
                state,
                self._step,
                tokens=self._schedule.tokens_after(self._step),
                device_seconds=self._device_seconds,
                skipped_steps=self._skipped,
                world_size=self._workers.world_size,
                device=self._workers.device_name,
                # Only a validation of these very weights belongs to them.
                validation=self._validation if self._validated_at == self._step else {},
            )
        self._started = time.monotonic()
        if self._workers.leads:
            self._live.blocked(self._started - started)

    def _phase(self) -> OpenPhase:
        """The phase of the last drained step."""
        return self._schedule.at(self._step - 1)

    def _tell(self, failure: str | None) -> None:
        """Let every worker know what the first one knows of its checkpoints.

        Raises:
            CheckpointError: they cannot be written.
        """
        if (told := from_first(failure, self._workers)) is not None:
            raise CheckpointError(f"{told}; then run the same command again")
