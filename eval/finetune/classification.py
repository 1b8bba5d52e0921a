"""Tasks of classes or scores: encoding, loss, predictions and metrics."""

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
from eval.finetune.layer_step import LayerTeaching
from eval.finetune.task_distillation import TaskDistillation, Teaching, layer_teaching, soft_scores, soft_targets
from eval.finetune.task_model import TaskSource, device, load_trained, logits, start
from eval.finetune.trainer import outputs
from eval.tasks import per_example
from eval.tasks.definitions import Task
from eval.tasks.examples import Examples, TaskData
from eval.tasks.metrics import majority, measure


@dataclass(frozen=True)
class ClassLoss:
    """Loss of rows by their numbers, against the labels and, in a second step, the teacher's logits."""

    regression: bool
    labels: Tensor
    """``[examples]``: int64 classes or float32 scores."""
    taught: Tensor | None
    """``[examples, outputs]``, fp32: the teacher's logits."""
    second_step: TaskDistillation | None

    def __call__(self, logits: Tensor, rows: Rows) -> Tensor:
        """Sum over the rows of cross entropies in nats, or of squared errors, from logits ``[rows, outputs]``."""
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
    """A task of classes or scores, encoded for one model; a :class:`~eval.finetune.trainer.TaskProblem`."""

    source: TaskSource
    data: TaskData[Examples]
    train: Features
    dev: tuple[Features, ...]
    loss: ClassLoss
    layers: LayerTeaching | None

    @property
    def task(self) -> Task:
        return self.data.task

    @property
    def splits(self) -> tuple[Examples, ...]:
        return (self.data.train, *self.data.dev)

    @property
    def units(self) -> Rows:
        return np.arange(len(self.train))

    def start(self, seed: int) -> Any:
        return start(self.source, self.task, seed)

    def forward(self, model: Any, inputs: Inputs) -> Tensor:
        return logits(model, inputs)

    def measure(self, model: Any, micro_batch: int, folder: Path) -> dict[str, float]:
        predictions = [predict(model, self.task, features, micro_batch) for features in self.dev]
        values = per_example.contributions(self.task, predictions[0], self.data.dev[0].labels)
        per_example.write(folder, values)
        return measured(self.task, self.data.dev, predictions)

    def majority(self) -> float:
        return majority(self.task, self.data.train.labels, self.data.dev[0].labels)


def prepare(source: TaskSource, data: TaskData[Examples], max_length: int, teaching: Teaching | None) -> Classification:
    """Encode a task for a model; the teacher of a second step reads the same texts with its own tokenizer.

    Raises:
        ModelError: the teacher has other labels, or lacks weights.
    """
    train, *dev = (encode(source.tokenizer, each.texts, max_length).to(device()) for each in (data.train, *data.dev))
    labels, regression = torch.from_numpy(data.train.labels).to(device()), data.task.label_range is not None
    if teaching is None:
        return Classification(source, data, train, tuple(dev), ClassLoss(regression, labels, None, None), None)
    teacher = teaching.teacher
    texts = encode(teacher.tokenizer, data.train.texts, min(max_length, teacher.positions)).to(device())
    layers = layer_teaching(teaching, source, data.task, train, texts)
    model = load_trained(teacher, data.task) if layers is None else layers.teacher
    taught = _outputs(model, data.task, texts, teaching.micro_batch, "teacher's logits")
    return Classification(source, data, train, tuple(dev), ClassLoss(regression, labels, taught, teaching.step), layers)


def measured(task: Task, dev: Sequence[Examples], predictions: Sequence[npt.NDArray[Any]]) -> dict[str, float]:
    """All metrics of all development sets in percent; those of a second set have its name (``mismatched_accuracy``)."""
    metrics: dict[str, float] = {}
    for names, examples, predicted in zip(task.dev, dev, predictions, strict=True):
        prefix = f"{names[0].partition('_')[2]}_" if metrics else ""
        metrics |= {prefix + name: value for name, value in measure(task, predicted, examples.labels).items()}
    return metrics


def predict(model: Any, task: Task, features: Features, micro_batch: int) -> npt.NDArray[Any]:
    """Predicted classes or scores ``[examples]``."""
    return predictions(task, _outputs(model, task, features, micro_batch, "answers").cpu().numpy())


def predictions(task: Task, logits: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Classes or scores ``[examples]`` from logits ``[examples, outputs]``."""
    return logits[:, 0] if task.label_range is not None else logits.argmax(axis=1)


def _outputs(model: Any, task: Task, features: Features, micro_batch: int, title: str) -> Tensor:
    """Logits ``[examples, outputs]`` on the device, in the order of the examples."""
    together = torch.empty((len(features), task.outputs), device=model.device)
    for rows, of_rows in outputs(model, logits, features, micro_batch, title):
        together[torch.from_numpy(rows).to(together.device)] = of_rows
    return together
