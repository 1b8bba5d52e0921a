"""The model in the form that compilers for phones take: one row, its attention mask made in plain arithmetic."""

import copy

import torch
from torch import Tensor, nn

from deploy.original import Original, Positional

NEVER = -1e9
"""Added to a score of attention that must not count; finite, and large enough in any precision these compilers keep."""


class OneRow(Positional):
    """A copy of a model for one row ``[1, length]`` at a time.

    It makes the four-dimensional attention mask itself, because the library's own way to one cannot be traced.
    """

    def __init__(self, original: Original) -> None:
        super().__init__(original)
        self.model = copy.deepcopy(original.model)
        for layer in self.model.modules():
            if isinstance(layer, nn.Embedding):
                # Of use in training only, and no kernel of a phone has it.
                layer.padding_idx = None
            if isinstance(layer, nn.Linear):
                # Unties a masked-word head from the embeddings, which are rounded in another way.
                layer.weight = nn.Parameter(layer.weight.detach().clone(), requires_grad=False)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        length = input_ids.shape[1]
        seen = attention_mask[:, None, None, :].bool().expand(1, 1, length, length)
        types = None if token_type_ids is None else token_type_ids.long()
        return super().forward(input_ids.long(), torch.where(seen, 0.0, NEVER), types)


def shown(original: Original, length: int, kind: torch.dtype) -> dict[str, Tensor]:
    """Inputs to trace with, of their own memory each: a tensor shown twice would be traced as one input."""
    return {name: torch.ones((1, length), dtype=kind) for name in original.inputs}
