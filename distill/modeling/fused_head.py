"""Vocabulary projection and losses in one, a few positions at a time.

The logits of a batch are its largest tensors by far: positions x vocabulary, for student and teacher, with fp32 copies
and gradients, some 700 KB a token. Here a chunk of positions goes from features to logits, losses and gradients, and
is forgotten. The gradient has a closed form, so the backward pass computes no logits again (``s``, ``t``: logits of
student and teacher, ``T``: temperature)::

    dL/ds = a_soft * T * (softmax(s / T) - softmax(t / T)) + a_masked * (softmax(s) - onehot(label))

It is found in the forward pass, before the loss scale of fp16 is known. Divided by the number of positions there, it
would fall below what fp16 can hold; it is kept undivided, and ``backward`` divides and scales.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from distill.config import Loss
from distill.modeling.masked_lm import Projection

# Positions whose logits stay in a core's cache while losses and gradients pass over them. A GPU takes a chunk whole.
_CACHED_POSITIONS = 16
_CACHED_ELEMENTS = 2**18

MAX_GRAPHS = 64
"""Graphs of a compiled function, one for every shape: trials of micro-batches, training, validations, every phase."""


class HeadLosses(NamedTuple):
    """Losses of the head, in nats; ``weighted`` alone has a gradient."""

    weighted: Float[Tensor, ""]
    soft: Float[Tensor, ""]
    masked: Float[Tensor, ""]


@dataclass(frozen=True)
class DistillationTargets:
    """What a teacher says of a batch, as its features and the projection that makes words of them."""

    features: Float[Tensor, "positions teacher_hidden"]
    projection: Projection


def head_losses(
    features: Float[Tensor, "positions hidden"],
    projection: Projection,
    targets: DistillationTargets | None,
    labels: Int[Tensor, " labels"],
    weights: Loss,
    chunk: int,
    compiled: bool = False,
) -> HeadLosses:
    """Soft and masked-word losses of a batch, and their weighted sum.

    The first ``len(labels)`` positions carry labels, all of them soft targets; at most ``chunk`` positions have logits
    at a time. ``compiled`` fuses what happens between two matrix products.
    """
    if weights.soft and targets is None:
        raise ValueError("a soft loss needs a teacher")
    task = _Task(weights, len(labels), len(features), chunk, compiled)
    of_teacher = (
        (targets.features, targets.projection.weight, targets.projection.bias) if targets else (None, None, None)
    )
    found = _HeadLosses.apply(task, features, projection.weight, projection.bias, labels, *of_teacher)  # type: ignore[no-untyped-call]
    return HeadLosses(*found)


def cosine_loss(student: Float[Tensor, "tokens hidden"], teacher: Float[Tensor, "tokens hidden"]) -> Float[Tensor, ""]:
    """One minus the cosine between last hidden states, mean over tokens, without fp32 copies kept for backward."""
    found: Tensor = _Cosine.apply(student, teacher)  # type: ignore[no-untyped-call]
    return found


@torch.no_grad()
def top_words(
    features: Float[Tensor, "positions hidden"], projection: Projection, chunk: int
) -> Int[Tensor, " positions"]:
    """The likeliest word at each position."""
    return torch.cat([projection.logits(part).argmax(dim=-1) for part in torch.split(features, chunk)])


def chunk_positions(vocab_size: int, bytes_per_logit: int, memory: int, device: str) -> int:
    """Positions whose logits may exist at a time on a device with so many bytes of memory.

    A chunk, its fp32 temporaries included, may take a thirty-second of the memory. Above 512 positions on a CPU, or
    2,048 on a GPU, matrix products gain nothing.
    """
    bytes_per_position = vocab_size * (2 * bytes_per_logit + 4 * 4)
    fitting = memory // 32 // bytes_per_position
    return max(64, min(512 if device == "cpu" else 2048, fitting // _CACHED_POSITIONS * _CACHED_POSITIONS))


@dataclass(frozen=True)
class _Task:
    weights: Loss
    labels: int
    positions: int
    chunk: int
    compiled: bool

    @property
    def masked_factor(self) -> float:
        """Weight of a label's gradient among gradients that will be divided by the number of positions."""
        return self.weights.masked * self.positions / self.labels

    @property
    def end(self) -> int:
        """Positions that have a loss at all."""
        return self.positions if self.weights.soft else self.labels


