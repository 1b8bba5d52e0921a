"""The student with its objective in one module.

DeepSpeed gathers sharded weights only inside a module's forward pass, so the losses are computed there.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cluster.models.precision import dtype_of
from distill.config import Loss, Training
from distill.data.batches import Batch
from distill.engine.process_group import Workers
from distill.modeling import fused_head, layer_losses, losses
from distill.modeling.compared_layers import ComparedLayers
from distill.modeling.fused_head import DistillationTargets, Guesses, HeadLosses
from distill.modeling.losses import Losses, cosine_loss, masked_word_loss, soft_target_loss
from distill.modeling.masked_lm import MaskedLM, Outputs, Projection, Taps


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
    """A masked language model whose forward pass returns losses.

    ``layers`` are those that the loss compares, None without a teacher.
    """

    def __init__(self, model: Any, weights: Loss, head: HeadSettings, layers: ComparedLayers | None = None) -> None:
        super().__init__(model)
        self._head = head
        self.begin_phase(weights, layers)

    def begin_phase(self, weights: Loss, layers: ComparedLayers | None) -> None:
        """Compute this loss from the next step on."""
        self._weights, self._layers = weights, layers

    def forward(  # type: ignore[override]
        self, batch: Batch, teacher: Outputs | None, projection: Projection | None
    ) -> ObjectiveOutput:
        """Losses of a batch, given the teacher's outputs and its projection.

        ``teacher`` may be None only when no loss term needs one. With gradients, terms of weight 0 are skipped and
        returned as 0; without gradients, every possible term is measured.
        """
        training = torch.is_grad_enabled()
        weights = self._weights if training else _every_term(self._weights, teacher is not None)
        taps = self._layers.of_student(weights.needs_head) if self._layers else Taps(head=weights.needs_head)
        outputs: Outputs = super().forward(batch.input_ids, batch.positions, taps)
        if weights.needs_head:
            targets = None
            if teacher is not None and projection is not None:
                targets = DistillationTargets(teacher.features, projection)
            head = self._head_losses(outputs.features, targets, batch.labels, weights)
        else:
            head = self._no_head_losses(outputs.features)
        cosine = torch.zeros_like(head.weighted)
        if weights.cosine:
            assert teacher is not None
            loss = cosine_loss if self._head.kind == "naive" else fused_head.cosine_loss
            cosine = loss(outputs.hidden, teacher.hidden)
        hidden, relation = self._layer_losses(outputs, teacher, batch, weights)
        total = head.weighted + weights.cosine * cosine + weights.hidden * hidden + weights.relation * relation
        guesses = None
        if not training:
            labelled = outputs.features[: len(batch.labels)]
            guesses = fused_head.guesses(labelled, self.projection, batch.labels, self._head.chunk)
        return ObjectiveOutput(Losses(total, head.soft, head.masked, cosine, hidden, relation), guesses)

    def _no_head_losses(self, features: Float[Tensor, "0 hidden"]) -> HeadLosses:
        """Losses of 0 for no position, so that the head's weights get a gradient of 0 under every ZeRO stage."""
        zero = features.sum(dtype=torch.float32) + self.projection.bias[:0].sum(dtype=torch.float32)
        return HeadLosses(zero, zero.detach(), zero.detach())

    def _layer_losses(
        self, outputs: Outputs, teacher: Outputs | None, batch: Batch, weights: Loss
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """The hidden and the relation loss."""
        hidden = relation = torch.zeros((), device=outputs.hidden.device)
        layers = self._layers
        if layers is None or teacher is None:
            return hidden, relation
        naive = self._head.kind == "naive"
        counted = _unmasked(batch) if weights.layer_positions == "unmasked" else None
        if layers.pairs:
            of_pair = losses.hidden_loss if naive else layer_losses.hidden_loss
            flat = None if counted is None else counted.view(-1)
            pairs = zip(outputs.layers, teacher.layers, strict=True)
            hidden = torch.stack([of_pair(ours, theirs, flat) for ours, theirs in pairs]).mean()
        if layers.relations:
            parts = (outputs.products, teacher.products, layers.relations, layers.heads, counted)
            if naive:
                relation = losses.relation_loss(*parts)
            else:
                relation = layer_losses.relation_loss(*parts, self._head.compiled)
        return hidden, relation

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


def _unmasked(batch: Batch) -> Bool[Tensor, "rows length"]:
    """The tokens without a masked-word label."""
    counted = torch.ones(batch.input_ids.numel(), dtype=torch.bool, device=batch.input_ids.device)
    counted[batch.positions[: len(batch.labels)]] = False
    return counted.view_as(batch.input_ids)
