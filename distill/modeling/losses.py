"""The losses as pure functions: the reference for the fused head and for :mod:`distill.modeling.layer_losses`.

Soft targets, masked words and cosine: Sanh et al. 2019 (arXiv 1910.01108), section 3. Always in fp32: a softmax over
30,000 words loses its tail in half precision.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from cluster.telemetry.loss_terms import LOSS_TERMS


@dataclass(frozen=True)
class Losses:
    """Unweighted loss terms of a batch, in nats (cosine and hidden: no unit), and their weighted total."""

    total: Float[Tensor, ""]
    soft: Float[Tensor, ""]
    masked: Float[Tensor, ""]
    cosine: Float[Tensor, ""]
    hidden: Float[Tensor, ""]
    relation: Float[Tensor, ""]

    def stack(self) -> Float[Tensor, "terms"]:
        """The terms in the order of :data:`TERMS`, detached."""
        return torch.stack([getattr(self, term) for term in TERMS]).detach()


TERMS = ("total", *LOSS_TERMS)


def soft_target_loss(
    student: Float[Tensor, "positions vocab"], teacher: Float[Tensor, "positions vocab"], temperature: float
) -> Float[Tensor, ""]:
    """KL(teacher || student) at this temperature, in nats per position, times its square (Hinton et al. 2015)."""
    if student.shape != teacher.shape:
        raise ValueError(f"student logits {tuple(student.shape)} and teacher logits {tuple(teacher.shape)} must agree")
    predicted = functional.log_softmax(student.float() / temperature, dim=-1)
    wanted = functional.log_softmax(teacher.float() / temperature, dim=-1)
    return functional.kl_div(predicted, wanted, reduction="batchmean", log_target=True) * temperature**2


def masked_word_loss(logits: Float[Tensor, "labels vocab"], labels: Int[Tensor, " labels"]) -> Float[Tensor, ""]:
    """Cross-entropy of the masked words, in nats per label."""
    return functional.cross_entropy(logits.float(), labels)


def cosine_loss(student: Float[Tensor, "tokens hidden"], teacher: Float[Tensor, "tokens hidden"]) -> Float[Tensor, ""]:
    """One minus the cosine between the last hidden states, mean over tokens."""
    return 1 - functional.cosine_similarity(student.float(), teacher.float(), dim=-1).mean()


def hidden_loss(
    student: Float[Tensor, "tokens hidden"],
    teacher: Float[Tensor, "tokens hidden"],
    counted: Bool[Tensor, " tokens"] | None,
) -> Float[Tensor, ""]:
    """Squared distance to the teacher's hidden state over its squared norm, mean over the ``counted`` tokens."""
    wanted = teacher.float()
    error = (student.float() - wanted).square().sum(dim=-1) / wanted.square().sum(dim=-1)
    return error.mean() if counted is None else error[counted].mean()


def relation_loss(
    student: Mapping[str, Float[Tensor, "rows length hidden"]],
    teacher: Mapping[str, Float[Tensor, "rows length teacher_hidden"]],
    relations: tuple[tuple[str, str], ...],
    heads: int,
    counted: Bool[Tensor, "rows length"] | None,
) -> Float[Tensor, ""]:
    """KL from the teacher's relations to the student's, mean over relations, heads and ``counted`` tokens."""
    found = []
    for left, right in relations:
        predicted = _relations(student[left], student[right], heads).log_softmax(dim=-1)
        wanted = _relations(teacher[left], teacher[right], heads).log_softmax(dim=-1)
        divergence = functional.kl_div(predicted, wanted, reduction="none", log_target=True).sum(dim=-1).mean(dim=1)
        found.append(divergence.mean() if counted is None else divergence[counted].mean())
    return torch.stack(found).mean()


def _relations(
    left: Float[Tensor, "rows length hidden"], right: Float[Tensor, "rows length hidden"], heads: int
) -> Float[Tensor, "rows heads length length"]:
    rows, length, hidden = left.shape
    cut = [part.float().view(rows, length, heads, -1).transpose(1, 2) for part in (left, right)]
    found: Tensor = cut[0] @ cut[1].transpose(2, 3) / (hidden // heads) ** 0.5
    return found
