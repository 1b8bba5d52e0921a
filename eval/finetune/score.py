"""Scores a fine-tuned model, or an export of one, on the development set of a task.

::

    stillhouse score RECIPE --model DIR --data DIR --out DIR

The model is a Hugging Face folder (PyTorch, fp32) or an export of any format that runs on this machine. Examples,
tokens and metrics are those of ``eval.finetune``. Exports run row by row by default, because dynamic quantization makes
a row's result depend on its batch. ``score.json`` holds the facts.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from cluster.artifacts import errors, stage
from cluster.artifacts.recipe import Recipe
from cluster.models.runners import Runner, runner_for
from cluster.storage.filesystem import write_json
from cluster.telemetry import progress
from eval.finetune.answer_spans import STRIDE, encode_questions
from eval.finetune.batching import Features, Rows, encode, scoring_batches
from eval.finetune.classification import measured, predictions
from eval.finetune.question_answering import decode_batches, scored
from eval.finetune.task_model import TaskSource, label_order, max_length, opened
from eval.tasks.definitions import TASKS, Task, TaskName
from eval.tasks.examples import dev_from_folder
from eval.tasks.metrics import headline
from eval.tasks.questions import dev_questions_from_folder

FILE = "score.json"


class ScorePlacement(Recipe):
    threads: PositiveInt = 1
    """Threads of the runtime."""


class ScoreRecipe(Recipe):
    """How a model is scored."""

    task: TaskName
    """Name of the task, for example ``rte`` or ``squad``."""
    max_length: Annotated[int, Field(ge=8)] | None = None
    """Tokens of an example with its special tokens; the default is the task's, at most what the model reads."""
    stride: PositiveInt | None = None
    """Tokens from the start of one window of a long passage to the next; for SQuAD only, 128 by default."""
    limit: PositiveInt | None = None
    """Most examples of each development set, the same ones for every model; all by default."""
    batch: PositiveInt = 1
    """Examples of a call; 1, because dynamic quantization makes a row's result depend on its batch."""
    placement: ScorePlacement = ScorePlacement()
    """Where and how fast it runs; does not change the result."""


def run(recipe: ScoreRecipe, inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
    """
    Raises:
        ExamplesError: the data is not what the task needs.
        ArtifactError: the model was changed after it was made.
        ModelError: the model has other labels, or reads less than ``max_length``.
        StageError: the model does not load, or its runtime is not installed.
    """
    folder, task = inputs["model"], TASKS[recipe.task]
    threads = torch.get_num_threads()
    try:
        runner = runner_for(folder, recipe.placement.threads)
        source = opened(folder)
        longest = max_length(recipe.max_length, task, runner.loaded.positions)
        score = _score_questions if task.answers is not None else _score_classes
        facts = score(recipe, task, source, runner, longest, inputs["data"])
    finally:
        torch.set_num_threads(threads)
    facts = {
        "task": task.name,
        "task_version": task.version,
        "metric": task.metric,
        "score": headline(task, facts["metrics"]),
        **facts,
        "max_length": longest,
        "runtime": runner.loaded.runtime,
        "parameters": runner.loaded.parameters,
        "bytes": runner.loaded.bytes,
    }
    write_json(out / FILE, facts)
    return facts


def _score_classes(
    recipe: ScoreRecipe, task: Task, source: TaskSource, runner: Runner, longest: int, data: Path
) -> dict[str, Any]:
    if recipe.stride is not None:
        raise errors.StageError(f"stride is for questions about passages, not for {task.name}: leave it out")
    task, dev = dev_from_folder(task, data)
    order = label_order(source, task)
    dev = [examples.sample(recipe.limit) for examples in dev]
    predicted = []
    for examples in dev:
        logits = np.empty((len(examples), task.outputs), dtype=np.float32)
        for rows, (of_rows,) in _outputs(runner, encode(source.tokenizer, examples.texts, longest), recipe.batch):
            logits[rows] = of_rows[:, order]
        predicted.append(predictions(task, logits))
    return {
        "metrics": measured(task, dev, predicted),
        "examples": len(dev[0]),
        "files": [name for examples in dev for name in examples.files],
        "subset": recipe.limit is not None or any(examples.is_subset for examples in dev),
    }


def _score_questions(
    recipe: ScoreRecipe, task: Task, source: TaskSource, runner: Runner, longest: int, data: Path
) -> dict[str, Any]:
    label_order(source, task)
    dev = dev_questions_from_folder(task, data).sample(recipe.limit)
    encoded = encode_questions(source.tokenizer, dev.items, longest, recipe.stride or STRIDE)
    batches = (
        (rows, torch.from_numpy(np.stack(sides, axis=1)))
        for rows, sides in _outputs(runner, encoded.features, recipe.batch)
    )
    return {
        "metrics": scored(task, dev, decode_batches(encoded, dev, batches)),
        "examples": len(dev),
        "files": list(dev.files),
        "subset": recipe.limit is not None or dev.is_subset,
    }


def _outputs(runner: Runner, features: Features, batch: int) -> Iterator[tuple[Rows, Sequence[Any]]]:
    """The model's outputs for all rows, batch by batch."""
    batches = scoring_batches(features.lengths, batch)
    for rows in progress.progress(batches, "score", len(batches), "batches"):
        inputs: dict[str, Tensor] = features.batch(rows)
        mask = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"]))
        types = inputs.get("token_type_ids")
        yield rows, runner(inputs["input_ids"].numpy(), mask.numpy(), None if types is None else types.numpy())


STAGE = stage.Stage(
    name="eval.score",
    run=run,
    recipe=ScoreRecipe,
    inputs={"model": stage.Role((stage.FOLDER,)), "data": stage.Role((stage.FOLDER,))},
    example="default --set task=rte",
    produces="benchmark",
)
