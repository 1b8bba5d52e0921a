"""Losses between layers, in bounded memory: the relative error of hidden states, and relations between tokens.

Relations are as many numbers as attention scores, rows x heads x length x length, for student and teacher. They exist
for a block at a time; the forward pass computes loss and gradient of a block, as the fused head does, and keeps the
gradient undivided for fp16. ``A`` and ``B`` are the same product, or queries and keys. With ``R = A B' / sqrt(d)`` of
the student, ``R'`` of the teacher, and softmax over a row of them::

    dL/dR = softmax(R) - softmax(R')      dL/dA = dL/dR B / sqrt(d)      dL/dB = (dL/dR)' A / sqrt(d)
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

# Relations of a block: on a CPU those that fit into the cache of a core.
_CACHED_RELATIONS = 2**17
_GPU_RELATIONS = 2**26
_SMALLEST_NORM = 1e-12


def hidden_loss(
    student: Float[Tensor, "tokens hidden"],
    teacher: Float[Tensor, "tokens hidden"],
    counted: Bool[Tensor, " tokens"] | None,
) -> Float[Tensor, ""]:
    """Squared distance to the teacher's hidden state over its squared norm, mean over the ``counted`` tokens (or all).

    Relative, so that layers count alike, whatever their scale. After TinyBERT (Jiao et al. 2019, equation 8).
    """
    found: Tensor = _Hidden.apply(student, teacher, counted)  # type: ignore[no-untyped-call]
    return found


def relation_loss(
    student: Mapping[str, Float[Tensor, "rows length hidden"]],
    teacher: Mapping[str, Float[Tensor, "rows length teacher_hidden"]],
    relations: tuple[tuple[str, str], ...],
    heads: int,
    counted: Bool[Tensor, "rows length"] | None,
    compiled: bool = False,
) -> Float[Tensor, ""]:
    """KL divergence from the teacher's relations to the student's, mean over relations, heads and ``counted`` tokens.

    A relation of a token to the tokens of its row is the softmax of scaled products (MiniLMv2, Wang et al. 2020,
    arXiv 2012.15828, section 3.1). Both models' products are cut into ``heads``, so widths and attention heads may
    differ.
    """
    total = next(iter(student.values())).new_zeros((), dtype=torch.float32)
    for left, right in relations:
        task = _Relations(heads, left == right, compiled)
        parts = (student[left], student[right], teacher[left], teacher[right])
        total = total + _Relation.apply(task, *parts, counted)  # type: ignore[no-untyped-call]
    return total / len(relations)


class _Hidden(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, counted: Tensor | None) -> Tensor:
        wanted = teacher.float()
        scale = wanted.square().sum(dim=-1, keepdim=True).clamp(min=_SMALLEST_NORM).reciprocal()
        tokens = torch.tensor(float(len(student)), device=student.device)
        if counted is not None:
            scale, tokens = scale * counted.unsqueeze(-1), counted.sum()
        distance = student.float() - wanted
        loss: Tensor = (distance.square() * scale).sum() / tokens
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(distance.mul_(2 * scale).to(student.dtype), tokens)
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        gradient, tokens = ctx.saved_tensors
        return gradient * (upstream / tokens), None, None


@dataclass(frozen=True)
class _Relations:
    heads: int
    same: bool
    """Whether a relation is of one product to itself."""
    compiled: bool


class _Relation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        task: _Relations,
        left: Tensor,
        right: Tensor,
        wanted_left: Tensor,
        wanted_right: Tensor,
        counted: Tensor | None,
    ) -> Tensor:
        rows, length, _ = left.shape
        learns = any(ctx.needs_input_grad)
        ours = [_by_head(part, task.heads) for part in (left, right)]
        theirs = [_by_head(part, task.heads) for part in (wanted_left, wanted_right)]
        gradients = [torch.empty_like(part) for part in ours[: 1 if task.same else 2]] if learns else []
        scales = ours[0].shape[-1] ** -0.5, theirs[0].shape[-1] ** -0.5
        whole = left.new_zeros((), dtype=torch.float64)
        compute = _compiled() if task.compiled and learns else _divergence_and_gradient
        for block in _blocks(rows * task.heads, length, left.device.type):
            weights = None if counted is None else _of_block(counted, block, task.heads)
            a, b = (part[block] for part in ours)
            c, d = (part[block] for part in theirs)
            found = compute(_products(a, b, scales[0]), _products(c, d, scales[1]), weights)
            whole = whole + found.divergence
            if not learns:
                continue
            of_products = found.gradient.to(a.dtype)
            towards_a = torch.bmm(of_products, b)
            towards_b = torch.bmm(of_products.transpose(1, 2), a)
            if task.same:
                torch.add(towards_a, towards_b, out=gradients[0][block])
            else:
                gradients[0][block], gradients[1][block] = towards_a, towards_b
        tokens = torch.tensor(float(rows * length), device=left.device) if counted is None else counted.sum()
        if learns:
            ctx.scale, ctx.heads, ctx.shape = scales[0], task.heads, left.shape
            ctx.save_for_backward(tokens, *gradients)
        return (whole / (tokens * task.heads)).float()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        tokens, *gradients = ctx.saved_tensors
        factor = upstream * ctx.scale / (tokens * ctx.heads)
        rows, length, hidden = ctx.shape
        found = [
            (part * factor).view(rows, ctx.heads, length, -1).transpose(1, 2).reshape(rows, length, hidden)
            for part in gradients
        ]
        return (None, found[0], found[1] if len(found) > 1 else None, None, None, None)


class _Divergence(NamedTuple):
    divergence: Tensor
    gradient: Tensor


def _by_head(product: Tensor, heads: int) -> Tensor:
    """``[rows * heads, length, width of a head]``."""
    rows, length, hidden = product.shape
    return product.view(rows, length, heads, hidden // heads).transpose(1, 2).reshape(rows * heads, length, -1)


def _products(left: Tensor, right: Tensor, scale: float) -> Tensor:
    return torch.bmm(left, right.transpose(1, 2)).float().mul_(scale)


def _blocks(pairs: int, length: int, device: str) -> Iterator[slice]:
    """Blocks of pairs of row and head."""
    size = max(1, (_CACHED_RELATIONS if device == "cpu" else _GPU_RELATIONS) // length**2)
    for start in range(0, pairs, size):
        yield slice(start, min(start + size, pairs))


def _of_block(counted: Tensor, block: slice, heads: int) -> Tensor:
    """The counted tokens of each pair of row and head: ``[pairs, length]``."""
    rows = torch.arange(block.start, block.stop, device=counted.device) // heads
    return counted[rows]


def _divergence_and_gradient(ours: Tensor, theirs: Tensor, counted: Tensor | None) -> _Divergence:
    """Sum of the divergences of a block, and their gradient with respect to the student's scaled products."""
    predicted = torch.log_softmax(ours, dim=-1)
    wanted = torch.log_softmax(theirs, dim=-1)
    chance = wanted.exp()
    of_tokens = (chance * wanted.sub_(predicted)).sum(dim=-1)
    gradient = predicted.exp_().sub_(chance)
    if counted is not None:
        of_tokens, gradient = of_tokens * counted, gradient.mul_(counted.unsqueeze(-1))
    return _Divergence(of_tokens.sum(), gradient)


@functools.cache
def _compiled() -> Callable[..., _Divergence]:
    return torch.compile(_divergence_and_gradient, dynamic=False)
