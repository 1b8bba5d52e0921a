"""Scores a bag of words on a task: TF-IDF with a linear model, what needs no encoder and takes seconds.

::

    stillhouse bag-of-words RECIPE --data DIR --out DIR

A language model must beat it to have read more than which words occur. It sees the same training and development
examples as the models, and is scored by the same metrics: ``scores.json`` and ``examples.parquet`` are those of
``eval.finetune``. It draws no random numbers.

The words and pairs of neighboring words of a text are hashed, so memory does not grow with the vocabulary. For a pair
of texts, the features are those of the first text, those of the second, the products of both (the shared words), and
three numbers: the cosine of the texts, and the share of each one's words that the other has.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import PositiveFloat, PositiveInt
from scipy import sparse
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
from sklearn.linear_model import LogisticRegression, Ridge

from cluster.artifacts import errors, stage
from cluster.artifacts.recipe import Recipe
from cluster.storage.filesystem import write_json
from eval.finetune.classification import measured
from eval.tasks import per_example
from eval.tasks.definitions import TASKS, Task, TaskName
from eval.tasks.examples import Examples, TaskData, from_folder, from_hub
from eval.tasks.metrics import headline, majority

SCORES = "scores.json"
LONGEST = 2
"""Words in a row that count as one feature."""
LONGEST_OF_PAIRS = 1
"""The same for pairs of texts, which have products, too."""
STRENGTH, STRENGTH_OF_PAIRS = 10.0, 1.0


class BagOfWords(Recipe):
    """Which examples a bag of words reads, and how it is fitted. The data and limits are those of ``eval.finetune``."""

    task: TaskName
    """Name of the task, for example ``rte``; questions about passages have no bag of words."""
    data: str | None = None
    """Data set on the hub (``nyu-mll/glue:rte``), instead of ``--data DIR``."""
    train_limit: PositiveInt | None = None
    """Most training examples, the same ones as for the models; all by default."""
    dev_limit: PositiveInt | None = None
    """Most examples of each development set, the same ones as for the models; all by default."""
    features: PositiveInt = 2**18
    """Columns that the words of a text are hashed to."""
    strength: PositiveFloat | None = None
    """Inverse strength of the regularization: C of scikit-learn's logistic regression, 1 / alpha of its ridge. By
    default 10 for single texts and 1 for pairs, which suit GLUE and IMDb."""
    iterations: PositiveInt = 100
    """Most iterations of L-BFGS, which bound the time."""


@dataclass(frozen=True)
class Vectors:
    """TF-IDF of texts, with the document frequencies of the training texts."""

    hashing: HashingVectorizer
    weights: TfidfTransformer

    @classmethod
    def of(cls, train: Examples, features: int) -> "Vectors":
        longest = LONGEST if len(train.texts) == 1 else LONGEST_OF_PAIRS
        hashing = HashingVectorizer(
            n_features=features, ngram_range=(1, longest), norm=None, alternate_sign=False, dtype=np.float32
        )
        counts = sparse.vstack([hashing.transform(column) for column in train.texts])
        return cls(hashing, TfidfTransformer(sublinear_tf=True).fit(counts))

    def read(self, examples: Examples) -> Any:
        """Features ``[examples, columns]``, sparse."""
        counts = [self.hashing.transform(column) for column in examples.texts]
        texts = [self.weights.transform(each).astype(np.float32) for each in counts]
        return texts[0] if len(texts) == 1 else _of_pair(texts, counts)


def _of_pair(texts: Sequence[Any], counts: Sequence[Any]) -> Any:
    """Features of pairs from the vectors ``[pairs, columns]`` of both texts."""
    shared = texts[0].multiply(texts[1])
    words = [each.astype(bool).astype(np.float32) for each in counts]
    common = _sums(words[0].multiply(words[1]))
    shares = [common / np.maximum(_sums(each), 1.0) for each in words]
    overlap = np.stack([_sums(shared), *shares], axis=1).astype(np.float32)
    return sparse.hstack([*texts, shared, sparse.csr_matrix(overlap)], format="csr")


def _sums(matrix: Any) -> npt.NDArray[np.float32]:
    return np.asarray(matrix.sum(axis=1), dtype=np.float32).reshape(-1)


def run(recipe: BagOfWords, inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
    """Fit and score.

    Raises:
        StageError: not exactly one of ``--data`` and the recipe's ``data``; a task of questions.
        ExamplesError: the data is not what the task needs.
    """
    started = time.monotonic()
    data = _examples(recipe, inputs)
    task, train = data.task, data.train
    vectors = Vectors.of(train, recipe.features)
    strength = recipe.strength or (STRENGTH if len(train.texts) == 1 else STRENGTH_OF_PAIRS)
    model = _model(task, strength, recipe.iterations)
    # One class only: a linear model has nothing to fit, and the constant is its answer.
    constant = len(np.unique(train.labels)) == 1
    if not constant:
        model.fit(vectors.read(train), train.labels)
    predictions = [
        np.full(len(dev), train.labels[0]) if constant else _predicted(task, model, vectors.read(dev))
        for dev in data.dev
    ]
    metrics = measured(task, data.dev, predictions)
    per_example.write(out, per_example.contributions(task, predictions[0], data.dev[0].labels))
    score, most_frequent = headline(task, metrics), majority(task, train.labels, data.dev[0].labels)
    facts = {
        "task": task.name,
        "task_version": task.version,
        "metric": task.metric,
        "score": score,
        "low": score,
        "high": score,
        "metrics": {name: {"median": value, "low": value, "high": value} for name, value in metrics.items()},
        "majority": most_frequent,
        "below_majority": score < most_frequent,
        "train_examples": len(train),
        "train_files": list(train.files),
        "dev_examples": len(data.dev[0]),
        "dev_files": [name for examples in data.dev for name in examples.files],
        "subset": recipe.train_limit is not None
        or recipe.dev_limit is not None
        or any(examples.is_subset for examples in (train, *data.dev)),
        "settings": {"features": _described(recipe, train), "strength": strength},
        "converged": constant or task.label_range is not None or int(model.n_iter_.max()) < recipe.iterations,
        "seconds": round(time.monotonic() - started, 3),
    }
    write_json(out / SCORES, {**facts, "seeds": []})
    return facts


def _examples(recipe: BagOfWords, inputs: Mapping[str, Path]) -> TaskData[Examples]:
    task = TASKS[recipe.task]
    if task.answers is not None:
        raise errors.StageError(f"{recipe.task} asks questions about passages, which a bag of words cannot answer")
    if ("data" in inputs) == (recipe.data is not None):
        raise errors.StageError(
            f"{recipe.task} takes its examples from exactly one place: give either --data DIR or the recipe's data = "
            '"owner/name:configuration"'
        )
    data = from_hub(task, recipe.data) if recipe.data is not None else from_folder(task, inputs["data"])
    return data.sample(recipe.train_limit, recipe.dev_limit)


def _model(task: Task, strength: float, iterations: int) -> Any:
    if task.label_range is not None:
        return Ridge(alpha=1.0 / strength, solver="sparse_cg", max_iter=iterations)
    return LogisticRegression(C=strength, max_iter=iterations)


def _predicted(task: Task, model: Any, features: Any) -> npt.NDArray[Any]:
    predicted: npt.NDArray[Any] = model.predict(features)
    return predicted if task.label_range is None else predicted.clip(*task.label_range)


def _described(recipe: BagOfWords, train: Examples) -> str:
    """The features in words."""
    hashed = f"hashed to {recipe.features:,} columns"
    if len(train.texts) == 1:
        return f"TF-IDF of words and pairs of neighboring words, {hashed}"
    return (
        f"TF-IDF of the words of both texts and of those they share, {hashed} each; cosine, and shares of shared words"
    )


STAGE = stage.Stage(
    name="eval.bag_of_words",
    run=run,
    recipe=BagOfWords,
    inputs={"data": stage.Role((stage.FOLDER,), optional=True)},
    example="default --set task=rte --data glue/rte",
    produces="benchmark",
)
