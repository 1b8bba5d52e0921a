"""The training loop: teacher forward, student forward and backward, one optimizer step, again.

Started by torchrun, by Ray (``distill.launch``) or alone; it reads ``RANK`` and ``WORLD_SIZE`` and knows neither::

    torchrun --nproc-per-node 8 -m distill.train RECIPE --tokens DIR --teacher DIR --out RUN

Started again on the same run folder, it goes on from the newest checkpoint, whatever the workers or ZeRO stage were.
"""

import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cluster import artifact, stage, telemetry
from cluster.rows import TokenSet, open_tokens
from distill import masked_lm, student
from distill.batches import Batches, Masker
from distill.distillation import Distillation, Training
from distill.engine import Engine, Workers, frozen, join
from distill.losses import TERMS, triple_loss
from distill.masked_lm import MaskedLM, ModelError, Outputs
from distill.run import Run
from distill.validation import Validation

logger = logging.getLogger("stillhouse")


class TrainingError(ValueError):
    """Training cannot go on: the loss left the numbers."""


def run(recipe: Distillation, inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
    """Train a student from a teacher into the run folder ``out``."""
    tokens = open_tokens(inputs["tokens"])
    taught = artifact.read(inputs["teacher"], "teacher")
    check_vocabularies(tokens, taught)
    identities = {"tokens": tokens.artifact.identity, "teacher": taught.identity}
    workers = join(recipe.placement.threads)
    teacher, _ = masked_lm.load(taught.path)
    if tokens.seq_len > masked_lm.longest_row(teacher):
        raise ModelError(f"rows of {tokens.seq_len} tokens, but the teacher reads {masked_lm.longest_row(teacher)}")
    model = student.make(teacher, recipe.student, recipe.seed)
    if workers.leads:
        Run(out).claim(recipe.identity(), identities)
        masked_lm.save_shape(model, tokens.path, out)
    torch.distributed.barrier()
    sharded = recipe.placement.teacher == "sharded"
    frozen_teacher = frozen(MaskedLM(teacher), recipe.precision, workers, sharded)
    fit(MaskedLM(model), frozen_teacher, tokens, recipe, Run(out), workers)
    return {}


def check_vocabularies(tokens: TokenSet, teacher: artifact.Artifact) -> None:
    """Teacher and tokens must number the same words the same way.

    Raises:
        ModelError: they do not.
    """
    if tokens.artifact.facts["vocabulary"] != teacher.facts["vocabulary"]:
        raise ModelError(
            f"tokens {tokens.path} and teacher {teacher.path} have different vocabularies: make the tokens with "
            f"--tokenizer {teacher.path}"
        )


def fit(
    model: MaskedLM, teacher: nn.Module | None, tokens: TokenSet, training: Training, run: Run, workers: Workers
) -> None:
    """Train ``model`` to the last step of ``training``, going on from the newest checkpoint of ``run``.

    Every worker calls this. ``teacher`` may be None when no loss term needs one.
    """
    steps = training.total_steps(len(tokens.train))
    engine = Engine(model, training, workers)
    newest = run.newest()
    first_step = newest.step if newest else 0
    if newest:
        engine.restore(newest.load())
    masker = Masker(tokens, training.masking, training.seed)
    batches = Batches(tokens.train, masker, training.rows_per_step, training.seed)
    validation = Validation(tokens.heldout, masker, training, teacher, workers)
    recorder = Recorder(run, training, tokens.seq_len, steps, first_step, workers, newest.facts if newest else {})
    placement = training.placement
    asked = teacher if training.loss.needs_teacher else None

    # ------------------------------------------------------------------------------------------------------------------
    for step in range(first_step, steps):
        learning_rate = training.optimizer.learning_rate_at(step, steps)
        for micro in range(engine.accumulation):
            first = (micro * workers.world_size + workers.rank) * engine.micro_rows
            batch = batches.take(step, first, engine.micro_rows).to(workers.device)
            positions = None if training.loss.needs_all_logits else batch.positions
            with torch.no_grad():
                taught: Outputs | None = asked(batch.input_ids, positions) if asked else None
            outputs = engine(batch.input_ids, positions)
            label_rows = batch.positions if positions is None else None
            losses = triple_loss(outputs, taught, batch.labels, label_rows, training.loss)
            engine.backward(losses.total)
            engine.step(learning_rate)
            recorder.add(losses.stack() / engine.accumulation)
        recorder.end_step(learning_rate, engine.gradient_norm)
        done = step + 1
        last = done == steps
        if done % placement.log_every == 0 or last:
            recorder.drain(engine)
        if done % placement.validate_every == 0 or last:
            recorder.validated(done, validation.measure(engine))
        if done % placement.save_every == 0 or last:
            recorder.drain(engine)
            recorder.save(engine, done)
    # ------------------------------------------------------------------------------------------------------------------
    recorder.close()


@dataclass
class _Step:
    losses: Tensor
    learning_rate: float
    gradient_norm: float | Tensor | None


class Recorder:
    """Keeps a run's numbers on the device until they are read, then in metrics.jsonl, Prometheus and the terminal."""

    def __init__(
        self,
        run: Run,
        training: Training,
        seq_len: int,
        steps: int,
        first_step: int,
        workers: Workers,
        before: Mapping[str, Any],
    ) -> None:
        self._run, self._training, self._workers = run, training, workers
        self._tokens_per_step = training.rows_per_step * seq_len
        self._step, self._steps, self._started = first_step, steps, time.monotonic()
        self._seconds = float(before.get("seconds", 0.0))
        self._micro: Tensor | None = None
        self._pending: list[_Step] = []
        self._skipped = 0
        self._validation: dict[str, float | None] = dict(before.get("validation", {}))
        self._log: telemetry.MetricsLog | None = None
        if workers.leads:
            self._log = telemetry.MetricsLog(run.metrics, first_step)
            self._progress = telemetry.Progress(f"{run.path.name}: training", steps, "steps", first_step)
            telemetry.STEPS.set(steps)
        if workers.local_rank == 0 and training.placement.metrics_port is not None:
            telemetry.serve(training.placement.metrics_port)

    def add(self, losses: Tensor) -> None:
        """Losses ``[total, soft, masked, cosine]`` of one micro-batch, already divided by the accumulation."""
        self._micro = losses if self._micro is None else self._micro + losses

    def end_step(self, learning_rate: float, gradient_norm: float | Tensor | None) -> None:
        assert self._micro is not None
        self._pending.append(_Step(self._micro, learning_rate, gradient_norm))
        self._micro = None

    def drain(self, engine: Engine) -> None:
        """Read what the steps since the last call measured: one reduction and one transfer for all of them.

        Raises:
            TrainingError: a loss is not finite; says at which step.
        """
        if not self._pending:
            return
        losses = torch.stack([step.losses for step in self._pending])
        torch.distributed.all_reduce(losses)
        means = (losses / self._workers.world_size).tolist()
        seconds = (time.monotonic() - self._started) / len(self._pending)
        self._started = time.monotonic()
        self._seconds += seconds * len(self._pending)
        for pending, values in zip(self._pending, means, strict=True):
            self._step += 1
            self._record(pending, dict(zip(TERMS, values, strict=True)), seconds, engine)
        self._pending = []

    def _record(self, pending: _Step, losses: dict[str, float], seconds: float, engine: Engine) -> None:
        if not all(math.isfinite(value) for value in losses.values()):
            telemetry.NONFINITE.inc()
            raise TrainingError(
                f"the loss of step {self._step} is not finite ({losses}): resume from {self._run.newest_path()} with a "
                "lower optimizer.learning_rate or another precision"
            )
        if self._log is None:
            return
        norm = None if pending.gradient_norm is None else float(pending.gradient_norm)
        self._log.write(
            kind="train",
            step=self._step,
            steps=self._steps,
            **losses,
            learning_rate=pending.learning_rate,
            gradient_norm=norm,
            loss_scale=engine.loss_scale,
            skipped_steps=engine.skipped_steps,
            tokens=self._step * self._tokens_per_step,
            step_seconds=seconds,
            tokens_per_second=self._tokens_per_step / seconds,
        )
        telemetry.record_step(self._step, losses, pending.learning_rate, norm, engine.loss_scale, seconds)
        telemetry.TOKENS.inc(self._tokens_per_step)
        telemetry.RATE.set(self._tokens_per_step / seconds)
        telemetry.SKIPPED.inc(engine.skipped_steps - self._skipped)
        self._skipped = engine.skipped_steps
        note = telemetry.training_note({**losses, "tokens_per_second": self._tokens_per_step / seconds})
        self._progress.advance(note=note)

    def validated(self, step: int, values: dict[str, float | None]) -> None:
        """Record a validation."""
        self._validation = values
        if self._log is not None:
            self._log.write(kind="validation", step=step, **values)
            telemetry.record_validation(values)
        # Validation is not training time.
        self._started = time.monotonic()

    def save(self, engine: Engine, step: int) -> None:
        """Write a checkpoint; collective."""
        started = time.monotonic()
        state = engine.state(keep=self._workers.leads)
        if self._workers.leads:
            self._run.save(
                state,
                step,
                self._training.placement.keep_checkpoints,
                tokens=step * self._tokens_per_step,
                seconds=self._seconds,
                world_size=self._workers.world_size,
                device=_device_name(self._workers.device),
                validation=self._validation,
            )
            telemetry.CHECKPOINT_TIME.set_to_current_time()
            telemetry.CHECKPOINT_SECONDS.set(time.monotonic() - started)
        torch.distributed.barrier()
        self._started = time.monotonic()

    def close(self) -> None:
        if self._log is not None:
            self._log.close()
            self._progress.close()


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


STAGE = stage.Stage(
    run=run,
    recipe=Distillation,
    inputs={"tokens": stage.Role(("tokens",)), "teacher": stage.Role(("teacher",))},
    produces="run",
    grows=True,
)

if __name__ == "__main__":
    stage.main(STAGE)
