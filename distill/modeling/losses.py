"""The triple loss (soft targets, masked words, cosine) as pure functions of logits; the reference for the fused head.

Sanh et al. 2019 (arXiv 1910.01108), section 3. Always in fp32: a softmax over 30,000 words loses its tail in half
precision.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Losses:
    """Unweighted loss terms of a batch, in nats (cosine: no unit), and their weighted total."""

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
