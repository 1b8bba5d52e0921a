"""The training loop: teacher forward, student forward and backward, one optimizer step, again.

Started by torchrun, by Ray (``distill.launch``) or alone; it reads ``RANK`` and ``WORLD_SIZE`` and knows neither::

    torchrun --nproc-per-node 8 -m distill.train RECIPE --tokens DIR [DIR …] --teacher DIR --out RUN

Started again on the same run folder, it goes on from the newest checkpoint, whatever the workers or ZeRO stage were.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cluster.artifacts import artifact, stage
from cluster.telemetry import metrics
from cluster.tokens.rows import TokenSet
from distill.checkpointing.run_folder import Run
from distill.config import Distillation, Training
from distill.data.schedule import Schedule
from distill.engine.deepspeed_engine import Engine
from distill.engine.process_group import Workers, join
from distill.engine.teacher_engine import TeacherEngine
from distill.modeling import masked_lm, model_shape, student
from distill.modeling.masked_lm import MaskedLM, ModelError
from distill.modeling.model_shape import ModelShape
from distill.train import micro_batch_size, preflight
from distill.train.graceful_stop import StoppedError, Stopping
from distill.train.run_logger import Recorder
from distill.train.run_metrics import RunMetrics
from distill.train.student_objective import Learner, head_for
from distill.train.validation import Validation


def run(recipe: Distillation, inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
    """Train a student from a teacher into the run folder ``out``."""
    schedule = Schedule.of(recipe, stage.several("tokens", inputs).values())
    taught = artifact.read(inputs["teacher"], "teacher")
    check_vocabularies(schedule.first.tokens, taught)
    identities = {role: artifact.read(path).identity for role, path in inputs.items()}
    workers = join(recipe.placement.threads)
    teacher, _ = masked_lm.load(taught.path)
    if schedule.longest > masked_lm.longest_row(teacher):
        raise ModelError(f"rows of {schedule.longest} tokens, but the teacher reads {masked_lm.longest_row(teacher)}")
    model = student.make(teacher, recipe.student, recipe.seed)
    masked_lm.choose_attention(teacher, workers.device.type, schedule.longest)
    preflight.check_worker(schedule, teacher, model, workers, out)
    if workers.leads:
        Run(out).claim(recipe.identity(), identities)
        masked_lm.save_shape(model, schedule.first.tokens.path, out)
    torch.distributed.barrier()
    fit(model, TeacherEngine(MaskedLM(teacher), recipe, workers), schedule, recipe, Run(out), workers)
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
    model: Any, teacher: TeacherEngine | None, schedule: Schedule, training: Training, run: Run, workers: Workers
) -> None:
    """Train ``model`` to the last step of ``training``, going on from the newest checkpoint of ``run``.

    Every worker calls this. ``teacher`` may be None when no loss term needs one.

    Raises:
        StoppedError: it was asked to stop, and has written a checkpoint.
    """
    steps = schedule.steps
    masked_lm.choose_attention(model, workers.device.type, schedule.longest)
    placement = training.placement
    head = head_for(training, schedule.first.tokens.vocab_size, workers)
    learner = Learner(model, training.loss, head)
    validations = [Validation(phase.tokens, training, teacher, workers) for phase in schedule.phases]
    asked = teacher if training.loss.needs_teacher else None
    micro_rows = [micro_batch_size.rows(phase, learner, asked, workers) for phase in schedule.phases]
    engine = Engine(learner, schedule.first.training, workers)
    projection = asked.projection if asked else None
    stop = None
    shown = RunMetrics(metrics.run_name(run.path), training, schedule, _shapes(model, asked), workers)
    stopwatch = engine.stopwatch
    with Stopping(workers) as stopping, Recorder(run, training, schedule, workers, shown) as recorder:
        first_step = recorder.resume(engine)
        # --------------------------------------------------------------------------------------------------------------
        for step in range(first_step, steps):
            phase = schedule.at(step)
            if step in (first_step, phase.first_step):
                engine.begin(phase.training.rows_per_step, micro_rows[phase.number])
            for micro in range(engine.accumulation):
                stopwatch.begin("data")
                first = (micro * workers.world_size + workers.rank) * engine.micro_rows
                batch = phase.batches.take(step, first, engine.micro_rows).to(workers.device)
                stopwatch.begin("teacher")
                taught = asked(batch) if asked else None
                stopwatch.begin("student_forward")
                losses = engine(batch, taught, projection).losses
                stopwatch.begin("backward")
                engine.backward(losses.total)
                rows = partial(phase.batches.rows, step, first, engine.micro_rows)
                recorder.add(losses.stack() / engine.accumulation, rows)
            learning_rate = training.optimizer.learning_rate_at(step, steps)
            stopwatch.begin("optimizer")
            engine.step(learning_rate)
            stopwatch.begin("")
            recorder.end_step(learning_rate)
            done = step + 1
            last = done == steps
            validates = done % placement.validate_every == 0 or done == phase.end
            stop = None if last else stopping.agreed()
            saves = done % placement.save_every == 0 or last or stop is not None
            if done % placement.log_every == 0 or validates or saves:
                recorder.drain()
            if validates:
                recorder.validated(validations[phase.number].measure(engine))
            if saves:
                recorder.save()
            if stop is not None:
                break
        # --------------------------------------------------------------------------------------------------------------
    if stop is not None:
        raise StoppedError(stop, done)


def _shapes(model: Any, teacher: TeacherEngine | None) -> tuple[ModelShape | None, ModelShape]:
    """Of the teacher that is asked in every step, and of what is trained."""
    taught = model_shape.of_config(teacher.config.to_dict(), "the teacher") if teacher else None
    return taught, model_shape.of_config(model.config.to_dict(), "the student")


STAGE = stage.Stage(
    name="distill.train",
    run=run,
    recipe=Distillation,
    inputs={"tokens": stage.Role(("tokens",), several_by="seq_len"), "teacher": stage.Role(("teacher",))},
    produces="run",
    grows=True,
)
