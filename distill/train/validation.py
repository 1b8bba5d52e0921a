"""Validation on held-out rows: loss terms, masked-word accuracy and agreement with the teacher.

Rows and masks are the same at every validation and for every number of workers.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cluster.tokens.rows import TokenSet
from distill.config import Loss, Training
from distill.data.batches import VALIDATION_EPOCH, Batch, Masker
from distill.engine.deepspeed_engine import Engine
from distill.engine.process_group import Workers
from distill.engine.teacher_engine import TeacherEngine
from distill.modeling import fused_head
from distill.modeling.masked_lm import Outputs
from distill.train.student_objective import ObjectiveOutput

NAMES = ("soft", "masked", "cosine", "accuracy", "agreement", "teacher_masked", "teacher_accuracy")
_OF_TEACHER = ("soft", "cosine", "agreement", "teacher_masked", "teacher_accuracy")
_WORDS_ONLY = Loss(soft=0.0, cosine=0.0)


class Validation:
    """Measures a model on held-out rows, which the workers share."""

    def __init__(self, tokens: TokenSet, training: Training, teacher: TeacherEngine | None, workers: Workers) -> None:
        self._rows, self._teacher = tokens.heldout, teacher
        # Validation measures the soft loss even where its weight in training is 0.
        compared = training.loss.model_copy(update={"soft": 1.0})
        self._masker = Masker(tokens, training.model_copy(update={"loss": compared}))
        self._training, self._workers = training, workers
        self._count = min(training.validation_rows, len(self._rows))

    @torch.no_grad()
    def measure(self, engine: Engine) -> dict[str, float | None]:
        """Means over rows: ``total``, the loss terms, ``accuracy`` and ``agreement`` at the masked words.

        ``teacher_masked`` and ``teacher_accuracy`` measure the teacher. Values that need one are None without it.
        """
        sums = torch.zeros(len(NAMES), dtype=torch.float64, device=self._workers.device)
        with engine.evaluating():
            for batch, weight in self._shares(engine.micro_rows):
                targets = self._teacher(batch) if self._teacher is not None else None
                projection = self._teacher.projection if self._teacher is not None else None
                sums += weight * self._measured(engine(batch, targets, projection), targets, batch)
        torch.distributed.all_reduce(sums)
        values: dict[str, float | None] = dict(zip(NAMES, (sums / self._count).tolist(), strict=True))
        if self._teacher is None:
            values |= dict.fromkeys(_OF_TEACHER)
        weights = self._training.loss
        total = sum(getattr(weights, term) * (values[term] or 0.0) for term in ("soft", "masked", "cosine"))
        return {"total": total, **values}

    def _shares(self, micro_rows: int) -> Iterator[tuple[Batch, int]]:
        """This worker's batches, and the number of rows each counts for.

        A worker with fewer batches repeats one with weight 0: under ZeRO-3 all workers must run forward equally often.
        """
        starts = list(range(0, self._count, micro_rows))
        turns = -(-len(starts) // self._workers.world_size)
        for turn in range(turns):
            number = turn * self._workers.world_size + self._workers.rank
            start = starts[min(number, len(starts) - 1)]
            rows = np.arange(start, min(start + micro_rows, self._count), dtype=np.int64)
            batch = self._masker.mask(self._rows.take(rows), rows, np.full_like(rows, VALIDATION_EPOCH))
            yield batch.to(self._workers.device), len(rows) if number < len(starts) else 0

    def _measured(self, output: ObjectiveOutput, targets: Outputs | None, batch: Batch) -> Tensor:
        words, losses = output.words, output.losses
        assert words is not None
        found: dict[str, Any] = dict.fromkeys(NAMES, torch.zeros((), device=self._workers.device))
        found["masked"] = losses.masked
        found["accuracy"] = (words == batch.labels).float().mean()
        if targets is not None and self._teacher is not None:
            hidden = targets.features[: len(batch.labels)]
            projection, chunk = self._teacher.projection, self._teacher.chunk
            wanted = fused_head.top_words(hidden, projection, chunk)
            found["soft"], found["cosine"] = losses.soft, losses.cosine
            found["agreement"] = (words == wanted).float().mean()
            of_words = fused_head.head_losses(hidden, projection, None, batch.labels, _WORDS_ONLY, chunk)
            found["teacher_masked"] = of_words.masked
            found["teacher_accuracy"] = (wanted == batch.labels).float().mean()
        return torch.stack([found[name].double() for name in NAMES])
