"""The first half of a second step: the student learns the layers of the fine-tuned teacher on the task's inputs.

TinyBERT's task-specific distillation (Jiao et al. 2019, arXiv 1909.10351, section 3.4), which its ablation puts above
everything else (table 2). Labels and logits come after it. The teacher reads every batch again, because the hidden
states of all examples would not fit into memory.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from torch import Tensor

from cluster.artifacts.errors import StageError
from cluster.artifacts.recipe import Recipe
from cluster.models import encoder_parts
from eval.finetune.batching import Features, Inputs, Rows


class LayerStep(Recipe):
    """Training on hidden states and relations before the training on logits."""

    epochs: PositiveInt = 10
    """Passes over the training examples."""
    learning_rate: PositiveFloat = 5e-5
    """Highest learning rate, after the warm-up."""
    hidden: NonNegativeFloat = 1.0
    """Weight of the relative error of hidden states, mean over tokens and pairs of layers."""
    relation: NonNegativeFloat = 1.0
    """Weight of the KL divergence between relations of queries, of keys and of values, in nats a token."""
    hidden_layers: Literal["uniform"] | tuple[tuple[NonNegativeInt, NonNegativeInt], ...] = "uniform"
    """Pairs ``[student, teacher]`` of layers, counted from 0; ``uniform`` spreads the student's over the teacher's."""

    @model_validator(mode="after")
    def _some_loss(self) -> "LayerStep":
        if self.hidden + self.relation == 0:
            raise ValueError("every weight is 0: give hidden or relation a weight, or leave the table out")
        if not self.hidden_layers:
            raise ValueError('hidden_layers is empty: write "uniform" or some pairs')
        return self


@dataclass(frozen=True)
class LayerTeaching:
    """The loss between the layers of a student and of its fine-tuned teacher, for rows of the training split."""

    step: LayerStep
    teacher: Any
    """The fine-tuned model, in evaluation mode."""
    features: Features
    """The training rows as the teacher reads them."""

    def loss(self, model: Any, rows: Rows, inputs: Inputs) -> Tensor:
        """Sum over the rows of the mean losses of their tokens."""
        _, real = self.features.places(rows)
        with torch.no_grad():
            theirs = self.teacher.base_model(**self.features.batch(rows), output_hidden_states=True).hidden_states
        ours = model.base_model(**inputs, output_hidden_states=True).hidden_states
        share = real / real.sum(dim=1, keepdim=True)
        total = torch.zeros((), device=real.device)
        if self.step.hidden:
            pairs = self._pairs(len(ours) - 1, len(theirs) - 1)
            errors = [_relative_errors(ours[mine + 1], theirs[other + 1]) for mine, other in pairs]
            total = total + self.step.hidden * (torch.stack(errors).mean(dim=0) * share).sum()
        if self.step.relation:
            total = total + self.step.relation * (self._divergences(model, ours[-2], theirs[-2], real) * share).sum()
        return total

    def _pairs(self, ours: int, theirs: int) -> tuple[tuple[int, int], ...]:
        given = self.step.hidden_layers
        return encoder_parts.uniform_pairs(ours, theirs) if given == "uniform" else given

    def _divergences(self, model: Any, ours: Tensor, theirs: Tensor, real: Tensor) -> Tensor:
        """Divergences from the teacher's relations of the last layer to the student's: ``[rows, longest]``."""
        heads = self.teacher.config.num_attention_heads
        last = (encoder_parts.layers(each.base_model)[-1] for each in (model, self.teacher))
        student, teacher = map(encoder_parts.products, last)
        found = []
        for name in encoder_parts.PRODUCTS:
            predicted = _relations(student[name](ours), heads, real)
            with torch.no_grad():
                wanted = _relations(teacher[name](theirs), heads, real)
            # Padding has probability 0 on both sides.
            terms = wanted.exp() * (wanted - predicted).masked_fill(~real[:, None, None], 0.0)
            found.append(terms.sum(dim=-1).mean(dim=1))
        return torch.stack(found).mean(dim=0)


def _relative_errors(ours: Tensor, theirs: Tensor) -> Tensor:
    """Squared distances over the squared norms of the teacher's states: ``[rows, longest]``."""
    wanted = theirs.float()
    return (ours.float() - wanted).square().sum(dim=-1) / wanted.square().sum(dim=-1).clamp(min=1e-12)


def _relations(product: Tensor, heads: int, real: Tensor) -> Tensor:
    """Log-probabilities of the relations of every token to the others: ``[rows, heads, longest, longest]``."""
    rows, longest, width = product.shape
    cut = product.float().view(rows, longest, heads, width // heads).transpose(1, 2)
    scores = cut @ cut.transpose(2, 3) * (width // heads) ** -0.5
    found: Tensor = scores.masked_fill(~real[:, None, None], torch.finfo(scores.dtype).min).log_softmax(dim=-1)
    return found


def check(step: LayerStep, student: Any, teacher: Any, ours: Features, theirs: Features) -> None:
    """Check that student and teacher have the layers and widths of ``step`` and read the same tokens.

    ``student`` and ``teacher`` are configurations.

    Raises:
        StageError: they do not.
    """
    if not torch.equal(ours.ids, theirs.ids):
        raise StageError(
            "second_step.layers compares student and teacher token by token, and they read the examples as other "
            "tokens: leave second_step.layers out, or take models of one vocabulary and max_length"
        )
    widths = student.hidden_size, teacher.hidden_size
    if step.hidden and widths[0] != widths[1]:
        raise StageError(
            f"second_step.layers.hidden compares hidden states of one width, and the student has {widths[0]}, the "
            f"teacher {widths[1]}: write hidden = 0.0, which leaves the relations"
        )
    heads = teacher.num_attention_heads
    if step.relation and widths[0] % heads:
        raise StageError(
            f"the student's width of {widths[0]} does not divide by the teacher's {heads} heads: write "
            "second_step.layers.relation = 0.0"
        )
    if step.hidden_layers != "uniform":
        for pair in step.hidden_layers:
            for who, layer, layers in zip(
                ("student", "teacher"), pair, (student.num_hidden_layers, teacher.num_hidden_layers), strict=True
            ):
                if layer >= layers:
                    raise StageError(
                        f"second_step.layers.hidden_layers has the pair {list(pair)}, and the {who}'s layers are 0 to "
                        f'{layers - 1}: write [student, teacher] pairs, or "uniform"'
                    )
