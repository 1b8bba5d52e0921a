"""Fine-tunes a teacher or student on one task, over several seeds, and scores it on the task's dev set.

Teacher and student go through the same lines, so that "per cent of the teacher" compares like with like::

    finetune/
      config.json model.safetensors tokenizer.json …     the model of the median seed
      scores.json                                        median, range and every seed, in percent

Finished seeds survive an interruption: the same command goes on with the next one.
"""

import json
import shutil
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, field_validator

from cluster import stage
from cluster.artifact import write_json
from cluster.recipe import Recipe
from eval.classifier import Classifier, ClassifierError, Encoded, Settings, Source, open_source
from eval.examples import TaskData, encode, from_folder, from_hub
from eval.scores import headline, majority, measure
from eval.tasks import TASKS, Task

SCORES = "scores.json"
SEEDS = "seeds"


class Placement(Recipe):
    threads: PositiveInt | Literal["auto"] = 1
    """Threads of PyTorch on a CPU; ``auto`` leaves its own choice, one a core."""


class Finetune(Recipe):
    """How a model is fine-tuned; a value left out is the task's standard one (:mod:`eval.tasks`)."""

    task: str
    data: str | None = None
    """Data set on the hub (``nyu-mll/glue:rte``), in place of ``--data DIR``."""
    seeds: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)] = (1,)
    epochs: PositiveInt | None = None
    learning_rate: PositiveFloat | None = None
    batch: PositiveInt | None = None
    max_length: Annotated[int, Field(ge=8)] | None = None
    """Tokens of an example, special ones included; the task's standard is lowered to what the model can read."""
    train_limit: PositiveInt | None = None
    """At most this many training examples, the same ones for every seed."""
    warmup: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.06
    """Share of the steps in which the learning rate rises from 0."""
    weight_decay: NonNegativeFloat = 0.01
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the matrix products of training; weights, optimizer and scoring stay fp32."""
    placement: Placement = Placement()

    @field_validator("task")
    @classmethod
    def _task_is_known(cls, name: str) -> str:
        if name not in TASKS:
            raise ValueError(f"no task {name}: write one of {', '.join(TASKS)}")
        return name

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) != len(seeds):
            raise ValueError(f"{list(seeds)} names a seed twice: name each once")
        return seeds


@dataclass(frozen=True)
class Prepared:
    """What all seeds share: the model to start from, the data, also as tokens, and how to train."""

    source: Source
    data: TaskData
    train: Encoded
    dev: tuple[Encoded, ...]
    settings: Settings


def run(recipe: Finetune, inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
    """Fine-tune once per seed; keep the model of the median seed.

    Raises:
        StageError: not exactly one of ``--data`` and the recipe's ``data``.
        ExamplesError: the data is not what the task needs.
        ClassifierError: the model is incomplete, or training diverged.
    """
    if recipe.placement.threads != "auto":
        torch.set_num_threads(recipe.placement.threads)
    prepared = _prepare(recipe, inputs)
    results = [_result_of(seed, prepared, out / SEEDS / f"{seed}") for seed in recipe.seeds]
    # With an even number of seeds the median score lies between two of them; the lower one's model is kept.
    median = sorted(results, key=lambda result: float(result["score"]))[(len(results) - 1) // 2]
    for path in (out / SEEDS / f"{median['seed']}").iterdir():
        path.rename(out / path.name)
    facts = _facts(recipe, prepared, results, median)
    write_json(out / SCORES, {**facts, "seeds": results})
    shutil.rmtree(out / SEEDS)
    return facts


def _prepare(recipe: Finetune, inputs: Mapping[str, Path]) -> Prepared:
    if ("data" in inputs) == (recipe.data is not None):
        raise stage.StageError(
            f"{recipe.task} takes its examples from exactly one place: give either --data DIR or the recipe's data = "
            '"owner/name:configuration"'
        )
    source = open_source(inputs["model"])
    task = TASKS[recipe.task]
    settings = _settings(recipe, task, source.positions)
    data = from_hub(task, recipe.data) if recipe.data is not None else from_folder(task, inputs["data"])
    data = TaskData(data.task, data.train.sample(recipe.train_limit), data.dev)
    train, *dev = (encode(source.tokenizer, part, settings.max_length) for part in (data.train, *data.dev))
    return Prepared(source, data, train, tuple(dev), settings)


def _settings(recipe: Finetune, task: Task, positions: int) -> Settings:
    if recipe.max_length is not None and recipe.max_length > positions:
        raise ClassifierError(
            f"max_length = {recipe.max_length}, but the model reads {positions} tokens: write at most that"
        )
    return Settings(
        epochs=recipe.epochs or task.epochs,
        learning_rate=recipe.learning_rate or task.learning_rate,
        batch=recipe.batch or task.batch,
        max_length=recipe.max_length or min(task.max_length, positions),
        warmup=recipe.warmup,
        weight_decay=recipe.weight_decay,
        precision=recipe.precision,
    )


def _result_of(seed: int, prepared: Prepared, folder: Path) -> dict[str, Any]:
    """Train and score one seed, or read what an interrupted attempt finished; its model is left in ``folder``."""
    finished = folder.with_suffix(".json")
    if finished.is_file():
        return dict(json.loads(finished.read_text(encoding="utf-8")))
    started = time.monotonic()
    classifier = Classifier.load(prepared.source, prepared.data.task, seed)
    classifier.train(prepared.train, prepared.data.train.labels, prepared.settings, seed)
    measured = _score(classifier, prepared)
    classifier.save(folder)
    result = {
        "seed": seed,
        "score": headline(prepared.data.task, measured),
        "metrics": measured,
        "seconds": round(time.monotonic() - started, 3),
        "parameters": classifier.parameters,
        "device": torch.cuda.get_device_name() if classifier.model.device.type == "cuda" else "cpu",
    }
    # Last, because it says that the seed is finished.
    write_json(finished, result)
    return result


def _score(classifier: Classifier, prepared: Prepared) -> dict[str, float]:
    """All metrics in percent; those of a second dev set carry its name (``mismatched_accuracy``)."""
    task = prepared.data.task
    measured: dict[str, float] = {}
    for names, examples, encoded in zip(task.dev, prepared.data.dev, prepared.dev, strict=True):
        prefix = f"{names[0].partition('_')[2]}_" if measured else ""
        found = measure(task, classifier.predict(encoded), examples.labels)
        measured |= {prefix + name: value for name, value in found.items()}
    return measured


def _facts(
    recipe: Finetune, prepared: Prepared, results: Sequence[Mapping[str, Any]], median: Mapping[str, Any]
) -> dict[str, Any]:
    """What the manifest and ``scores.json`` state; ``score`` and ``majority`` are on the first dev set."""
    task, train, dev = prepared.data.task, prepared.data.train, prepared.data.dev
    scores = [result["score"] for result in results]
    return {
        "task": task.name,
        "task_version": task.version,
        "metric": task.metric,
        "score": statistics.median(scores),
        "low": min(scores),
        "high": max(scores),
        "metrics": median["metrics"],
        "median_seed": median["seed"],
        "majority": majority(task, train.labels, dev[0].labels),
        "train_examples": len(train),
        "train_files": list(train.files),
        "dev_examples": len(dev[0]),
        "dev_files": [name for examples in dev for name in examples.files],
        "subset": recipe.train_limit is not None or any(examples.is_subset for examples in (train, *dev)),
        "parameters": median["parameters"],
        "device": median["device"],
        "settings": asdict(prepared.settings),
    }


STAGE = stage.Stage(
    run=run,
    recipe=Finetune,
    inputs={"model": stage.Role((stage.FOLDER,)), "data": stage.Role((stage.FOLDER,), optional=True)},
    produces="finetune",
)

if __name__ == "__main__":
    stage.main(STAGE)
