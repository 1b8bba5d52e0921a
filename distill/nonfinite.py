"""Where a loss that is not a number came from: the terms and the rows of one step, over all workers."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from distill.batches import I64
from distill.losses import TERMS

RowsOf: TypeAlias = Callable[[], tuple[I64, I64]]
"""Numbers of the training rows of a micro-batch and their epochs, worked out only when they are asked for."""

_SHOWN = 8


def where(losses: Float[Tensor, "micros terms"], rows: Sequence[RowsOf]) -> str | None:
    """``cosine, at training rows 3, 17``: what was not finite in a step, given its micro-batches here.

    None when all its losses were finite. Collective.
    """
    bad = ~losses.isfinite()
    terms = [term for term, hit in zip(TERMS, bad.any(dim=0).tolist(), strict=True) if hit]
    numbers = [int(row) for hit, found in zip(bad.any(dim=1).tolist(), rows, strict=True) if hit for row in found()[0]]
    everywhere: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everywhere, (terms, numbers))
    hit = {term for found, _ in everywhere for term in found}
    if not hit:
        return None
    # The total is not finite because a term is; alone it says that a weighted sum overflowed.
    named = [term for term in TERMS[1:] if term in hit] or ["total"]
    return f"{', '.join(named)}, at training rows {_listed(sorted({row for _, found in everywhere for row in found}))}"


def _listed(rows: list[int]) -> str:
    shown = ", ".join(map(str, rows[:_SHOWN]))
    return shown if len(rows) <= _SHOWN else f"{shown} and {len(rows) - _SHOWN:,} more"
