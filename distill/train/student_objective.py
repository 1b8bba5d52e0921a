"""What trains: a masked language model and its objective, in one module.

DeepSpeed hands out sharded weights only inside a module's forward pass, so the losses are computed there.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cluster.models.precision import DTYPES
from distill.config import Loss, Training
from distill.data.batches import Batch
from distill.engine.process_group import Workers
from distill.modeling import fused_head
from distill.modeling.fused_head import DistillationTargets, HeadLosses
from distill.modeling.losses import Losses, cosine_loss, masked_word_loss, soft_target_loss
from distill.modeling.masked_lm import MaskedLM, Outputs, Projection


@dataclass(frozen=True)
class Head:
    """How logits become losses; none of this changes a loss."""

    kind: str
    """``fused``, or ``naive``: all logits at once, the reference."""
    chunk: int
    """Most positions whose logits exist at a time in the fused head."""
    compiled: bool = False


def head_for(training: Training, vocab_size: int, workers: Workers) -> Head:
    """How a run's logits become losses on this worker."""
    device = workers.device.type
    chunk = fused_head.chunk_positions(vocab_size, DTYPES[training.precision].itemsize, workers.memory, device)
    return Head(training.placement.head, chunk, training.placement.compiles(device))


@dataclass(frozen=True)
class Learned:
    """Losses of a batch and, outside training, the likeliest words at its labels."""

    losses: Losses
    words: Int[Tensor, " labels"] | None


class Learner(MaskedLM):
    """A masked language model whose forward pass ends in losses."""

    def __init__(self, model: Any, weights: Loss, head: Head) -> None:
        super().__init__(model)
        self._weights, self._head = weights, head

    def forward(self, batch: Batch, taught: Outputs | None, teacher: Projection | None) -> Learned:  # type: ignore[override]
        """Losses of a batch; ``taught`` may be None only when no term of the loss needs a teacher.

        In training, a soft or cosine term of weight 0 is not computed and comes back as 0. Without gradients, every
        term that can be measured is.
        """
        learns = torch.is_grad_enabled()
        outputs: Outputs = super().forward(batch.input_ids, batch.positions)
        wanted = DistillationTargets(taught.features, teacher) if taught is not None and teacher is not None else None
        weights = self._weights if learns else _every_term(self._weights, taught is not None)
        head = self._losses(outputs.features, wanted, batch.labels, weights)
        cosine = torch.zeros_like(head.weighted)
        if weights.cosine:
            assert taught is not None
            cosine = (cosine_loss if self._head.kind == "naive" else fused_head.cosine_loss)(
                outputs.hidden, taught.hidden
            )
        total = head.weighted + weights.cosine * cosine
        words = None
        if not learns:
            words = fused_head.top_words(outputs.features[: len(batch.labels)], self.projection, self._head.chunk)
        return Learned(Losses(total, head.soft, head.masked, cosine), words)

    def _losses(
        self,
        features: Float[Tensor, "positions hidden"],
        taught: DistillationTargets | None,
        labels: Int[Tensor, " labels"],
        weights: Loss,
    ) -> HeadLosses:
        head = self._head
        if head.kind == "fused":
            return fused_head.head_losses(features, self.projection, taught, labels, weights, head.chunk, head.compiled)
        logits = self.projection.logits(features)
        soft = torch.zeros((), device=features.device)
        if weights.soft:
            assert taught is not None
            soft = soft_target_loss(logits, taught.projection.logits(taught.features), weights.temperature)
        masked = masked_word_loss(logits[: len(labels)], labels)
        return HeadLosses(weights.soft * soft + weights.masked * masked, soft, masked)


def _every_term(weights: Loss, with_teacher: bool) -> Loss:
    share = 1.0 if with_teacher else 0.0
    return weights.model_copy(update={"soft": share, "masked": 1.0, "cosine": share})
