"""The second step of distillation: the student is fine-tuned on the labels and on the logits of a fine-tuned teacher.

Sanh et al. 2019, section 3: on SQuAD, "another step of distillation during the adaptation phase"; here on every task.
The teacher's logits are computed once for all epochs and seeds: without dropout they do not change.
"""

from dataclasses import dataclass

from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from cluster.artifacts.recipe import Recipe
from eval.finetune import layer_step
from eval.finetune.batching import Features
from eval.finetune.layer_step import LayerStep, LayerTeaching
from eval.finetune.task_model import TaskSource, load_trained
from eval.tasks.definitions import Task


class TaskDistillation(Recipe):
    """Weights of the two loss terms; the defaults are those of the original code."""

    temperature: PositiveFloat = 2.0
    """Temperature of the soft targets of teacher and student; regression uses none."""
    soft: PositiveFloat = 0.5
    """Weight of the loss against the teacher's logits."""
    task: NonNegativeFloat = 0.5
    """Weight of the loss against the labels."""
    layers: LayerStep | None = None
    """Before that, learn the layers of the fine-tuned teacher on the task's inputs; by default not."""


@dataclass(frozen=True)
class Teaching:
    """A second step with its teacher."""

    step: TaskDistillation
    teacher: TaskSource
    micro_batch: int
    """The student's micro-batch; the teacher needs no gradients and reads twice as many rows."""


def layer_teaching(
    teaching: Teaching, student: TaskSource, task: Task, ours: Features, theirs: Features
) -> LayerTeaching | None:
    """What trains on the teacher's layers; None where the step has no such half.

    Raises:
        StageError: student and teacher have other layers or widths than the step compares, or read other tokens.
        ModelError: the teacher has other labels, or lacks weights.
    """
    if teaching.step.layers is None:
        return None
    layer_step.check(teaching.step.layers, student.config, teaching.teacher.config, ours, theirs)
    model = load_trained(teaching.teacher, task).requires_grad_(False)
    return LayerTeaching(teaching.step.layers, model, theirs)


def soft_targets(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) over the last dimension at this temperature, in nats, times its square: ``[...]``.

    Padding has the same very negative logit on both sides, and adds nothing.
    """
    of_student, of_teacher = (log_softmax(each / temperature, dim=-1) for each in (student, teacher))
    return kl_div(of_student, of_teacher, reduction="none", log_target=True).sum(-1) * temperature**2


def soft_scores(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared difference of two scores: ``[...]``."""
    return (student - teacher).square()
