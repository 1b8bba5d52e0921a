"""Fine-tunes a teacher or student on one task with several seeds, and scores it on the task's development set.

Teacher and student run the same code, so that "percent of the teacher" compares like with like::

    finetune/
      config.json model.safetensors tokenizer.json …     the model of the median seed
      scores.json                                        median, range and every seed, in percent
      examples.json                                      a few development examples, to try the model on
      examples.parquet                                   what each development example adds to that model's scores
      predictions.json nbest_predictions.json            SQuAD: that model's answers (2.0: null_odds.json, too)

With ``[second_step]`` in the recipe and a fine-tuned model as ``--teacher`` the student also learns the teacher's
logits (:mod:`eval.finetune.task_distillation`). After an interruption the same command continues with the next seed.
"""

import json
import os
import shutil
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, field_validator

from cluster.artifacts import artifact, errors, stage
from cluster.artifacts.recipe import Recipe
from cluster.models import example_inputs
from cluster.models.precision import Precision, check_precision
from cluster.storage.filesystem import write_json
from eval.finetune.answer_spans import STRIDE
from eval.finetune.classification import prepare
from eval.finetune.early_stopping import EarlyStopping, EpochWatch, divide
from eval.finetune.question_answering import prepare_questions
from eval.finetune.sample_inputs import sample_inputs
from eval.finetune.task_distillation import TaskDistillation, Teaching
from eval.finetune.task_model import TaskSource, device, max_length, open_source, save
from eval.finetune.trainer import LayerTrainer, Settings, TaskProblem, Trainer, cpu_rows
from eval.tasks.definitions import TASKS, Task, TaskName
from eval.tasks.examples import from_folder, from_hub
from eval.tasks.metrics import headline
from eval.tasks.questions import questions_from_folder, questions_from_hub

SCORES = "scores.json"
SEEDS = "seeds"


class FinetunePlacement(Recipe):
    threads: PositiveInt | Literal["auto"] = 1
    """Threads of PyTorch on a CPU; ``auto`` is ``OMP_NUM_THREADS``, or one per core."""
    micro_batch: PositiveInt | None = None
    """Examples per forward pass, by default the whole batch; fewer need less memory."""


class Finetune(Recipe):
    """How a model is fine-tuned; omitted values are the task's (:mod:`eval.tasks.definitions`)."""

    task: TaskName
    """Name of the task, for example ``rte`` or ``squad``."""
    data: str | None = None
    """Data set on the hub (``nyu-mll/glue:rte``), instead of ``--data DIR``."""
    seeds: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)] = (1,)
    """One fine-tuning per seed; the score is the median."""
    epochs: PositiveInt | None = None
    """Passes over the training examples; the default is the task's."""
    learning_rate: PositiveFloat | None = None
    """Highest learning rate, after the warm-up; the default is the task's."""
    batch: PositiveInt | None = None
    """Examples of an optimizer step; the default is the task's."""
    max_length: Annotated[int, Field(ge=8)] | None = None
    """Tokens of an example with its special tokens; the default is the task's, at most what the model reads."""
    stride: PositiveInt | None = None
    """Tokens from the start of one window of a long passage to the next; for SQuAD only, 128 by default."""
    train_limit: PositiveInt | None = None
    """Most training examples, the same ones for every seed; all by default."""
    dev_limit: PositiveInt | None = None
    """Most examples of each development set, the same ones for every seed and model; all by default."""
    warmup: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.06
    """Share of the steps in which the learning rate rises from 0."""
    weight_decay: NonNegativeFloat = 0.01
    """Weight decay of AdamW, on all weights but biases and LayerNorm."""
    precision: Precision = "fp32"
    """Number format of the matrix products in training; weights, optimizer and scoring stay fp32. fp16 needs a GPU."""
    early_stopping: EarlyStopping | None = None
    """End training when the loss of held-out examples stops falling; by default every epoch runs."""
    second_step: TaskDistillation | None = None
    """Also learn the logits of a fine-tuned teacher (``--teacher``)."""
    placement: FinetunePlacement = FinetunePlacement()
    """Where and how fast it runs; does not change the result."""

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) != len(seeds):
            raise ValueError(f"{list(seeds)} names a seed twice: name each once")
        return seeds


@dataclass(frozen=True)
class Prepared:
    """The encoded task and the settings, shared by all seeds."""

    recipe: Finetune
    source: TaskSource
    problem: TaskProblem
    settings: Settings
    taught_by: str | None
    """Identity of the second step's teacher."""

    @property
    def micro_batch(self) -> int:
        return self.recipe.placement.micro_batch or self.settings.batch


