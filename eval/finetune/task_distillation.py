"""The second step of distillation: a fine-tuned teacher teaches the student while the student is fine-tuned.

Sanh et al. 2019, section 3: on SQuAD, "another step of distillation during the adaptation phase". Here for every task:
the teacher's outputs are soft targets beside the labels. They are computed once: the teacher has no dropout, so they
are constants, and every epoch and seed uses the same ones.
"""

from dataclasses import dataclass

from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from cluster.artifacts.recipe import Recipe
from eval.finetune.task_model import TaskSource


class TaskDistillation(Recipe):
    """Weights of the two terms; the defaults are those of the original code."""

    temperature: PositiveFloat = 2.0
    """Softens teacher and student alike. Scores of a regression have no temperature."""
    soft: PositiveFloat = 0.5
    task: NonNegativeFloat = 0.5


@dataclass(frozen=True)
class Teaching:
    """A second step and who teaches in it."""

    step: TaskDistillation
    teacher: TaskSource
    micro_batch: int
    """Examples the student is trained on at once; of the teacher, who needs no gradients, see :func:`outputs`."""


def soft_targets(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) over the last dimension at this temperature, in nats, times its square: ``[...]``.

    A position that is padding has the same hugely negative logit on both sides, and so adds nothing.
    """
    of_student, of_teacher = (log_softmax(each / temperature, dim=-1) for each in (student, teacher))
    return kl_div(of_student, of_teacher, reduction="none", log_target=True).sum(-1) * temperature**2


def soft_scores(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance of two scores: ``[...]``."""
    return (student - teacher).square()
