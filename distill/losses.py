"""The triple loss: soft targets, masked words, cosine. Pure functions, the reference for anything faster.

Sanh et al. 2019 (arXiv 1910.01108), section 3. Computed in fp32 whatever the models run in: a softmax over 30,000
words loses its tail in half precision.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from distill.distillation import Loss
from distill.masked_lm import Outputs


@dataclass(frozen=True)
class Losses:
    """Loss terms of a batch, unweighted, in nats (cosine: no unit), and their weighted total."""

    total: Float[Tensor, ""]
    soft: Float[Tensor, ""]
    masked: Float[Tensor, ""]
    cosine: Float[Tensor, ""]

    def stack(self) -> Float[Tensor, "4"]:
        """``[total, soft, masked, cosine]``, detached."""
        return torch.stack([self.total, self.soft, self.masked, self.cosine]).detach()


# Rows of 30,000 words that stay in a core's cache; a GPU wants enough rows to fill it.
_CHUNK_ROWS = {"cpu": 16}

TERMS = ("total", "soft", "masked", "cosine")


def soft_target_loss(
    student: Float[Tensor, "positions vocab"], teacher: Float[Tensor, "positions vocab"], temperature: float
) -> Float[Tensor, ""]:
    """KL(teacher || student) at this temperature, in nats per position, times its square (Hinton et al. 2015)."""
    if student.shape != teacher.shape:
        raise ValueError(f"student logits {tuple(student.shape)} and teacher logits {tuple(teacher.shape)} must agree")
    loss: Tensor = _SoftTargets.apply(student, teacher, temperature)  # type: ignore[no-untyped-call]
    return loss


class _SoftTargets(torch.autograd.Function):
    """The soft loss a few positions at a time, with its gradient in closed form.

    Logits are large (positions x vocabulary), and the plain formula passes over fp32 copies of them some ten times.
    Here a chunk stays in the cache from its logits to its gradient: four times faster on a CPU. The gradient of a
    position, ``temperature * (softmax(student / T) - softmax(teacher / T))``, is kept without dividing by the number
    of positions: divided, most of it would be below what fp16 can hold before the loss scale comes in ``backward``.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        total = torch.zeros((), dtype=torch.float64, device=student.device)
        gradient = torch.empty_like(student)
        rows = _CHUNK_ROWS.get(student.device.type, 2048)
        for first in range(0, len(student), rows):
            chunk = slice(first, first + rows)
            predicted = functional.log_softmax(student[chunk].float() / temperature, dim=-1)
            wanted = functional.log_softmax(teacher[chunk].float() / temperature, dim=-1)
            chances = wanted.exp()
            total += torch.dot(chances.view(-1), wanted.sub_(predicted).view(-1))
            gradient[chunk] = predicted.exp_().sub_(chances).mul_(temperature)
        ctx.save_for_backward(gradient)
        return (total * temperature**2 / len(student)).float()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * (upstream / len(gradient)), None, None


def masked_word_loss(logits: Float[Tensor, "labels vocab"], labels: Int[Tensor, " labels"]) -> Float[Tensor, ""]:
    """Cross-entropy of the hidden words, in nats per label."""
    return functional.cross_entropy(logits.float(), labels)


def cosine_loss(student: Float[Tensor, "tokens hidden"], teacher: Float[Tensor, "tokens hidden"]) -> Float[Tensor, ""]:
    """One minus the cosine between last hidden states, mean over tokens."""
    return 1 - functional.cosine_similarity(student.float(), teacher.float(), dim=-1).mean()


def triple_loss(
    student: Outputs,
    taught: Outputs | None,
    labels: Int[Tensor, " labels"],
    label_rows: Int[Tensor, " labels"] | None,
    weights: Loss,
) -> Losses:
    """The weighted sum of the three losses of one batch.

    ``label_rows`` are the rows of ``logits`` that carry labels; None when logits were computed at exactly those.
    Terms of weight 0 are not computed and come back as 0. ``taught`` may be None only when no term needs it.
    """
    zero = student.hidden.new_zeros((), dtype=torch.float32)
    soft, masked, cosine = zero, zero, zero
    if weights.soft:
        assert taught is not None
        soft = soft_target_loss(student.logits, taught.logits, weights.temperature)
    if weights.masked:
        masked = masked_word_loss(student.logits if label_rows is None else student.logits[label_rows], labels)
    if weights.cosine:
        assert taught is not None
        cosine = cosine_loss(student.hidden, taught.hidden)
    total = weights.soft * soft + weights.masked * masked + weights.cosine * cosine
    return Losses(total, soft, masked, cosine)
