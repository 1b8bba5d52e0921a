"""Scores what a model knows without fine-tuning it, on one task.

::

    stillhouse probe RECIPE --model DIR --data DIR --out DIR

Fine-tuning hides differences of a point or two behind its seeds. A probe draws no random numbers: on one machine the
same model has the same score, to the last digit. The encoder stays frozen, and an input is the mean of its last hidden
states over its tokens.

* Tasks of classes: a logistic regression on standardized features, for pairs those of both texts read together. It is
  fitted to the first ``train_limit`` examples of a fixed shuffle, the same ones for every model.
* Tasks of scores (STS-B): the cosine of the two texts' features, without any training; its rank correlation is known as
  the zero-shot score. It says whether the geometry of the features is the teacher's, not which is better: a model of
  masked words often correlates less than its own lower layers.

``scores.json`` and ``examples.parquet`` are those of ``eval.finetune``, scored by the same metrics.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, PositiveFloat, PositiveInt
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from cluster.artifacts import errors, stage
from cluster.artifacts.recipe import Recipe
from cluster.storage.filesystem import write_json
from eval.finetune.batching import encode
from eval.finetune.classification import measured
from eval.finetune.task_model import TaskSource, device, max_length, open_source
from eval.probe.frozen_features import Floats, encoder, read
from eval.tasks import per_example
from eval.tasks.definitions import TASKS, TaskName
from eval.tasks.examples import Examples, TaskData, from_folder, from_hub
from eval.tasks.metrics import headline, majority

SCORES = "scores.json"


class FrozenPlacement(Recipe):
    """Where it runs; does not change the result beyond rounding."""

    threads: PositiveInt = 2
    """CPU threads."""


class FrozenProbe(Recipe):
    """Which examples a probe reads, and how its linear model is fitted."""

    task: TaskName
    """Name of the task, for example ``stsb`` or ``qnli``; questions about passages have no probe."""
    data: str | None = None
    """Data set on the hub (``nyu-mll/glue:rte``), instead of ``--data DIR``."""
    train_limit: PositiveInt = 4_000
    """Most training examples, the same ones for every model."""
    dev_limit: PositiveInt | None = None
    """Most examples of each development set, the same ones for every model; all by default."""
    max_length: PositiveInt | None = Field(None, ge=8)
    """Tokens of an input with its special tokens; the default is the task's, at most what the model reads."""
    strength: PositiveFloat = 0.05
    """Inverse strength of the regularization: C of scikit-learn's logistic regression. Features outnumber what some
    thousand examples can fit, so it is strong."""
    iterations: PositiveInt = 500
    """Most iterations of L-BFGS."""
    placement: FrozenPlacement = FrozenPlacement()


def run(recipe: FrozenProbe, inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
    """Read the examples, fit and score.

    Raises:
        StageError: not exactly one of ``--data`` and the recipe's ``data``; a task of questions; one class only.
        ExamplesError: the data is not what the task needs.
        ModelError: the model reads fewer tokens than ``max_length``.
    """
    started = time.monotonic()
    torch.set_num_threads(recipe.placement.threads)
    data = _examples(recipe, inputs)
    task, train = data.task, data.train
    source = open_source(inputs["model"])
    if task.label_range is not None:
        predictions, facts = _similarities(recipe, source, data), {"train_examples": 0, "train_files": []}
    else:
        predictions, facts = _linear(recipe, source, data)
    metrics = measured(task, data.dev, predictions)
    per_example.write(out, per_example.contributions(task, predictions[0], data.dev[0].labels))
    score, most_frequent = headline(task, metrics), majority(task, train.labels, data.dev[0].labels)
    facts |= {
        "task": task.name,
        "task_version": task.version,
        "metric": task.metric,
        "probe": "cosine" if task.label_range is not None else "linear",
        "score": score,
        "low": score,
        "high": score,
        "metrics": {name: {"median": value, "low": value, "high": value} for name, value in metrics.items()},
        "majority": most_frequent,
        "below_majority": score < most_frequent,
        "dev_examples": len(data.dev[0]),
        "dev_files": [name for examples in data.dev for name in examples.files],
        "subset": recipe.dev_limit is not None or any(examples.is_subset for examples in data.dev),
        "seconds": round(time.monotonic() - started, 3),
    }
    write_json(out / SCORES, {**facts, "seeds": []})
    return facts


def _examples(recipe: FrozenProbe, inputs: Mapping[str, Path]) -> TaskData[Examples]:
    task = TASKS[recipe.task]
    if task.answers is not None:
        raise errors.StageError(
            f"{recipe.task} asks questions about passages, which need a fine-tuned head: use stillhouse finetune"
        )
    if ("data" in inputs) == (recipe.data is not None):
        raise errors.StageError(
            f"{recipe.task} takes its examples from exactly one place: give either --data DIR or the recipe's data = "
            '"owner/name:configuration"'
        )
    data = from_hub(task, recipe.data) if recipe.data is not None else from_folder(task, inputs["data"])
    return data.sample(recipe.train_limit, recipe.dev_limit)


def _similarities(recipe: FrozenProbe, source: TaskSource, data: TaskData[Examples]) -> list[npt.NDArray[Any]]:
    """Cosines of the features of both texts, for each development set."""
    model, longest = encoder(source), max_length(recipe.max_length, data.task, source.positions)
    found = []
    for examples in data.dev:
        of_texts = []
        for number, column in enumerate(examples.texts, 1):
            features = encode(source.tokenizer, [column], longest).to(device())
            of_texts.append(read(model, features, f"{data.task.name}, text {number}"))
        found.append(cosines(*of_texts))
    return found


def cosines(first: Floats, second: Floats) -> Floats:
    """Cosine of each pair of rows."""
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    found: Floats = (first * second).sum(axis=1) / np.maximum(lengths, 1e-12)
    return found


def _linear(
    recipe: FrozenProbe, source: TaskSource, data: TaskData[Examples]
) -> tuple[list[npt.NDArray[Any]], dict[str, Any]]:
    """Predicted classes of each development set, and facts about the fit."""
    task, train = data.task, data.train
    if len(classes := np.unique(train.labels)) == 1:
        raise errors.StageError(
            f"the training examples of {task.name} are all {task.label_names[int(classes[0])]!r}: a probe needs "
            "examples of two classes or more"
        )
    model, longest = encoder(source), max_length(recipe.max_length, task, source.positions)

    def features(examples: Examples, what: str) -> Floats:
        return read(model, encode(source.tokenizer, examples.texts, longest).to(device()), f"{task.name}, {what}")

    of_train = features(train, "training examples")
    scaler = StandardScaler().fit(of_train)
    fitted = LogisticRegression(C=recipe.strength, max_iter=recipe.iterations)
    fitted.fit(scaler.transform(of_train), train.labels)
    predictions = [fitted.predict(scaler.transform(features(dev, "development set"))) for dev in data.dev]
    return predictions, {
        "train_examples": len(train),
        "train_files": list(train.files),
        "converged": int(fitted.n_iter_.max()) < recipe.iterations,
    }


STAGE = stage.Stage(
    name="eval.probe",
    run=run,
    recipe=FrozenProbe,
    inputs={"model": stage.Role((stage.FOLDER,)), "data": stage.Role((stage.FOLDER,), optional=True)},
    example="default --set task=stsb --data glue/stsb",
    produces="benchmark",
)
