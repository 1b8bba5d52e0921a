"""The student with its objective in one module.

DeepSpeed gathers sharded weights only inside a module's forward pass, so the losses are computed there.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cluster.models.precision import dtype_of
from distill.config import Loss, Training
from distill.data.batches import Batch
from distill.engine.process_group import Workers
from distill.modeling import fused_head
from distill.modeling.fused_head import DistillationTargets, Guesses, HeadLosses
from distill.modeling.losses import Losses, cosine_loss, masked_word_loss, soft_target_loss
from distill.modeling.masked_lm import MaskedLM, Outputs, Projection


@dataclass(frozen=True)
class HeadSettings:
    """How the vocabulary head computes losses. The values of the losses do not depend on it."""

    kind: str
    """``fused``, or ``naive``: all logits at once, the reference."""
    chunk: int
    """Positions whose logits the fused head holds at a time."""
    compiled: bool = False


def head_settings(training: Training, vocab_size: int, workers: Workers) -> HeadSettings:
    """The head settings of a run on this worker."""
    device = workers.device.type
    chunk = fused_head.chunk_positions(vocab_size, dtype_of(training.precision).itemsize, workers.memory, device)
    return HeadSettings(training.placement.head, chunk, training.placement.compiles(device))


@dataclass(frozen=True)
class ObjectiveOutput:
    """Losses of a batch and, without gradients, the guess at each label."""

    losses: Losses
    guesses: Guesses | None


class StudentObjective(MaskedLM):
    """A masked language model whose forward pass returns losses."""

    def __init__(self, model: Any, weights: Loss, head: HeadSettings) -> None:
        super().__init__(model)
        self._weights, self._head = weights, head

    def forward(  # type: ignore[override]
        self, batch: Batch, teacher: Outputs | None, projection: Projection | None
    ) -> ObjectiveOutput:
        """Losses of a batch, given the teacher's outputs and its projection.

        ``teacher`` may be None only when no loss term needs one. With gradients, soft and cosine terms of weight 0 are
        skipped and returned as 0; without gradients, every possible term is measured.
        """
        training = torch.is_grad_enabled()
        outputs: Outputs = super().forward(batch.input_ids, batch.positions)
        targets = None
        if teacher is not None and projection is not None:
            targets = DistillationTargets(teacher.features, projection)
        weights = self._weights if training else _every_term(self._weights, teacher is not None)
        head = self._head_losses(outputs.features, targets, batch.labels, weights)
        cosine = torch.zeros_like(head.weighted)
        if weights.cosine:
            assert teacher is not None
            loss = cosine_loss if self._head.kind == "naive" else fused_head.cosine_loss
            cosine = loss(outputs.hidden, teacher.hidden)
        total = head.weighted + weights.cosine * cosine
        guesses = None
        if not training:
            labelled = outputs.features[: len(batch.labels)]
            guesses = fused_head.guesses(labelled, self.projection, batch.labels, self._head.chunk)
        return ObjectiveOutput(Losses(total, head.soft, head.masked, cosine), guesses)

    def _head_losses(
        self,
        features: Float[Tensor, "positions hidden"],
        targets: DistillationTargets | None,
        labels: Int[Tensor, " labels"],
        weights: Loss,
    ) -> HeadLosses:
        head = self._head
        if head.kind == "fused":
            return fused_head.head_losses(
                features, self.projection, targets, labels, weights, head.chunk, head.compiled
            )
        logits = self.projection.logits(features)
        soft = torch.zeros((), device=features.device)
        if weights.soft:
            assert targets is not None
            soft = soft_target_loss(logits, targets.projection.logits(targets.features), weights.temperature)
        masked = masked_word_loss(logits[: len(labels)], labels)
        return HeadLosses(weights.soft * soft + weights.masked * masked, soft, masked)


def _every_term(weights: Loss, with_teacher: bool) -> Loss:
    share = 1.0 if with_teacher else 0.0
    return weights.model_copy(update={"soft": share, "masked": 1.0, "cosine": share})
