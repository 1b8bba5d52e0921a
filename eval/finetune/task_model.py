"""A model folder opened for a task: its tokenizer, and its encoder under the task's head.

BERT, DistilBERT and RoBERTa go through the same lines; a head that is not in the file is drawn from the seed.
"""

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

# What a masked-language model does not bring along; anything else that is missing is a damaged model.
HEAD = ("qa_outputs.", "classifier.", "pre_classifier.", "pooler.", "bert.pooler.")


class ModelError(ValueError):
    """A model cannot be fine-tuned: it is not one, its weights are incomplete, or training diverged."""


@dataclass(frozen=True)
class TaskSource:
    """The folder of a model in Hugging Face layout, its configuration and its tokenizer."""

    path: Path
    config: Any
    tokenizer: Any

    @property
    def positions(self) -> int:
        """Longest input, in tokens."""
        return model_folder.positions(self.config)


def open_source(path: Path) -> TaskSource:
    """Read a model's configuration and tokenizer.

    Raises:
        ModelError: the folder lacks a file that every model has.
    """
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        if not (path / name).is_file():
            raise ModelError(f"{path} has no {name}: give a teacher or student artifact, or a Hugging Face folder")
    config = transformers.AutoConfig.from_pretrained(path)
    return TaskSource(path, config, transformers.AutoTokenizer.from_pretrained(path))


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def start(source: TaskSource, task: Task, seed: int) -> Any:
    """The encoder of ``source`` with a head for ``task`` drawn from ``seed``, or with the one it has where that fits.

    Raises:
        ModelError: weights other than a head's are missing.
    """
    model, absent = _load(source, task, seed)
    if damaged := sorted(name for name in absent if not name.startswith(HEAD)):
        raise ModelError(
            f"{source.path} lacks {len(damaged)} weights of its encoder, {damaged[0]} first: it is damaged, or of "
            "another architecture than its config.json says; make or get it again"
        )
    return model


def trained(source: TaskSource, task: Task) -> Any:
    """A model that was fine-tuned on ``task``, in evaluation mode.

    Raises:
        ModelError: it lacks weights, or its labels are others.
    """
    check_labels(source, task)
    model, absent = _load(source, task, seed=0)
    if absent:
        raise ModelError(f"{source.path} lacks {len(absent)} weights, {min(absent)} first: make it again")
    return model.eval()


def check_labels(source: TaskSource, task: Task) -> None:
    """
    Raises:
        ModelError: the model's labels are others than the task's.
    """
    names = list(task.label_names) or (["score"] if task.answers is None else [])
    if (found := [source.config.id2label.get(number) for number in range(len(names))]) != names:
        raise ModelError(
            f"{source.path} has the labels {', '.join(map(str, found))}, {task.name} here has {', '.join(names)}: "
            "give a model that was fine-tuned on the same data"
        )


def save(model: Any, source: TaskSource, folder: Path) -> None:
    """Write model and tokenizer in Hugging Face layout."""
    with quiet_tokenizer():
        model.save_pretrained(folder)
        source.tokenizer.save_pretrained(folder)


def logits(model: Any, inputs: Inputs) -> Tensor:
    """``[rows, outputs]``."""
    found: Tensor = model(**inputs).logits
    return found


def span_logits(model: Any, inputs: Inputs) -> Tensor:
    """``[rows, 2, longest]``: of each token to be the first of the answer, and to be the last."""
    found = model(**inputs)
    return torch.stack((found.start_logits, found.end_logits), dim=1)


def _load(source: TaskSource, task: Task, seed: int) -> tuple[Any, set[str]]:
    """The model on its device, and the names of its weights that are not in the file, or there in other sizes."""
    torch.manual_seed(seed)
    kind = transformers.AutoModelForSequenceClassification
    if task.answers is not None:
        kind = transformers.AutoModelForQuestionAnswering
    with quiet_tokenizer():
        model, loaded = kind.from_pretrained(
            source.path,
            **_labels(task),
            # Half-precision files (a teacher's, usually) are trained from in fp32.
            dtype=torch.float32,
            use_safetensors=True,
            # A model fine-tuned on another task is a fair start: its head is replaced.
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    absent = {*loaded["missing_keys"], *(key for key, *_ in loaded["mismatched_keys"])}
    return model.to(device()), absent


def _labels(task: Task) -> dict[str, Any]:
    """What a configuration says of a task's outputs."""
    if task.answers is not None:
        return {"num_labels": task.outputs}
    names = dict(enumerate(task.label_names)) or {0: "score"}
    return {
        "num_labels": task.outputs,
        "id2label": names,
        "label2id": {name: number for number, name in names.items()},
        "problem_type": "single_label_classification" if task.label_range is None else "regression",
    }
