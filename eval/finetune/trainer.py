"""Trains an encoder and its head on any task: AdamW, linear warm-up, linear decay to 0.

As in Devlin et al. 2019, appendix A.3. On a CPU the same seed gives the same weights.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
import transformers
from torch import Tensor, nn

from cluster.models.precision import Precision, dtype_of, parameter_groups
from cluster.telemetry.progress import Progress
from eval.finetune.batching import Features, Inputs, Rows, scoring_batches, training_batches
from eval.finetune.layer_step import LayerTeaching
from eval.finetune.task_model import ModelError
from eval.tasks.definitions import Task
from eval.tasks.examples import TaskSplit

Forward: TypeAlias = Callable[[Any, Inputs], Tensor]
"""``forward(model, inputs)``: logits ``[rows, ...]``."""
Loss: TypeAlias = Callable[[Tensor, Rows], Tensor]
"""``loss(logits, rows)``: sum of the losses of these rows, from fp32 logits."""

# Steps between two reads of the loss, which is then displayed and checked.
LOG_EVERY = 20
SCORING_BATCH = 64
CLIP_NORM = 1.0
# Rows times length squared, the size of the attention scores, that fit a CPU's caches: a 6-layer model read windows of
# SQuAD (160 tokens on average) 1.4 times as fast in parts of 8 as in parts of 32.
CPU_SQUARES = 2**18


@dataclass(frozen=True)
class Settings:
    """How to train, with every default filled in."""

    epochs: int
    learning_rate: float
    batch: int
    max_length: int
    warmup: float
    weight_decay: float
    precision: Precision


class TaskProblem(Protocol):
    """A task encoded for one model: training rows, loss and metrics."""

    @property
    def task(self) -> Task: ...

    @property
    def splits(self) -> Sequence[TaskSplit]:
        """The training split, then the development sets."""

    @property
    def train(self) -> Features: ...

    @property
    def loss(self) -> Loss: ...

    @property
    def layers(self) -> LayerTeaching | None:
        """What trains before the task itself: the layers of a fine-tuned teacher."""

    @property
    def units(self) -> Rows:
        """``[rows]``: training rows with the same number (windows of one question) belong together."""

    def start(self, seed: int) -> Any:
        """The model before training, with a head drawn from the seed."""

    def forward(self, model: Any, inputs: Inputs) -> Tensor:
        """See :data:`Forward`."""

    def measure(self, model: Any, micro_batch: int, folder: Path) -> dict[str, float]:
        """All metrics on the development sets in percent; may write predictions into ``folder``."""

    def majority(self) -> float:
        """Headline score in percent of a constant prediction on the first development set."""


@dataclass(frozen=True)
class Trainer:
    """A model on its device, with its training rows, loss and settings."""

    model: Any
    forward: Forward
    features: Features
    loss: Loss
    settings: Settings
    micro_batch: int
    """Rows per forward pass; apart from dropout, the trained weights do not depend on it."""

    def train(self, rows: Rows, seed: int, title: str, stop: Callable[[], bool] = lambda: False) -> None:
        """Train on these rows in an order given by (seed, epoch); call ``stop`` after each epoch and end where true.

        Raises:
            ModelError: the loss, or a weight after the last step, is not finite.
        """
        settings = self.settings
        steps = settings.epochs * -(-len(rows) // settings.batch)
        groups = parameter_groups(self.model, settings.weight_decay)
        optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, fused=True)
        schedule = transformers.get_linear_schedule_with_warmup(optimizer, round(settings.warmup * steps), steps)
        scaler = torch.amp.GradScaler(self.model.device.type, enabled=settings.precision == "fp16")
        losses: list[Tensor] = []
        with Progress(title, steps, "steps") as progress:
            for step, batch in self._epochs(rows, seed, stop):
                losses.append(self._gradients(batch, scaler))
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(self.model.parameters(), CLIP_NORM)
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
                schedule.step()
                due = step % LOG_EVERY == 0 or step == steps
                progress.advance(note={"loss": f"{_drain(losses, step):.3f}"} if due else None)
        # The loss does not show the last update.
        if not all(bool(each.isfinite().all()) for each in self.model.parameters()):
            raise ModelError('the last update made weights infinite: lower learning_rate, or use precision = "fp32"')

    def row_losses(self, rows: Rows) -> Tensor:
        """Sum of the losses of these rows."""
        with self.autocast():
            logits = self.forward(self.model, self.features.batch(rows))
        return self.loss(logits.float(), rows)

    def autocast(self) -> torch.autocast:
        precision = self.settings.precision
        return torch.autocast(self.model.device.type, dtype_of(precision), precision != "fp32")

    def _epochs(self, rows: Rows, seed: int, stop: Callable[[], bool]) -> Iterator[tuple[int, Rows]]:
        """Number and rows of each step."""
        step = 0
        # On a CPU, the backward pass of the fused kernel is slower in bf16.
        eager = self.model.device.type == "cpu" and self.settings.precision == "bf16"
        for epoch in range(self.settings.epochs):
            self.model.train()
            self.model.set_attn_implementation("eager" if eager else "sdpa")
            for batch in training_batches(self.features.lengths[rows], self.settings.batch, seed, epoch):
                step += 1
                yield step, rows[batch]
            if stop():
                return

    def _gradients(self, rows: Rows, scaler: Any) -> Tensor:
        """Add the gradient of the mean loss over these rows; returns that loss, still on the device."""
        device = self.model.device
        total = torch.zeros((), device=device)
        size = self.micro_batch
        if device.type == "cpu":
            size = min(size, cpu_rows(int(self.features.lengths[rows].max())))
        for first in range(0, len(rows), size):
            part = rows[first : first + size]
            # Divided by the rows of the step, so that each row weighs the same in parts of different sizes.
            loss = self.row_losses(part) / len(rows)
            scaler.scale(loss).backward()
            total += loss.detach()
        return total


@dataclass(frozen=True)
class LayerTrainer(Trainer):
    """Trains on the layers of a fine-tuned teacher."""

    teaching: LayerTeaching

    def row_losses(self, rows: Rows) -> Tensor:
        with self.autocast():
            return self.teaching.loss(self.model, rows, self.features.batch(rows))


@torch.inference_mode()
def outputs(
    model: Any, forward: Forward, features: Features, micro_batch: int, title: str
) -> Iterator[tuple[Rows, Tensor]]:
    """Fp32 logits of all rows, batch by batch, in any training precision: the saved model gives the same.

    A batch has at most twice the micro-batch, because inference keeps no activations.
    """
    model.eval()
    model.set_attn_implementation("sdpa")
    with Progress(title, len(features.lengths), "rows") as progress:
        for rows in scoring_batches(features.lengths, min(SCORING_BATCH, 2 * micro_batch)):
            yield rows, forward(model, features.batch(rows))
            progress.advance(len(rows))


def cpu_rows(longest: int) -> int:
    """Rows of at most ``longest`` tokens per forward pass on a CPU; more are slower."""
    return max(1, CPU_SQUARES // longest**2)


def _drain(losses: list[Tensor], step: int) -> float:
    """Mean of these losses; empties the list."""
    mean = float(torch.stack(losses).mean())
    losses.clear()
    if not np.isfinite(mean):
        raise ModelError(f'the loss is {mean} by step {step}: lower learning_rate, or use precision = "fp32"')
    return mean
