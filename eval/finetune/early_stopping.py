"""Ends training when held-out training examples no longer gain by it, and goes back to the best epoch.

The dev set is not looked at: a score on examples that chose the model would be too good.
"""

import math
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from cluster.artifacts.recipe import Recipe
from eval.finetune.batching import Rows
from eval.finetune.task_model import ModelError
from eval.finetune.trainer import Trainer, outputs


class EarlyStopping(Recipe):
    """What is held out, and how long to wait."""

    patience: PositiveInt = 1
    """Epochs in a row without a lower loss after which training ends."""
    held_out: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    """Share of the training examples, the same ones for every seed."""


def divide(units: Rows, share: float) -> tuple[Rows, Rows]:
    """Rows to train on and rows held out, of ``units`` ``[rows]``: rows of one unit (a question) stay together.

    Raises:
        ModelError: there is one unit only.
    """
    order = np.random.default_rng(0).permutation(int(units.max()) + 1)
    if len(order) < 2:
        raise ModelError("early_stopping holds examples out, and there is one only: leave it out")
    count = min(max(1, round(share * len(order))), len(order) - 1)
    held = np.isin(units, order[:count])
    return np.flatnonzero(~held), np.flatnonzero(held)


@dataclass
class EpochWatch:
    """Asked after each epoch whether it is time to end; :meth:`restore` then gives back the best epoch's model."""

    trainer: Trainer
    held: Rows
    patience: int
    losses: list[float] = field(default_factory=list)
    """Mean loss of the held-out rows after each epoch."""
    best: dict[str, Tensor] = field(default_factory=dict)

    def ended(self) -> bool:
        self.losses.append(self._loss())
        if self.losses[-1] == min(self.losses):
            self.best = {name: each.to("cpu", copy=True) for name, each in self.trainer.model.state_dict().items()}
        return len(self.losses) - self.best_epoch >= self.patience

    def restore(self) -> None:
        self.trainer.model.load_state_dict(self.best)

    @property
    def best_epoch(self) -> int:
        """Counted from 1; the last of equals, whose weights are the ones kept."""
        return max(epoch for epoch, loss in enumerate(self.losses, start=1) if loss == min(self.losses))

    @torch.inference_mode()
    def _loss(self) -> float:
        trainer = self.trainer
        parts = outputs(
            trainer.model, trainer.forward, trainer.features.rows(self.held), trainer.micro_batch, "held out"
        )
        mean = float(sum(trainer.loss(logits, self.held[rows]) for rows, logits in parts)) / len(self.held)
        # No epoch could be the best one, and an epoch of few steps is not looked at in between.
        if not math.isfinite(mean):
            raise ModelError(f"the held-out loss is {mean} after epoch {len(self.losses) + 1}: lower learning_rate")
        return mean
