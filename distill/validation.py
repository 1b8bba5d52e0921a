"""Held-out validation: the loss terms, masked-word accuracy and agreement with the teacher.

The rows and their masks are the same at every validation and on every layout of workers.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cluster.rows import Rows
from distill.batches import VALIDATION_EPOCH, Batch, Masker
from distill.distillation import Training
from distill.engine import Engine, Workers
from distill.losses import cosine_loss, masked_word_loss, soft_target_loss
from distill.masked_lm import Outputs

NAMES = ("soft", "masked", "cosine", "accuracy", "agreement", "teacher_masked", "teacher_accuracy")
_OF_TEACHER = ("soft", "cosine", "agreement", "teacher_masked", "teacher_accuracy")


class Validation:
    """Measures a model on held-out rows; every worker takes its share."""

    def __init__(
        self, rows: Rows, masker: Masker, training: Training, teacher: nn.Module | None, workers: Workers
    ) -> None:
        self._rows, self._masker, self._teacher = rows, masker, teacher
        self._training, self._workers = training, workers
        self._micro_rows = training.placement.rows_per_device
        self._count = min(training.validation_rows, len(rows))

    @torch.no_grad()
    def measure(self, engine: Engine) -> dict[str, float | None]:
        """Means over rows: ``total``, the loss terms, ``accuracy`` and ``agreement`` at the hidden words.

        What needs a teacher is None without one. ``teacher_masked`` and ``teacher_accuracy`` are the teacher's own.
        """
        sums = torch.zeros(len(NAMES), dtype=torch.float64, device=self._workers.device)
        for batch, weight in self._shares():
            taught: Outputs | None = None if self._teacher is None else self._teacher(batch.input_ids, None)
            sums += weight * self._measured(engine(batch.input_ids, None), taught, batch)
        torch.distributed.all_reduce(sums)
        values: dict[str, float | None] = dict(zip(NAMES, (sums / self._count).tolist(), strict=True))
        if self._teacher is None:
            values |= dict.fromkeys(_OF_TEACHER)
        weights = self._training.loss
        total = sum(getattr(weights, term) * (values[term] or 0.0) for term in ("soft", "masked", "cosine"))
        return {"total": total, **values}

    def _shares(self) -> Iterator[tuple[Batch, int]]:
        """This worker's batches and the rows they count for.

        Workers with fewer batches repeat one for nothing: under ZeRO-3 all must run forward equally often.
        """
        starts = list(range(0, self._count, self._micro_rows))
        turns = -(-len(starts) // self._workers.world_size)
        for turn in range(turns):
            place = turn * self._workers.world_size + self._workers.rank
            start = starts[min(place, len(starts) - 1)]
            rows = np.arange(start, min(start + self._micro_rows, self._count), dtype=np.int64)
            batch = self._masker.mask(self._rows.take(rows), rows, np.full_like(rows, VALIDATION_EPOCH))
            yield batch.to(self._workers.device), len(rows) if place < len(starts) else 0

    def _measured(self, outputs: Outputs, taught: Outputs | None, batch: Batch) -> Tensor:
        logits = outputs.logits[batch.positions]
        words = logits.argmax(dim=-1)
        found: dict[str, Any] = dict.fromkeys(NAMES, torch.zeros((), device=self._workers.device))
        found["masked"] = masked_word_loss(logits, batch.labels)
        found["accuracy"] = (words == batch.labels).float().mean()
        if taught is not None:
            wanted = taught.logits[batch.positions]
            found["soft"] = self._soft(outputs, taught, batch)
            found["cosine"] = cosine_loss(outputs.hidden, taught.hidden)
            found["agreement"] = (words == wanted.argmax(dim=-1)).float().mean()
            found["teacher_masked"] = masked_word_loss(wanted, batch.labels)
            found["teacher_accuracy"] = (wanted.argmax(dim=-1) == batch.labels).float().mean()
        return torch.stack([found[name].double() for name in NAMES])

    def _soft(self, outputs: Outputs, taught: Outputs, batch: Batch) -> Tensor:
        loss = self._training.loss
        if loss.soft_positions == "all":
            return soft_target_loss(outputs.logits, taught.logits, loss.temperature)
        return soft_target_loss(outputs.logits[batch.positions], taught.logits[batch.positions], loss.temperature)
