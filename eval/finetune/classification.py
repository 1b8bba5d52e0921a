"""Classes and scores: what a head of one row of outputs learns, and how its predictions are measured."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from eval.finetune.batching import Features, Inputs, Rows, encode
from eval.finetune.task_distillation import TaskDistillation, Teaching, soft_scores, soft_targets
from eval.finetune.task_model import TaskSource, device, logits, start, trained
from eval.finetune.trainer import outputs
from eval.tasks.definitions import Task
from eval.tasks.examples import Examples, TaskData
from eval.tasks.metrics import majority, measure


@dataclass(frozen=True)
class ClassLoss:
    """Loss of examples by their rows: of the labels, and of the teacher's outputs where there is a second step."""

    regression: bool
    labels: Tensor
    """``[examples]``: int64 classes or float32 scores."""
    taught: Tensor | None
    """``[examples, outputs]``, fp32: the teacher's logits."""
    second_step: TaskDistillation | None

    def __call__(self, logits: Tensor, rows: Rows) -> Tensor:
        """Sum over the examples of cross entropy in nats, or of the squared error of a score.

        ``logits`` is ``[rows, outputs]``, fp32.
        """
        index = torch.from_numpy(rows).to(logits.device, non_blocking=True)
        labels = self.labels[index]
        if self.regression:
            task = torch.square(logits[:, 0] - labels).sum()
        else:
            task = cross_entropy(logits, labels, reduction="sum")
        if self.taught is None or self.second_step is None:
            return task
        taught = self.taught[index]
        if self.regression:
            soft = soft_scores(logits[:, 0], taught[:, 0])
        else:
            soft = soft_targets(logits, taught, self.second_step.temperature)
        return self.second_step.task * task + self.second_step.soft * soft.sum()


@dataclass(frozen=True)
class Classification:
    """A task of classes or scores, encoded for one model: what the trainer trains and the stage reports."""

    source: TaskSource
    data: TaskData
    train: Features
    dev: tuple[Features, ...]
    loss: ClassLoss

    @property
    def task(self) -> Task:
        return self.data.task

    @property
    def parts(self) -> tuple[Examples, ...]:
        return (self.data.train, *self.data.dev)

    @property
    def units(self) -> Rows:
        """Every row stands alone."""
        return np.arange(len(self.train))

    def start(self, seed: int) -> Any:
        """The model before training, its head drawn from the seed."""
        return start(self.source, self.task, seed)

    def forward(self, model: Any, inputs: Inputs) -> Tensor:
        return logits(model, inputs)

    def measure(self, model: Any, micro_batch: int, folder: Path) -> dict[str, float]:
        """All metrics in percent."""
        predictions = [predict(model, self.data.task, features, micro_batch) for features in self.dev]
        return measured(self.data.task, self.data.dev, predictions)

    def majority(self) -> float:
        """Headline score on the first dev set of a model that always says the same, in percent."""
        return majority(self.data.task, self.data.train.labels, self.data.dev[0].labels)


def prepare(source: TaskSource, data: TaskData, max_length: int, teaching: Teaching | None) -> Classification:
    """Encode a task for a model, and ask the teacher, who reads the same texts with a tokenizer of its own.

    Raises:
        ModelError: the teacher was trained on other labels, or lacks weights.
    """
    train, *dev = (encode(source.tokenizer, part.texts, max_length).to(device()) for part in (data.train, *data.dev))
    labels = torch.from_numpy(data.train.labels).to(device())
    taught = None if teaching is None else _teach(teaching, data, max_length)
    loss = ClassLoss(data.task.label_range is not None, labels, taught, None if teaching is None else teaching.step)
    return Classification(source, data, train, tuple(dev), loss)


def _teach(teaching: Teaching, data: TaskData, max_length: int) -> Tensor:
    """The teacher's outputs for every training example, ``[examples, outputs]``."""
    teacher = teaching.teacher
    texts = encode(teacher.tokenizer, data.train.texts, min(max_length, teacher.positions)).to(device())
    return _outputs(trained(teacher, data.task), data.task, texts, teaching.micro_batch, "teacher's logits")


def measured(task: Task, dev: Sequence[Examples], predictions: Sequence[npt.NDArray[Any]]) -> dict[str, float]:
    """All metrics of all sets in percent; those of a second set carry its name (``mismatched_accuracy``)."""
    found: dict[str, float] = {}
    for names, examples, predicted in zip(task.dev, dev, predictions, strict=True):
        prefix = f"{names[0].partition('_')[2]}_" if found else ""
        found |= {prefix + name: value for name, value in measure(task, predicted, examples.labels).items()}
    return found


def predict(model: Any, task: Task, features: Features, micro_batch: int) -> npt.NDArray[Any]:
    """Predicted classes or scores ``[examples]``."""
    found = _outputs(model, task, features, micro_batch, "answers").cpu().numpy()
    return found[:, 0] if task.label_range is not None else found.argmax(axis=1)


def _outputs(model: Any, task: Task, features: Features, micro_batch: int, what: str) -> Tensor:
    """Logits ``[examples, outputs]`` on the device, in the order of the examples."""
    found = torch.empty((len(features), task.outputs), device=model.device)
    for rows, part in outputs(model, logits, features, micro_batch, what):
        found[torch.from_numpy(rows).to(found.device)] = part
    return found