class _HeadLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        task: _Task,
        features: Tensor,
        weight: Tensor,
        bias: Tensor,
        labels: Tensor,
        targets: Tensor | None,
        teacher_weight: Tensor | None,
        teacher_bias: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        learns = any(ctx.needs_input_grad)
        soft = features.new_zeros((), dtype=torch.float64)
        masked = torch.zeros_like(soft)
        gradients = _Gradients(features, weight, bias) if learns else None
        # Buffers for all chunks: memory fresh from the system costs a CPU as much as a tenth of the product.
        space = features.new_empty(min(task.chunk, task.positions), len(weight))
        teacher_space = features.new_empty(space.shape if task.weights.soft else 0)
        biases = bias.float(), None if teacher_bias is None else teacher_bias.float()
        for start in range(0, task.end, task.chunk):
            part = slice(start, min(start + task.chunk, task.end))
            size = part.stop - part.start
            logits = torch.mm(features[part], weight.t(), out=space[:size])
            wanted = None
            if task.weights.soft:
                assert targets is not None
                assert teacher_weight is not None
                wanted = torch.mm(targets[part], teacher_weight.t(), out=teacher_space[:size])
            found = _pass_over(_Chunk(logits, wanted, labels[part]), biases, task, learns)
            soft, masked = soft + found[0], masked + found[1]
            if gradients is not None:
                gradients.add(part, logits, features, weight)
        if gradients is not None:
            ctx.save_for_backward(gradients.features, gradients.weight, gradients.bias)
            ctx.positions = task.positions
        soft, masked = (soft / task.positions).float(), (masked / task.labels).float()
        ctx.mark_non_differentiable(soft, masked)
        return task.weights.soft * soft + task.weights.masked * masked, soft, masked

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        features, weight, bias = ctx.saved_tensors
        scale = upstream / ctx.positions
        given = (features * scale, weight.mul_(scale).to(features.dtype), (bias * scale).to(features.dtype))
        return (None, *given, None, None, None, None)


class _Cosine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor) -> Tensor:
        ours, theirs = student.float(), teacher.float()
        our_length, their_length = (part.norm(dim=-1, keepdim=True).clamp(min=1e-8) for part in (ours, theirs))
        direction = theirs / (our_length * their_length)
        cosine = (ours * direction).sum(dim=-1, keepdim=True)
        if ctx.needs_input_grad[0]:
            # Undivided as well: see the head of this file.
            ctx.save_for_backward((cosine * ours / our_length.square() - direction).to(student.dtype))
        loss: Tensor = 1 - cosine.mean()
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * (upstream / len(gradient)), None


class _Gradients:
    """Gradients of the head, not divided by the number of positions; those of weights add up in fp32."""

    def __init__(self, features: Tensor, weight: Tensor, bias: Tensor) -> None:
        self.features = torch.zeros_like(features)
        self.weight: Tensor = torch.empty(0)
        self.bias = torch.zeros_like(bias, dtype=torch.float32)
        self._space = torch.empty_like(weight)
        self._chunks = 0

    def add(self, part: slice, of_logits: Tensor, features: Tensor, weight: Tensor) -> None:
        torch.mm(of_logits, weight, out=self.features[part])
        self.bias += of_logits.sum(dim=0, dtype=torch.float32)
        if self._chunks == 1:  # the first product lies where the next will be
            self.weight = self.weight.to(torch.float32, copy=True)
        product = self._outer(of_logits, features[part])
        if self._chunks == 0:
            self.weight = product
        else:
            accumulate(self.weight, product)
        self._chunks += 1

    def _outer(self, of_logits: Tensor, features: Tensor) -> Tensor:
        """``of_logits.T @ features``; in fp32 where the sum over positions could leave the range of fp16."""
        if of_logits.dtype != torch.float16:
            return torch.mm(of_logits.t(), features, out=self._space)
        if of_logits.is_cuda:
            return torch.mm(of_logits.t(), features, out_dtype=torch.float32)
        return of_logits.float().t() @ features.float()


