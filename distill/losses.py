"""The triple loss: soft targets, masked words, cosine. Pure functions, the reference for anything faster.

Sanh et al. 2019 (arXiv 1910.01108), section 3. Computed in fp32 whatever the models run in: a softmax over 30,000
words loses its tail in half precision.
"""

from dataclasses import dataclass

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


TERMS = ("total", "soft", "masked", "cosine")


def soft_target_loss(
    student: Float[Tensor, "positions vocab"], teacher: Float[Tensor, "positions vocab"], temperature: float
) -> Float[Tensor, ""]:
    """KL(teacher || student) at this temperature, in nats per position, times its square (Hinton et al. 2015)."""
    predicted = functional.log_softmax(student.float() / temperature, dim=-1)
    wanted = functional.log_softmax(teacher.float() / temperature, dim=-1)
    return functional.kl_div(predicted, wanted, reduction="batchmean", log_target=True) * temperature**2


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
