"""Loads BERT, DistilBERT or RoBERTa for a task: the tokenizer, and the encoder with the task's head."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from cluster.models import model_folder
from cluster.tokens.tokenizer import quiet_tokenizer
from eval.finetune.batching import Inputs
from eval.tasks.definitions import Task
from eval.tasks.label_matching import classes_named, unnamed

# Weights that a masked-language model may lack; a model that lacks others is damaged.
HEAD = ("qa_outputs.", "classifier.", "pre_classifier.", "pooler.", "bert.pooler.")


class ModelError(ValueError):
    """A model cannot be fine-tuned: files or weights are missing, or training diverged."""


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
        ModelError: the folder lacks configuration, weights or tokenizer.
    """
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        if not (path / name).is_file():
            raise ModelError(f"{path} has no {name}: give a teacher or student artifact, or a Hugging Face folder")
    config = transformers.AutoConfig.from_pretrained(path)
    return TaskSource(path, config, transformers.AutoTokenizer.from_pretrained(path))


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
        ModelError: the encoder lacks weights.
    """
    model, absent = _load(source, task, seed)
    if damaged := sorted(name for name in absent if not name.startswith(HEAD)):
        raise ModelError(
            f"{source.path} lacks {len(damaged)} weights of its encoder, {damaged[0]} first: it is damaged, or its "
            "config.json names another architecture; make or get it again"
        )
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
    names, ours = _names(source), ", ".join(task.label_names)
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
    classes = classes_named(task, _names(source))
    return None if classes is None else [classes.index(number) for number in range(task.outputs)]


def _names(source: TaskSource) -> list[str]:
    """Names of the model's labels, in the order of its outputs."""
    return [str(source.config.id2label.get(number, number)) for number in range(source.config.num_labels)]


def _head(task: Task) -> str:
    if task.answers is not None:
        return "question-answering"
    return "regression" if task.label_range is not None else "classification"


def save(model: Any, source: TaskSource, folder: Path) -> None:
    """Write model and tokenizer in Hugging Face layout."""
    with quiet_tokenizer():
        model.save_pretrained(folder)
        source.tokenizer.save_pretrained(folder)


def logits(model: Any, inputs: Inputs) -> Tensor:
    """``[rows, outputs]``."""
    outputs: Tensor = model(**inputs).logits
    return outputs


def span_logits(model: Any, inputs: Inputs) -> Tensor:
    """``[rows, 2, longest]``: logits of each token to be the first and the last of the answer."""
    outputs = model(**inputs)
    return torch.stack((outputs.start_logits, outputs.end_logits), dim=1)


def _load(source: TaskSource, task: Task, seed: int) -> tuple[Any, set[str]]:
    """The model on its device, and the names of weights that the file lacks or has in another size."""
    torch.manual_seed(seed)
    kind = transformers.AutoModelForSequenceClassification
    if task.answers is not None:
        kind = transformers.AutoModelForQuestionAnswering
    with quiet_tokenizer():
        model, loaded = kind.from_pretrained(
            source.path,
            **_labels(task),
            # Training is in fp32, also from half-precision files, as teachers usually have.
            dtype=torch.float32,
            use_safetensors=True,
            # Allows a model fine-tuned on another task, whose head is then replaced.
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    absent = {*loaded["missing_keys"], *(key for key, *_ in loaded["mismatched_keys"])}
    _reorder(model, source, task)
    # A copy of the folder without its manifest still says what it is for.
    model.config.finetuning_task = task.name
    return model.to(device()), absent


def _reorder(model: Any, source: TaskSource, task: Task) -> None:
    """Put the outputs of a head of ``source`` into the order of the task's labels."""
    order = _matched(source, task)
    if order is None or order == sorted(order) or model_folder.head(source.config) != "classification":
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
