"""The training loop: teacher forward, student forward and backward, one optimizer step, again.

Started by torchrun, by Ray (``distill.launch``) or alone; the workers find each other by ``RANK`` and ``WORLD_SIZE``::

    torchrun --nproc-per-node 8 -m distill.train RECIPE --tokens DIR [DIR …] --teacher DIR --out RUN

The same command on the same run folder resumes from the newest checkpoint, with any number of workers and ZeRO stage.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cluster.artifacts import artifact, stage
from cluster.models import model_check
from cluster.models.model_folder import positions
from cluster.telemetry import metrics
from cluster.tokens.rows import TokenSet, open_tokens
from distill.checkpointing.run_folder import Run
from distill.config import Distillation, Loss, Training
from distill.data.schedule import OpenPhase, Schedule
from distill.engine.deepspeed_engine import Engine
from distill.engine.process_group import Workers, join
from distill.engine.teacher_engine import TeacherEngine
from distill.follow import trackers
from distill.modeling import masked_lm, model_shape, student
from distill.modeling.compared_layers import ComparedLayers, compared
from distill.modeling.masked_lm import MaskedLM, ModelError, Taps
from distill.modeling.model_shape import ModelShape
from distill.train import micro_batch_size, preflight
from distill.train.graceful_stop import GracefulStop, StoppedError
from distill.train.run_logger import RunLogger
from distill.train.run_metrics import RunMetrics
from distill.train.student_objective import StudentObjective, head_settings
from distill.train.validation import Validation


def run(recipe: Distillation, inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
    """Train a student from a teacher into the run folder ``out``."""
    trackers.check(recipe.placement.follow)
    schedule = Schedule(recipe, map(open_tokens, stage.inputs_of("tokens", inputs).values()))
    source = model_check.unchanged(inputs["teacher"])
    identities = {role: artifact.read(path).identity for role, path in inputs.items()}
    workers = join(recipe.placement.threads)
    check_loss(recipe, model_shape.of_folder(source.path))
    teacher, _ = masked_lm.load(source.path)
    for phase in schedule.phases:
        check_reads(teacher, source.facts["vocabulary"], source.path, phase.tokens)
    model = student.make(teacher, recipe.student, recipe.seed)
    masked_lm.choose_attention(teacher, workers.device.type, schedule.longest)
    preflight.check_worker(schedule, teacher, model, workers, out)
    if workers.is_main_process:
        Run(out).claim(recipe.identity(), identities)
        masked_lm.save_shape(model, schedule.first.tokens.path, out)
    torch.distributed.barrier()
    taught = TeacherEngine(
        MaskedLM(teacher), recipe, workers, _watched(recipe.losses, teacher.config.num_hidden_layers)
    )
    fit(model, taught, schedule, recipe, Run(out), workers)
    return {}


def check_loss(recipe: Distillation, teacher: ModelShape) -> None:
    """Check that the student of this teacher has the layers, widths and heads that the losses compare.

    Raises:
        ModelError: it does not.
    """
    shape = model_shape.student_shape(teacher, len(student.chosen_layers(recipe.student, teacher.layers)))
    for loss in recipe.losses:
        compared(loss, shape, teacher)


def _watched(losses: Sequence[Loss], layers: int) -> tuple[int, ...]:
    """The teacher layers whose relations the losses compare."""
    found = {layers - 1 if loss.relation_layer is None else loss.relation_layer for loss in losses if loss.relation}
    return tuple(sorted(found))


def check_reads(teacher: Any, vocabulary: str, source: str | Path, tokens: TokenSet) -> None:
    """Check that a teacher from ``source`` with this vocabulary reads rows like these.

    Raises:
        ModelError: the vocabularies differ, or the rows are too long.
    """
    if tokens.artifact.facts["vocabulary"] != vocabulary:
        raise ModelError(
            f"tokens {tokens.path} and teacher {source} have different vocabularies: make the tokens with "
            f"--tokenizer {source}"
        )
    if tokens.seq_len > (longest := positions(teacher.config)):
        raise ModelError(
            f"rows of {tokens.seq_len} tokens, but the teacher reads {longest}: make tokens of seq_len = {longest} "
            f"or less instead of {tokens.path}"
        )


def fit(
    model: Any, teacher: TeacherEngine | None, schedule: Schedule, training: Training, run: Run, workers: Workers
) -> None:
    """Train ``model`` to the last step of ``training``, from the newest checkpoint of ``run`` on.

    Every worker calls this. ``teacher`` may be None when no loss term needs one.

    Raises:
        StoppedError: a stop was requested; a checkpoint of the last step is written.
    """
    steps = schedule.steps
    masked_lm.choose_attention(model, workers.device.type, schedule.longest)
    placement = training.placement
    head = head_settings(training, schedule.first.tokens.vocab_size, workers)
    of_teacher = model_shape.of_config(teacher.config.to_dict(), "the teacher") if teacher else None
    of_student = model_shape.of_config(model.config.to_dict(), "the student")
    layers = [
        compared(phase.training.loss, of_student, of_teacher) if of_teacher else None for phase in schedule.phases
    ]
    objective = StudentObjective(model, training.loss, head)
    if any(found and found.relations for found in layers):
        objective.watch(of_student.layers - 1)
    parts = [
        _part(phase, found, objective, teacher, workers) for phase, found in zip(schedule.phases, layers, strict=True)
    ]
    if not training.needs_teacher:
        teacher = of_teacher = None
    engine = Engine(objective, schedule.first.training, workers)
    projection = teacher.projection if teacher else None
    stop = None
    shapes = of_teacher, of_student
    run_metrics = RunMetrics(metrics.run_name(run.path), training, schedule, shapes, workers)
    timer = engine.step_timer
    with GracefulStop(workers) as stopping, RunLogger(run, training, schedule, workers, run_metrics) as run_logger:
        first_step = run_logger.resume(engine)
        if steps == 0 and not run_logger.resumed:
            objective.begin_phase(schedule.first.training.loss, layers[0])
            engine.begin_phase(training.rows_per_step, parts[0].micro_rows)
            run_logger.validated(parts[0].validation.measure(engine))
            run_logger.save()
        # --------------------------------------------------------------------------------------------------------------
        for step in range(first_step, steps):
            phase = schedule.at(step)
            part = parts[phase.number]
            if step in (first_step, phase.first_step):
                objective.begin_phase(phase.training.loss, part.layers)
                engine.begin_phase(phase.training.rows_per_step, part.micro_rows, phase.training.loss.needs_head)
            for micro in range(engine.accumulation):
                timer.begin("data")
                first = (micro * workers.world_size + workers.rank) * engine.micro_rows
                batch = phase.batches.take(step, first, engine.micro_rows).to(workers.device)
                timer.begin("teacher")
                targets = teacher(batch, part.taps) if teacher and part.taps else None
                timer.begin("student_forward")
                engine.seed_dropout(phase.batches.dropout_seed(step, first))
                losses = engine(batch, targets, projection).losses
                timer.begin("backward")
                engine.backward(losses.total)
                rows = partial(phase.batches.rows, step, first, engine.micro_rows)
                run_logger.add(losses.stack() / engine.accumulation, rows)
            learning_rate = training.optimizer.learning_rate_at(step, steps)
            timer.begin("optimizer")
            engine.step(learning_rate)
            timer.begin("")
            run_logger.end_step(learning_rate)
            done = step + 1
            last = done == steps
            validates = done % placement.validate_every == 0 or done == phase.end
            stop = None if last else stopping.agreed()
            saves = done % placement.save_every == 0 or last or stop is not None
            if done % placement.log_every == 0 or validates or saves:
                run_logger.drain()
            if validates:
                run_logger.validated(part.validation.measure(engine))
            if saves:
                run_logger.save()
            if stop is not None:
                break
        # --------------------------------------------------------------------------------------------------------------
    if stop is not None:
        raise StoppedError(stop, done)


@dataclass(frozen=True)
class _Part:
    """A phase, ready to train."""

    layers: ComparedLayers | None
    taps: Taps | None
    """What the teacher computes; None where no term needs it."""
    validation: Validation
    micro_rows: int


def _part(
    phase: OpenPhase,
    layers: ComparedLayers | None,
    objective: StudentObjective,
    teacher: TeacherEngine | None,
    workers: Workers,
) -> _Part:
    """Prepare a phase. Collective."""
    loss = phase.training.loss
    taps = layers.of_teacher(loss) if layers and loss.needs_teacher else None
    validation = Validation(phase.tokens, phase.training, teacher, layers, workers)
    objective.begin_phase(loss, layers)
    return _Part(layers, taps, validation, micro_batch_size.rows(phase, objective, teacher, taps, workers))


STAGE = stage.Stage(
    name="distill.train",
    run=run,
    recipe=Distillation,
    inputs={"tokens": stage.Role(("tokens",), keyed_by="seq_len"), "teacher": stage.Role(("teacher",))},
    produces="run",
    example="demo#train",
    grows=True,
)