def run(recipe: Finetune, inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
    """Fine-tune once per seed; keep the model of the median seed.

    Raises:
        StageError: not exactly one of ``--data`` and the recipe's ``data``; a second step without a teacher, or a
            teacher without a second step.
        ExamplesError: the data is not what the task needs.
        ModelError: a model is incomplete, the precision is not for this device, or training diverged.
    """
    threads = recipe.placement.threads
    # Always set: this process may have run another stage with other threads.
    torch.set_num_threads(
        int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1) if threads == "auto" else threads
    )
    if (out / SCORES).is_file():
        # All seeds were finished when the last attempt was interrupted: only the clean-up is missing.
        shutil.rmtree(out / SEEDS, ignore_errors=True)
        scores = json.loads((out / SCORES).read_text(encoding="utf-8"))
        return {name: value for name, value in scores.items() if name != "seeds"}
    prepared = _prepare(recipe, inputs)
    results = [_result_of(seed, prepared, out / SEEDS / f"{seed}") for seed in recipe.seeds]
    # With an even number of seeds the median is between two of them; keep the model of the lower one.
    median = sorted(results, key=lambda result: float(result["score"]))[(len(results) - 1) // 2]
    for path in (out / SEEDS / f"{median['seed']}").iterdir():
        path.rename(out / path.name)
    example_inputs.write(out, sample_inputs(prepared.problem.task, prepared.problem.splits[1]))
    facts = _facts(prepared, results, median)
    write_json(out / SCORES, {**facts, "seeds": results})
    shutil.rmtree(out / SEEDS)
    return facts


def halved(recipe: Finetune) -> Finetune | None:
    """The recipe with half the micro-batch, for the same result with less memory; None at one example.

    On a CPU, half of the rows that :func:`cpu_rows` allows for the longest examples.
    """
    task = TASKS[recipe.task]
    micro_batch = recipe.placement.micro_batch or recipe.batch or task.batch
    if device().type == "cpu":
        micro_batch = min(micro_batch, cpu_rows(recipe.max_length or task.max_length))
    if micro_batch == 1:
        return None
    placement = recipe.placement.model_copy(update={"micro_batch": (micro_batch + 1) // 2})
    return recipe.model_copy(update={"placement": placement})


def _prepare(recipe: Finetune, inputs: Mapping[str, Path]) -> Prepared:
    _check_inputs(recipe, inputs)
    check_precision(recipe.precision, device())
    task = TASKS[recipe.task]
    source = open_source(inputs["model"])
    settings = _settings(recipe, task, source)
    teacher, identity = _teacher(task, inputs["teacher"]) if "teacher" in inputs else (None, None)
    micro_batch = recipe.placement.micro_batch or settings.batch
    teaching = Teaching(recipe.second_step, teacher, micro_batch) if recipe.second_step and teacher else None
    make = _classification if task.answers is None else _answering
    return Prepared(recipe, source, make(recipe, inputs, source, settings, teaching), settings, identity)


def _classification(
    recipe: Finetune, inputs: Mapping[str, Path], source: TaskSource, settings: Settings, teaching: Teaching | None
) -> TaskProblem:
    if recipe.stride is not None:
        raise errors.StageError(f"stride is for questions about passages, not for {recipe.task}: leave it out")
    task = TASKS[recipe.task]
    data = from_hub(task, recipe.data) if recipe.data is not None else from_folder(task, inputs["data"])
    return prepare(source, data.sample(recipe.train_limit, recipe.dev_limit), settings.max_length, teaching)


def _answering(
    recipe: Finetune, inputs: Mapping[str, Path], source: TaskSource, settings: Settings, teaching: Teaching | None
) -> TaskProblem:
    task = TASKS[recipe.task]
    data = (
        questions_from_hub(task, recipe.data)
        if recipe.data is not None
        else questions_from_folder(task, inputs["data"])
    )
    data = data.sample(recipe.train_limit, recipe.dev_limit)
    return prepare_questions(source, data, settings.max_length, recipe.stride or STRIDE, teaching)


def _check_inputs(recipe: Finetune, inputs: Mapping[str, Path]) -> None:
    if ("data" in inputs) == (recipe.data is not None):
        raise errors.StageError(
            f"{recipe.task} takes its examples from exactly one place: give either --data DIR or the recipe's data = "
            '"owner/name:configuration"'
        )
    if recipe.second_step is not None and "teacher" not in inputs:
        raise errors.StageError(
            f"second_step needs a teacher fine-tuned on {recipe.task}: make one with stillhouse finetune and give "
            "it with --teacher DIR, or leave second_step out"
        )
    if recipe.second_step is None and "teacher" in inputs:
        raise errors.StageError("--teacher teaches only in a second step: write [second_step], or leave --teacher out")


def _teacher(task: Task, path: Path) -> tuple[TaskSource, str]:
    found = artifact.read(path, "finetune")
    if found.facts["task"] != task.name:
        raise errors.StageError(f"{path} was fine-tuned on {found.facts['task']}: give a teacher of {task.name}")
    return open_source(path), found.identity


def _settings(recipe: Finetune, task: Task, source: TaskSource) -> Settings:
    return Settings(
        epochs=recipe.epochs or task.epochs,
        learning_rate=recipe.learning_rate or task.learning_rate,
        batch=recipe.batch or task.batch,
        max_length=max_length(recipe.max_length, task, source.positions),
        warmup=recipe.warmup,
        weight_decay=recipe.weight_decay,
        precision=recipe.precision,
    )


def _result_of(seed: int, prepared: Prepared, folder: Path) -> dict[str, Any]:
    """Train and score one seed, or read the result of an interrupted attempt; leaves the model in ``folder``."""
    finished = folder.with_suffix(".json")
    if finished.is_file():
        return dict(json.loads(finished.read_text(encoding="utf-8")))
    started = time.monotonic()
    problem = prepared.problem
    model = problem.start(seed)
    epochs = _train(model, prepared, seed)
    save(model, prepared.source, folder)
    measured = problem.measure(model, prepared.micro_batch, folder)
    result = {
        "seed": seed,
        "score": headline(problem.task, measured),
        "metrics": measured,
        "epochs": epochs,
        "seconds": round(time.monotonic() - started, 3),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "device": torch.cuda.get_device_name() if model.device.type == "cuda" else "cpu",
    }
    # Last: it marks the seed as finished.
    write_json(finished, result)
    return result


def _train(model: Any, prepared: Prepared, seed: int) -> int:
    """Returns the epochs that the model was trained for."""
    problem, stopping, settings = prepared.problem, prepared.recipe.early_stopping, prepared.settings
    trainer = Trainer(model, problem.forward, problem.train, problem.loss, settings, prepared.micro_batch)
    title = f"{problem.task.name}, seed {seed}"
    rows = held = np.arange(len(problem.train))
    if stopping is not None:
        rows, held = divide(problem.units, stopping.held_out)
    if (layers := problem.layers) is not None:
        first = replace(settings, epochs=layers.step.epochs, learning_rate=layers.step.learning_rate)
        parts = (model, problem.forward, problem.train, problem.loss, first, prepared.micro_batch)
        LayerTrainer(*parts, layers).train(rows, seed, f"{title}, layers")
    if stopping is None:
        trainer.train(rows, seed, title)
        return settings.epochs
    watch = EpochWatch(trainer, held, stopping.patience)
    trainer.train(rows, seed, title, watch.should_stop)
    watch.restore()
    return watch.best_epoch


def _facts(prepared: Prepared, results: Sequence[Mapping[str, Any]], median: Mapping[str, Any]) -> dict[str, Any]:
    """Facts of the manifest and ``scores.json``; ``score`` and ``majority`` are on the first development set."""
    recipe, problem = prepared.recipe, prepared.problem
    task, (train, *dev) = problem.task, problem.splits
    score, most_frequent = _over_seeds([result["score"] for result in results]), problem.majority()
    limited = recipe.train_limit is not None or recipe.dev_limit is not None
    return {
        "task": task.name,
        "task_version": task.version,
        "texts": len(task.columns),
        "metric": task.metric,
        "score": score["median"],
        "low": score["low"],
        "high": score["high"],
        "metrics": {name: _over_seeds([result["metrics"][name] for result in results]) for name in median["metrics"]},
        "median_seed": median["seed"],
        "majority": most_frequent,
        "below_majority": score["median"] < most_frequent,
        "train_examples": len(train),
        "train_files": list(train.files),
        "dev_examples": len(dev[0]),
        "dev_files": [name for examples in dev for name in examples.files],
        "subset": limited or any(examples.is_subset for examples in problem.splits),
        "parameters": median["parameters"],
        "device": median["device"],
        "settings": asdict(prepared.settings)
        | {"early_stopping": recipe.early_stopping and recipe.early_stopping.resolved()},
        "second_step": recipe.second_step and {**recipe.second_step.resolved(), "teacher": prepared.taught_by},
        "seconds": round(sum(result["seconds"] for result in results), 3),
    }


def _over_seeds(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


STAGE = stage.Stage(
    name="eval.finetune",
    run=run,
    recipe=Finetune,
    inputs={
        "model": stage.Role((stage.FOLDER,)),
        "data": stage.Role((stage.FOLDER,), optional=True),
        "teacher": stage.Role(("finetune",), optional=True),
    },
    produces="finetune",
    example="finetune --data glue/rte",
    halved=halved,
)
