"""Ends training when the loss of held-out training examples stops falling, and restores the best epoch.

It does not use the development set: a score on examples that selected the model would be too high.
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
    """How many examples are held out, and how long to wait for a lower loss."""

    patience: PositiveInt = 1
    """Epochs without a lower loss after which training ends."""
    held_out: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    """Share of the training examples that is held out, the same examples for every seed."""


def divide(units: Rows, share: float) -> tuple[Rows, Rows]:
    """Training rows and held-out rows; rows with the same number in ``units`` ``[rows]`` stay together.

    Raises:
        ModelError: there is only one unit.
    """
    order = np.random.default_rng(0).permutation(int(units.max()) + 1)
    if len(order) < 2:
        raise ModelError("early_stopping needs at least two training examples: leave it out")
    count = min(max(1, round(share * len(order))), len(order) - 1)
    held = np.isin(units, order[:count])
    return np.flatnonzero(~held), np.flatnonzero(held)


@dataclass
class EpochWatch:
    """Measures the held-out loss after each epoch, and keeps the weights of the best one."""

    trainer: Trainer
    held: Rows
    patience: int
    losses: list[float] = field(default_factory=list)
    """Mean loss of the held-out rows after each epoch."""
    best: dict[str, Tensor] = field(default_factory=dict)

    def should_stop(self) -> bool:
        """Call after each epoch; true after ``patience`` epochs without a lower loss."""
        self.losses.append(self._loss())
        if self.losses[-1] == min(self.losses):
            self.best = {name: each.to("cpu", copy=True) for name, each in self.trainer.model.state_dict().items()}
        return len(self.losses) - self.best_epoch >= self.patience

    def restore(self) -> None:
        """Load the weights of the best epoch."""
        self.trainer.model.load_state_dict(self.best)

    @property
    def best_epoch(self) -> int:
        """Counted from 1; the last of equals."""
        return max(epoch for epoch, loss in enumerate(self.losses, start=1) if loss == min(self.losses))

    @torch.inference_mode()
    def _loss(self) -> float:
        trainer = self.trainer
        parts = outputs(
            trainer.model, trainer.forward, trainer.features.rows(self.held), trainer.micro_batch, "held out"
        )
        mean = float(sum(trainer.loss(logits, self.held[rows]) for rows, logits in parts)) / len(self.held)
        # Without this check, no epoch would be the best. A short epoch may end before the trainer checks its loss.
        if not math.isfinite(mean):
            raise ModelError(f"the held-out loss is {mean} after epoch {len(self.losses) + 1}: lower learning_rate")
        return mean
