"""Score a fine-tuned model, or an export of one, on the development set of a task.

::

    stillhouse score RECIPE --model DIR --data DIR --out DIR

The model is a Hugging Face folder (PyTorch, fp32) or an export of any format that runs here. It is scored as
``eval.finetune`` scores: same examples, same tokens, same metrics. An export answers row by row by default, because a
model that is quantised while it runs answers otherwise in a batch. ``score.json`` holds the facts.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field, PositiveInt, field_validator
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer

from cluster.artifacts import errors, stage
from cluster.artifacts.recipe import Recipe
from cluster.models.runners import Runner, runner_for
from cluster.storage.filesystem import write_json
from cluster.telemetry import progress
from eval.finetune.answer_spans import STRIDE, encode_questions
from eval.finetune.batching import Features, Rows, encode, scoring_batches
from eval.finetune.classification import measured
from eval.finetune.question_answering import found_in, scored
from eval.finetune.task_model import ModelError, TaskSource, check_labels
from eval.tasks.definitions import TASKS, Task
from eval.tasks.examples import dev_from_folder
from eval.tasks.metrics import headline
from eval.tasks.questions import dev_questions_from_folder

FILE = "score.json"


class ScorePlacement(Recipe):
    threads: PositiveInt = 1


class ScoreRecipe(Recipe):
    """How a model is scored."""

    task: str
    max_length: Annotated[int, Field(ge=8)] | None = None
    """Tokens of an example, special ones included; the task's standard is lowered to what the model can read."""
    stride: PositiveInt | None = None
    limit: PositiveInt | None = None
    """At most this many examples of each development set, the same ones for every model."""
    batch: PositiveInt = 1
    placement: ScorePlacement = ScorePlacement()

    @field_validator("task")
    @classmethod
    def _task_is_known(cls, name: str) -> str:
        if name not in TASKS:
            raise ValueError(f"no task {name}: write one of {', '.join(TASKS)}")
        return name


def run(recipe: ScoreRecipe, inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
    """
    Raises:
        ExamplesError: the data is not what the task needs.
        ModelError: the model answers something else than the task asks, or reads less than ``max_length``.
        StageError: the model does not load, or its runtime is not installed.
    """
    folder, task = inputs["model"], TASKS[recipe.task]
    threads = torch.get_num_threads()
    try:
        runner = runner_for(folder, recipe.placement.threads)
        config, tokenizer = (kind.from_pretrained(folder) for kind in (AutoConfig, AutoTokenizer))
        source = TaskSource(folder, config, tokenizer)
        max_length = _max_length(recipe, task, runner)
        score = _questions if task.answers is not None else _classes
        facts = score(recipe, task, source, runner, max_length, inputs["data"])
    finally:
        torch.set_num_threads(threads)
    found = {
        "task": task.name,
        "task_version": task.version,
        "metric": task.metric,
        "score": headline(task, facts["metrics"]),
        **facts,
        "max_length": max_length,
        "runtime": runner.loaded.runtime,
        "parameters": runner.loaded.parameters,
        "bytes": runner.loaded.bytes,
    }
    write_json(out / FILE, found)
    return found


def _max_length(recipe: ScoreRecipe, task: Task, runner: Runner) -> int:
    positions = runner.loaded.positions
    if recipe.max_length is not None and recipe.max_length > positions:
        raise ModelError(
            f"max_length = {recipe.max_length}, but the model reads {positions} tokens: write at most that"
        )
    return recipe.max_length or min(task.max_length, positions)


def _classes(
    recipe: ScoreRecipe, task: Task, source: TaskSource, runner: Runner, max_length: int, data: Path
) -> dict[str, Any]:
    if recipe.stride is not None:
        raise errors.StageError(f"stride is for questions about passages, not for {task.name}: leave it out")
    task, dev = dev_from_folder(task, data)
    check_labels(source, task)
    dev = [examples.sample(recipe.limit) for examples in dev]
    predictions = []
    for examples in dev:
        logits = np.empty((len(examples), task.outputs), dtype=np.float32)
        for rows, (found,) in _outputs(runner, encode(source.tokenizer, examples.texts, max_length), recipe.batch):
            logits[rows] = found
        predictions.append(logits[:, 0] if task.label_range is not None else logits.argmax(axis=1))
    return {
        "metrics": measured(task, dev, predictions),
        "examples": len(dev[0]),
        "files": [name for examples in dev for name in examples.files],
        "subset": recipe.limit is not None or any(examples.is_subset for examples in dev),
    }


def _questions(
    recipe: ScoreRecipe, task: Task, source: TaskSource, runner: Runner, max_length: int, data: Path
) -> dict[str, Any]:
    dev = dev_questions_from_folder(task, data).sample(recipe.limit)
    encoded = encode_questions(source.tokenizer, dev.items, max_length, recipe.stride or STRIDE)
    batches = (
        (rows, torch.from_numpy(np.stack(sides, axis=1)))
        for rows, sides in _outputs(runner, encoded.features, recipe.batch)
    )
    return {
        "metrics": scored(task, dev, found_in(encoded, dev, batches)),
        "examples": len(dev),
        "files": list(dev.files),
        "subset": recipe.limit is not None or dev.is_subset,
    }


def _outputs(runner: Runner, features: Features, batch: int) -> Iterator[tuple[Rows, Sequence[Any]]]:
    """The model's outputs for all rows, batch by batch."""
    batches = scoring_batches(features.lengths, batch)
    for rows in progress.progress(batches, "score", len(batches), "batches"):
        given: dict[str, Tensor] = features.batch(rows)
        mask = given.get("attention_mask", torch.ones_like(given["input_ids"]))
        types = given.get("token_type_ids")
        yield rows, runner(given["input_ids"].numpy(), mask.numpy(), None if types is None else types.numpy())


STAGE = stage.Stage(
    name="eval.score",
    run=run,
    recipe=ScoreRecipe,
    inputs={"model": stage.Role((stage.FOLDER,)), "data": stage.Role((stage.FOLDER,))},
    produces="benchmark",
)
