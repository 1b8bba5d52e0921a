"""Loads BERT, DistilBERT or RoBERTa for a task: the tokenizer, and the encoder with the task's head."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from cluster.artifacts.errors import logger
from cluster.models import model_check, model_folder, model_loading, model_tokenizer
from cluster.tokens.tokenizer import quiet_tokenizer
from eval.finetune.batching import Inputs
from eval.tasks.definitions import Task
from eval.tasks.label_matching import classes_named, unnamed


class ModelError(ValueError):
    """A model cannot be fine-tuned on this task, or training diverged."""


@dataclass(frozen=True)
class TaskSource:
    """A model folder with its configuration and tokenizer."""

    path: Path
    config: Any
    tokenizer: Any

    @property
    def positions(self) -> int:
        """Longest input, in tokens."""
        return model_folder.positions(self.config)


def open_source(path: Path) -> TaskSource:
    """Open a model folder.

    Raises:
        ArtifactError: it was changed after it was made.
        StageError: configuration, weights or tokenizer are absent or do not fit one another.
    """
    model_check.check(path)
    return opened(path)


def opened(path: Path) -> TaskSource:
    """A folder of a model or an export, which was checked before.

    Raises:
        StageError: it has no tokenizer, or one that does not fit its configuration.
    """
    config = model_folder.configuration(path)
    return TaskSource(path, config, model_tokenizer.open_tokenizer(path, config))


def max_length(requested: int | None, task: Task, positions: int) -> int:
    """Tokens of an example: the requested ones, or the task's standard, at most the model's ``positions``.

    Raises:
        ModelError: the model reads fewer tokens than requested.
    """
    if requested is not None and requested > positions:
        raise ModelError(f"max_length = {requested}, but the model reads {positions} tokens: write at most that")
    return requested or min(task.max_length, positions)


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def start(source: TaskSource, task: Task, seed: int) -> Any:
    """The model of ``source`` with its own head where that fits ``task``, else with a head drawn from ``seed``.

    Raises:
        StageError: its weights do not fit its configuration.
    """
    model, _ = _load(source, task, seed)
    return model


def load_trained(source: TaskSource, task: Task) -> Any:
    """A model fine-tuned on ``task``, in evaluation mode.

    Raises:
        ModelError: the model lacks weights, or has other labels.
    """
    label_order(source, task)
    model, absent = _load(source, task, seed=0)
    if absent:
        raise ModelError(f"{source.path} lacks {len(absent)} weights, {min(absent)} first: make it again")
    return model.eval()


def label_order(source: TaskSource, task: Task) -> list[int]:
    """The model's output for each output of the task, matched by the names of their labels.

    Raises:
        ModelError: the model has another head, other labels, or does not name them.
    """
    if (head := model_folder.head(source.config)) != (wanted := _head(task)):
        raise ModelError(f"{source.path} has a head for {head}, {task.name} needs one for {wanted}: fine-tune it first")
    if (order := _matched(source, task)) is not None:
        return order
    names, ours = model_folder.labels(source.config), ", ".join(task.label_names)
    if len(names) == task.outputs and all(unnamed(name) is not None for name in names):
        raise ModelError(
            f"{source.path} does not name its labels ({', '.join(names)}), and models of {task.name} differ in their "
            f"order: write the names {ours} as id2label of its config.json, in the order of its outputs"
        )
    raise ModelError(
        f"{source.path} has the labels {', '.join(names)}, the data of {task.name} has {ours}: give a model that was "
        "fine-tuned on the same data"
    )


def _matched(source: TaskSource, task: Task) -> list[int] | None:
    """The model's output for each output of the task; None where its labels are not the task's."""
    if _head(task) != "classification":
        return list(range(task.outputs))
    classes = classes_named(task, model_folder.labels(source.config))
    return None if classes is None else [classes.index(number) for number in range(task.outputs)]


def _head(task: Task) -> str:
    if task.answers is not None:
        return "question-answering"
    return "regression" if task.label_range is not None else "classification"


def save(model: Any, source: TaskSource, folder: Path) -> None:
    """Write model and tokenizer in Hugging Face layout."""
    with quiet_tokenizer():
        model.save_pretrained(folder)
    model_tokenizer.save_beside(source.tokenizer, source.config, folder)


def logits(model: Any, inputs: Inputs) -> Tensor:
    """``[rows, outputs]``."""
    outputs: Tensor = model(**inputs).logits
    return outputs


def span_logits(model: Any, inputs: Inputs) -> Tensor:
    """``[rows, 2, longest]``: logits of each token to be the first and the last of the answer."""
    outputs = model(**inputs)
    return torch.stack((outputs.start_logits, outputs.end_logits), dim=1)


def _load(source: TaskSource, task: Task, seed: int) -> tuple[Any, frozenset[str]]:
    """The model on its device, and the names of weights that the file lacks or has in another size."""
    torch.manual_seed(seed)
    kind = transformers.AutoModelForSequenceClassification
    if task.answers is not None:
        kind = transformers.AutoModelForQuestionAnswering
    model, absent = model_loading.load(kind, source.path, **_labels(task))
    _reorder(model, source, task, absent)
    # A copy of the folder without its manifest still says what it is for.
    model.config.finetuning_task = task.name
    return model.to(device()), absent


def _reorder(model: Any, source: TaskSource, task: Task, absent: Collection[str]) -> None:
    """Put the outputs of a head of ``source`` into the order of the task's labels; say where these cannot be known."""
    if model_folder.head(source.config) != "classification" or any("classifier" in name for name in absent):
        return
    order = _matched(source, task)
    if order is None:
        names, ours = model_folder.labels(source.config), ", ".join(task.label_names)
        logger.info("%s: its head, which has the labels %s, starts to learn %s", source.path, ", ".join(names), ours)
    if order is None or order == sorted(order):
        return
    last = getattr(model.classifier, "out_proj", model.classifier)
    with torch.no_grad():
        for values in last.parameters():
            values.copy_(values[order].clone())


def _labels(task: Task) -> dict[str, Any]:
    """Configuration values of the task's outputs."""
    if task.answers is not None:
        return {"num_labels": task.outputs}
    names = dict(enumerate(task.label_names)) or {0: "score"}
    return {
        "num_labels": task.outputs,
        "id2label": names,
        "label2id": {name: number for number, name in names.items()},
        "problem_type": "single_label_classification" if task.label_range is None else "regression",
    }
