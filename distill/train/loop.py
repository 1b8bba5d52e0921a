"""The training loop: teacher forward, student forward and backward, one optimizer step, again.

Started by torchrun, by Ray (``distill.launch``) or alone; the workers find each other by ``RANK`` and ``WORLD_SIZE``::

    torchrun --nproc-per-node 8 -m distill.train RECIPE --tokens DIR [DIR …] --teacher DIR --out RUN

The same command on the same run folder resumes from the newest checkpoint, with any number of workers and ZeRO stage.
"""

from collections.abc import Mapping
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
from distill.config import Distillation, Training
from distill.data.schedule import Schedule
from distill.engine.deepspeed_engine import Engine
from distill.engine.process_group import Workers, join
from distill.engine.teacher_engine import TeacherEngine
from distill.follow import trackers
from distill.modeling import masked_lm, model_shape, student
from distill.modeling.masked_lm import MaskedLM, ModelError
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
    fit(model, TeacherEngine(MaskedLM(teacher), recipe, workers), schedule, recipe, Run(out), workers)
    return {}


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
    objective = StudentObjective(model, training.loss, head)
    validations = [Validation(phase.tokens, training, teacher, workers) for phase in schedule.phases]
    if not training.loss.needs_teacher:
        teacher = None
    micro_rows = [micro_batch_size.rows(phase, objective, teacher, workers) for phase in schedule.phases]
    engine = Engine(objective, schedule.first.training, workers)
    projection = teacher.projection if teacher else None
    stop = None
    of_teacher = model_shape.of_config(teacher.config.to_dict(), "the teacher") if teacher else None
    shapes = of_teacher, model_shape.of_config(model.config.to_dict(), "the student")
    run_metrics = RunMetrics(metrics.run_name(run.path), training, schedule, shapes, workers)
    timer = engine.step_timer
    with GracefulStop(workers) as stopping, RunLogger(run, training, schedule, workers, run_metrics) as run_logger:
        first_step = run_logger.resume(engine)
        if steps == 0 and not run_logger.resumed:
            engine.begin_phase(training.rows_per_step, micro_rows[0])
            run_logger.validated(validations[0].measure(engine))
            run_logger.save()
        # --------------------------------------------------------------------------------------------------------------
        for step in range(first_step, steps):
            phase = schedule.at(step)
            if step in (first_step, phase.first_step):
                engine.begin_phase(phase.training.rows_per_step, micro_rows[phase.number])
            for micro in range(engine.accumulation):
                timer.begin("data")
                first = (micro * workers.world_size + workers.rank) * engine.micro_rows
                batch = phase.batches.take(step, first, engine.micro_rows).to(workers.device)
                timer.begin("teacher")
                targets = teacher(batch) if teacher else None
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
                run_logger.validated(validations[phase.number].measure(engine))
            if saves:
                run_logger.save()
            if stop is not None:
                break
        # --------------------------------------------------------------------------------------------------------------
    if stop is not None:
        raise StoppedError(stop, done)


STAGE = stage.Stage(
    name="distill.train",
    run=run,
    recipe=Distillation,
    inputs={"tokens": stage.Role(("tokens",), keyed_by="seq_len"), "teacher": stage.Role(("teacher",))},
    produces="run",
    example="demo#train",
    grows=True,
)