def accumulate(total: Float[Tensor, "..."], part: Float[Tensor, "..."]) -> None:
    """``total += part`` in the precision of ``total``.

    A CPU first converts the whole of a ``part`` of lower precision, in memory; in pieces it does so in its cache.
    """
    if total.dtype == part.dtype or total.device.type != "cpu" or not (total.is_contiguous() and part.is_contiguous()):
        total.add_(part)
        return
    pieces = (torch.split(tensor.view(-1), _CACHED_ELEMENTS) for tensor in (total, part))
    for piece, added in zip(*pieces, strict=True):
        piece.add_(added.to(piece.dtype))


class _Chunk(NamedTuple):
    """Positions that are worked on together: logits without bias, and labels of the first of them."""

    logits: Tensor
    wanted: Tensor | None
    words: Tensor

    def parts(self, size: int) -> Iterator[tuple[Tensor, Tensor | None, Tensor | None]]:
        """At most ``size`` positions at a time, all of them with labels or all without."""
        ends = (len(self.words), len(self.logits))
        for first, end in ((0, ends[0]), ends):
            for start in range(first, end, size):
                part = slice(start, min(start + size, end))
                wanted = None if self.wanted is None else self.wanted[part]
                yield self.logits[part], wanted, self.words[part] if first < ends[0] else None


def _pass_over(chunk: _Chunk, biases: tuple[Tensor, Tensor | None], task: _Task, learns: bool) -> tuple[Tensor, Tensor]:
    """Sums of the soft and masked losses of a chunk; its logits become their gradient where ``learns``."""
    soft = masked = chunk.logits.new_zeros((), dtype=torch.float64)
    on_cpu = chunk.logits.device.type == "cpu"
    size = _CACHED_POSITIONS if on_cpu else len(chunk.logits)
    weights = (task.weights.soft, task.masked_factor, task.weights.temperature)
    for logits, wanted, words in chunk.parts(size):
        # Only what comes again and again is worth a compilation; on a GPU, shapes are the same at every step.
        compiled = task.compiled and learns and (len(logits) == size or not on_cpu)
        found = (_compiled() if compiled else _losses_and_gradient)(logits, wanted, words, *biases, *weights)
        soft, masked = soft + found[0], masked + found[1]
        if learns:
            logits.copy_(found[2])
    return soft, masked


def _losses_and_gradient(
    logits: Tensor,
    wanted: Tensor | None,
    words: Tensor | None,
    bias: Tensor,
    teacher_bias: Tensor | None,
    soft_weight: float,
    masked_factor: float,
    temperature: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sums of soft and masked losses of some positions, and the gradient of their weighted sum by the logits.

    In place wherever it can be: on a CPU every further pass over the logits costs as much as an exponential.
    """
    logits = logits.float().add_(bias)
    soft = masked = logits.new_zeros(())
    gradient = torch.zeros_like(logits) if wanted is None else logits
    if wanted is not None and teacher_bias is not None:
        predicted = torch.log_softmax(logits / temperature, dim=-1)
        target = torch.log_softmax(wanted.float().add_(teacher_bias).div_(temperature), dim=-1)
        chance = target.exp()
        soft = torch.dot(chance.view(-1), target.sub_(predicted).view(-1)) * temperature**2
        gradient = predicted.exp_().sub_(chance).mul_(soft_weight * temperature)
    if words is not None:
        at = words.unsqueeze(-1)
        predicted = torch.log_softmax(logits, dim=-1)
        masked = -predicted.gather(-1, at).sum()
        chance = predicted.exp_()
        chance.scatter_add_(-1, at, torch.full_like(at, -1.0, dtype=chance.dtype))
        gradient = gradient.add_(chance, alpha=masked_factor)
    return soft, masked, gradient


@functools.cache
def _compiled() -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    # A graph for every shape: whole chunks and the ends of labels and of positions, for every phase of a run.
    torch._dynamo.config.recompile_limit = MAX_GRAPHS
    return torch.compile(_losses_and_gradient, dynamic=False)
