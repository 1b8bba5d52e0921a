"""The loop that trains an encoder and its head, whatever the task: AdamW, linear warm-up, linear decay to 0.

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
from eval.finetune.task_model import ModelError
from eval.tasks.definitions import Task

Forward: TypeAlias = Callable[[Any, Inputs], Tensor]
"""``forward(model, inputs)``: the logits that the task's loss and answers are made of, ``[rows, ...]``."""
Loss: TypeAlias = Callable[[Tensor, Rows], Tensor]
"""``loss(logits, rows)``: the sum over these examples of their losses, from logits in fp32."""

# Every this many steps the loss is read from the device, shown, and checked.
LOG_EVERY = 20
SCORING_BATCH = 64
CLIP_NORM = 1.0
# Examples times length squared, which is what attention keeps: parts that stay in a CPU's caches. Windows of SQuAD (160
# tokens on average) went through a 6-layer model 1.4 times as fast in parts of 8 as in parts of 32.
CPU_SQUARES = 2**18


@dataclass(frozen=True)
class Settings:
    """How to train, with nothing left open."""

    epochs: int
    learning_rate: float
    batch: int
    max_length: int
    warmup: float
    weight_decay: float
    precision: Precision


class Part(Protocol):
    """Training examples, or those of one dev set."""

    @property
    def files(self) -> tuple[str, ...]: ...

    @property
    def is_subset(self) -> bool: ...

    def __len__(self) -> int: ...


class TaskProblem(Protocol):
    """A task encoded for one model: what is trained, and how it is measured."""

    @property
    def task(self) -> Task: ...

    @property
    def parts(self) -> Sequence[Part]:
        """Training examples, then each dev set's."""

    @property
    def train(self) -> Features: ...

    @property
    def loss(self) -> Loss: ...

    @property
    def units(self) -> Rows:
        """``[rows]`` of training: rows with the same number belong together."""

    def start(self, seed: int) -> Any:
        """The model before training, its head drawn from the seed."""

    def forward(self, model: Any, inputs: Inputs) -> Tensor:
        """See :data:`Forward`."""

    def measure(self, model: Any, micro_batch: int, folder: Path) -> dict[str, float]:
        """All metrics on the dev sets, in percent; what it predicted may be written into ``folder``."""

    def majority(self) -> float:
        """Headline score on the first dev set of a model that always says the same, in percent."""


@dataclass(frozen=True)
class Trainer:
    """A model on its device, and what it learns from."""

    model: Any
    forward: Forward
    features: Features
    loss: Loss
    settings: Settings
    micro_batch: int
    """Examples that go through the model at once; what is learned does not depend on it, dropout's draws aside."""

    def train(self, rows: Rows, seed: int, what: str, ended: Callable[[], bool] = lambda: False) -> None:
        """Train on these rows in an order given by (seed, epoch), until ``ended``, asked after each epoch, says so.

        Raises:
            ModelError: the loss, or a weight in the end, is not finite.
        """
        settings = self.settings
        steps = settings.epochs * -(-len(rows) // settings.batch)
        optimizer = torch.optim.AdamW(
            parameter_groups(self.model, settings.weight_decay), lr=settings.learning_rate, fused=True
        )
        schedule = transformers.get_linear_schedule_with_warmup(optimizer, round(settings.warmup * steps), steps)
        scaler = torch.amp.GradScaler(self.model.device.type, enabled=settings.precision == "fp16")
        losses: list[Tensor] = []
        with Progress(what, steps, "steps") as progress:
            for step, chosen in self._epochs(rows, seed, ended):
                losses.append(self._gradients(chosen, scaler))
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(self.model.parameters(), CLIP_NORM)
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
                schedule.step()
                due = step % LOG_EVERY == 0 or step == steps
                progress.advance(note={"loss": f"{_drain(losses, step):.3f}"} if due else None)
        # The last update comes after the last loss.
        if not all(bool(each.isfinite().all()) for each in self.model.parameters()):
            raise ModelError('the last update made weights infinite: lower learning_rate, or use precision = "fp32"')

    def _epochs(self, rows: Rows, seed: int, ended: Callable[[], bool]) -> Iterator[tuple[int, Rows]]:
        """Number and rows of every step."""
        step = 0
        for epoch in range(self.settings.epochs):
            self.model.train()
            self.model.set_attn_implementation(_attention(self.model.device, self.settings.precision))
            for chosen in training_batches(self.features.lengths[rows], self.settings.batch, seed, epoch):
                step += 1
                yield step, rows[chosen]
            if ended():
                return

    def _gradients(self, rows: Rows, scaler: Any) -> Tensor:
        """Add the gradient of the mean loss over these examples; returns that loss, which stays on the device."""
        device = self.model.device
        total = torch.zeros((), device=device)
        size = self._part_size(rows)
        for first in range(0, len(rows), size):
            part = rows[first : first + size]
            with torch.autocast(device.type, dtype_of(self.settings.precision), self.settings.precision != "fp32"):
                logits = self.forward(self.model, self.features.batch(part))
            # Sums over the examples of the step, so that parts of different sizes count by their examples.
            loss = self.loss(logits.float(), part) / len(rows)
            scaler.scale(loss).backward()
            total += loss.detach()
        return total

    def _part_size(self, rows: Rows) -> int:
        """Examples of this batch that go through the model at once."""
        if self.model.device.type != "cpu":
            return self.micro_batch
        longest = int(self.features.lengths[rows].max())
        return min(self.micro_batch, on_cpu(longest))


@torch.inference_mode()
def outputs(
    model: Any, forward: Forward, features: Features, micro_batch: int, what: str
) -> Iterator[tuple[Rows, Tensor]]:
    """Logits in fp32 of all rows, batch by batch, whatever was trained in: what anybody gets who loads the saved model.

    Without gradients more fits than in training: twice the micro-batch, at most.
    """
    model.eval()
    model.set_attn_implementation("sdpa")
    with Progress(what, len(features.lengths), "rows") as progress:
        for rows in scoring_batches(features.lengths, min(SCORING_BATCH, 2 * micro_batch)):
            yield rows, forward(model, features.batch(rows))
            progress.advance(len(rows))


def on_cpu(longest: int) -> int:
    """Examples of at most so many tokens that go through a model on a CPU at once, whatever there is memory for."""
    return max(1, CPU_SQUARES // longest**2)


def _attention(device: torch.device, precision: Precision) -> str:
    """On a CPU the fused kernel's backward pass in bf16 takes longer than all the rest of attention written out."""
    return "eager" if device.type == "cpu" and precision == "bf16" else "sdpa"


def _drain(losses: list[Tensor], step: int) -> float:
    """Mean of the losses since the last time, which are forgotten."""
    mean = float(torch.stack(losses).mean())
    losses.clear()
    if not np.isfinite(mean):
        raise ModelError(f'the loss is {mean} by step {step}: lower learning_rate, or use precision = "fp32"')
    return mean
