"""The training loop: teacher forward, student forward and backward, one optimizer step, again.

Started by torchrun, by Ray (``distill.launch``) or alone; it reads ``RANK`` and ``WORLD_SIZE`` and knows neither::

    torchrun --nproc-per-node 8 -m distill.train RECIPE --tokens DIR --teacher DIR --out RUN

Started again on the same run folder, it goes on from the newest checkpoint, whatever the workers or ZeRO stage were.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cluster import artifact, stage
from cluster.rows import TokenSet, open_tokens
from distill import masked_lm, student
from distill.batches import Batches, Masker
from distill.distillation import Distillation, Training
from distill.engine import Engine, Workers, frozen, join
from distill.losses import triple_loss
from distill.masked_lm import MaskedLM, ModelError, Outputs
from distill.recorder import Length, Recorder
from distill.run import Checkpoint, Run
from distill.validation import Validation


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
    newest = _agreed(run.newest(), run, workers)
    first_step = newest.step if newest else 0
    if newest:
        engine.restore(newest.load())
    masker = Masker(tokens, training.masking, training.seed)
    batches = Batches(tokens.train, masker, training.rows_per_step, training.seed)
    validation = Validation(tokens.heldout, masker, training, teacher, workers)
    placement = training.placement
    asked = teacher if training.loss.needs_teacher else None
    length = Length(steps, training.rows_per_step * tokens.seq_len)
    with Recorder(run, training, length, workers, newest) as recorder:
        # --------------------------------------------------------------------------------------------------------------
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
            recorder.end_step(learning_rate, engine)
            done = step + 1
            last = done == steps
            validates = done % placement.validate_every == 0 or last
            saves = done % placement.save_every == 0 or last
            if done % placement.log_every == 0 or validates or saves:
                recorder.drain()
            if validates:
                recorder.validated(validation.measure(engine))
            if saves:
                recorder.save(engine)
        # --------------------------------------------------------------------------------------------------------------


def _agreed(found: Checkpoint | None, run: Run, workers: Workers) -> Checkpoint | None:
    """The checkpoint the first worker sees: on shared storage the others may see an older or a younger one."""
    step = torch.tensor(found.step if found else 0, device=workers.device)
    torch.distributed.broadcast(step, src=0)
    return run.checkpoint(int(step)) if step else None


STAGE = stage.Stage(
    run=run,
    recipe=Distillation,
    inputs={"tokens": stage.Role(("tokens",)), "teacher": stage.Role(("teacher",))},
    produces="run",
    grows=True,
)

if __name__ == "__main__":
    stage.main(STAGE)
