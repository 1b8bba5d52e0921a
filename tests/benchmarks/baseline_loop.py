"""The usual distillation loop as a baseline: the same losses without our optimizations.

It follows the loop published with DistilBERT (huggingface/transformers-research-projects, ``distillation/``:
``distiller.py``, ``grouped_batch_sampler.py``), with autocast where that used apex:

* documents padded to the longest of a batch of like lengths, an attention mask;
* full logits of both models at every position and all hidden states, copied by ``masked_select``;
* naive losses, each read with ``.item()`` in every micro-step;
* dropout in the student; the teacher in fp32 weights as the student, under the same autocast;
* with several workers, gradients reduced in every micro-step.
"""

import math
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from random_documents import Padded
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from cluster.models.precision import Precision
from distill.config import Training

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
IGNORED = -100


@dataclass(frozen=True)
class Words:
    """Properties of a vocabulary that masking needs."""

    counts: Tensor
    """Occurrences, ``[vocab_size]``."""
    special_ids: tuple[int, ...]
    mask_id: int


@dataclass(frozen=True)
class Masked:
    """A batch ready for the models, ``[rows, longest]`` each."""

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    """``-100`` where no word is masked."""


@dataclass(frozen=True)
class Found:
    """Losses of a batch, with their gradient."""

    total: Tensor
    soft: Tensor
    masked: Tensor
    cosine: Tensor


class UsualLoop:
    """A student in training from a teacher; ``step`` is one optimizer step."""

    def __init__(self, teacher: Any, student: Any, words: Words, training: Training, device: torch.device) -> None:
        self._training, self._words, self._device = training, words, device
        self.teacher = teacher.to(device).eval()
        self.student = student.to(device).train()
        distributed = torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1
        self._learner = DistributedDataParallel(self.student) if distributed else self.student
        chances = words.counts.clamp(min=1).double() ** -training.masking.smoothing
        chances[list(words.special_ids)] = 0.0
        self._chances = chances.to(device)
        self._soft = nn.KLDivLoss(reduction="batchmean")
        self._masked = nn.CrossEntropyLoss(ignore_index=IGNORED)
        self._cosine = nn.CosineEmbeddingLoss(reduction="mean")
        self._optimizer = _adamw(self.student, training)
        self._scaler = torch.amp.GradScaler(device.type, enabled=training.precision == "fp16")
        self.last: tuple[float, float, float, float] | None = None
        """Losses of the last micro-step: total, soft, masked, cosine."""

    def step(self, batches: Iterable[Padded], accumulation: int, learning_rate: float) -> None:
        """``accumulation`` micro-steps, then the weights move."""
        for batch in batches:
            found = self.losses(self.mask(batch))
            self.last = (found.total.item(), found.soft.item(), found.masked.item(), found.cosine.item())
            if math.isnan(self.last[0]):
                raise FloatingPointError("NaN detected")
            torch.autograd.backward(self._scaler.scale(found.total / accumulation))
        self._scaler.unscale_(self._optimizer)
        nn.utils.clip_grad_norm_(self.student.parameters(), self._training.optimizer.clip)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad()

    def mask(self, batch: Padded) -> Masked:
        """Hide 15 % of a batch's words (``prepare_batch_mlm``)."""
        ids, lengths = batch.input_ids.to(self._device), batch.lengths.to(self._device)
        attention = torch.arange(ids.shape[1], device=self._device) < lengths[:, None]
        chances = self._chances[ids.flatten()]
        count = math.ceil(self._training.masking.share * lengths.sum().item())
        chosen = torch.multinomial(chances / chances.sum(), count, replacement=False)
        hidden = torch.zeros(ids.numel(), dtype=torch.bool, device=self._device)
        hidden[chosen] = True
        hidden = hidden.view_as(ids) & attention
        real = ids[hidden]
        draw = torch.rand(len(real), device=self._device)
        shares = self._training.masking
        drawn = torch.randint_like(real, len(self._chances))
        shown = torch.where(draw < shares.mask + shares.random, drawn, real)
        shown = torch.where(draw < shares.mask, torch.full_like(real, self._words.mask_id), shown)
        labels = ids.masked_fill(~hidden, IGNORED)
        return Masked(ids.masked_scatter(hidden, shown), attention, labels)

    def losses(self, batch: Masked) -> Found:
        """The triple loss, from the logits of all positions."""
        weights, temperature = self._training.loss, self._training.loss.temperature
        given = {
            "input_ids": batch.input_ids,
            "attention_mask": batch.attention_mask,
            "output_hidden_states": True,
        }
        with self._autocast():
            learned = self._learner(**given)
            with torch.no_grad():
                taught = self.teacher(**given)
            s_logits, t_logits = _selected(learned.logits, batch), _selected(taught.logits, batch)
            predicted = functional.log_softmax(s_logits / temperature, dim=-1)
            soft = self._soft(predicted, functional.softmax(t_logits / temperature, dim=-1)) * temperature**2
            masked = self._masked(learned.logits.view(-1, learned.logits.shape[-1]), batch.labels.view(-1))
            s_hidden = _selected(learned.hidden_states[-1], batch)
            t_hidden = _selected(taught.hidden_states[-1], batch)
            cosine = self._cosine(s_hidden, t_hidden, s_hidden.new_ones(len(s_hidden)))
            total = weights.soft * soft + weights.masked * masked + weights.cosine * cosine
        return Found(total, soft, masked, cosine)

    def _autocast(self) -> AbstractContextManager[Any]:
        precision: Precision = self._training.precision
        if precision == "fp32":
            return nullcontext()
        return torch.autocast(self._device.type, dtype=HALF[precision])


def _selected(values: Tensor, batch: Masked) -> Tensor:
    """Values at all positions that are not padding, ``[tokens, size]``: a copy, with a mask as large as the values."""
    mask = batch.attention_mask.unsqueeze(-1).expand_as(values)
    return torch.masked_select(values, mask).view(-1, values.shape[-1])


def _adamw(student: Any, training: Training) -> torch.optim.AdamW:
    free = ("bias", "LayerNorm.weight", "layer_norm.weight")
    groups: list[dict[str, Any]] = [
        {"params": [p for n, p in student.named_parameters() if not n.endswith(free)]},
        {"params": [p for n, p in student.named_parameters() if n.endswith(free)], "weight_decay": 0.0},
    ]
    chosen = training.optimizer
    return torch.optim.AdamW(
        groups,
        lr=chosen.learning_rate,
        betas=(chosen.beta1, chosen.beta2),
        eps=chosen.epsilon,
        weight_decay=chosen.weight_decay,
    )
