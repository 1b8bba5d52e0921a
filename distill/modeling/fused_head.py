"""Vocabulary projection and losses in one, for a chunk of positions at a time.

Logits are by far the largest tensors of a batch: positions x vocabulary, for student and teacher, with fp32 copies and
gradients, some 700 KB a token. The fused head computes logits, losses and gradients of one chunk, then reuses the
memory. The gradient has a closed form, so the backward pass needs no logits (``s``, ``t``: logits of student and
teacher, ``T``: temperature)::

    dL/ds = a_soft * T * (softmax(s / T) - softmax(t / T)) + a_masked * (softmax(s) - onehot(label))

The forward pass computes it, before the loss scale of fp16 is known. Divided by the number of positions, it would
underflow in fp16, so the forward pass keeps it undivided, and ``backward`` divides and scales it.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from distill.config import Loss
from distill.modeling.masked_lm import Projection

# Positions whose logits fit into the cache of a core. A GPU processes a whole chunk.
_CACHED_POSITIONS = 16
_CACHED_ELEMENTS = 2**18

MAX_GRAPHS = 64
"""Limit of graphs per compiled function, one per shape: micro-batch trials, training, validations, all phases."""


class HeadLosses(NamedTuple):
    """Losses of the head, in nats. Only ``weighted`` has a gradient."""

    weighted: Float[Tensor, ""]
    soft: Float[Tensor, ""]
    masked: Float[Tensor, ""]


@dataclass(frozen=True)
class DistillationTargets:
    """The teacher's outputs for a batch: features, and the projection that turns them into logits."""

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

    The first ``len(labels)`` positions have labels; all positions have soft targets. Logits exist for at most ``chunk``
    positions at a time. ``compiled`` fuses the operations between two matrix products.
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
    """One minus the cosine between the last hidden states, mean over tokens; keeps no fp32 copies for backward."""
    found: Tensor = _Cosine.apply(student, teacher)  # type: ignore[no-untyped-call]
    return found


class Guesses(NamedTuple):
    """What a head says at each position: its most likely word, and the cross entropy of the right one in nats."""

    words: Int[Tensor, " positions"]
    nats: Float[Tensor, " positions"]


@torch.no_grad()
def guesses(
    features: Float[Tensor, "positions hidden"], projection: Projection, labels: Int[Tensor, " positions"], chunk: int
) -> Guesses:
    """The guess at each position, whose right word is in ``labels``; logits exist for ``chunk`` positions at a time."""
    bias, words, nats = projection.bias.float(), [], []
    for part, right in zip(torch.split(features, chunk), torch.split(labels, chunk), strict=True):
        logits = torch.mm(part, projection.weight.t()).float().add_(bias)
        words.append(logits.argmax(dim=-1))
        nats.append(cross_entropy(logits, right, reduction="none"))
    return Guesses(torch.cat(words), torch.cat(nats))


def chunk_positions(vocab_size: int, bytes_per_logit: int, memory: int, device: str) -> int:
    """Positions of a chunk on a device with ``memory`` bytes.

    A chunk with its fp32 temporaries takes at most 1/32 of the memory. Above 512 positions on a CPU, or 2,048 on a GPU,
    matrix products get no faster.
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
        """Weight of a label's gradient before all gradients are divided by the number of positions."""
        return self.weights.masked * self.positions / max(1, self.labels)

    @property
    def end(self) -> int:
        """Number of positions with a loss."""
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
        # Buffers shared by all chunks: on a CPU, fresh memory costs about a tenth of the matrix product.
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
        soft, masked = (soft / task.positions).float(), (masked / max(1, task.labels)).float()
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
            # Undivided, too: see the docstring of the module.
            ctx.save_for_backward((cosine * ours / our_length.square() - direction).to(student.dtype))
        loss: Tensor = 1 - cosine.mean()
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * (upstream / len(gradient)), None


class _Gradients:
    """Gradients of the head, not divided by the number of positions; sums of weight gradients are fp32."""

    def __init__(self, features: Tensor, weight: Tensor, bias: Tensor) -> None:
        self.features = torch.zeros_like(features)
        self.weight: Tensor = torch.empty(0)
        self.bias = torch.zeros_like(bias, dtype=torch.float32)
        self._space = torch.empty_like(weight)
        self._chunks = 0

    def add(self, part: slice, of_logits: Tensor, features: Tensor, weight: Tensor) -> None:
        torch.mm(of_logits, weight, out=self.features[part])
        self.bias += of_logits.sum(dim=0, dtype=torch.float32)
        if self._chunks == 1:  # the next product overwrites the buffer of the first
            self.weight = self.weight.to(torch.float32, copy=True)
        product = self._outer(of_logits, features[part])
        if self._chunks == 0:
            self.weight = product
        else:
            accumulate(self.weight, product)
        self._chunks += 1

    def _outer(self, of_logits: Tensor, features: Tensor) -> Tensor:
        """``of_logits.T @ features``; in fp32 for fp16, whose range the sum over positions could exceed."""
        if of_logits.dtype != torch.float16:
            return torch.mm(of_logits.t(), features, out=self._space)
        if of_logits.is_cuda:
            return torch.mm(of_logits.t(), features, out_dtype=torch.float32)
        return of_logits.float().t() @ features.float()


def accumulate(total: Float[Tensor, "..."], part: Float[Tensor, "..."]) -> None:
    """``total += part`` in the precision of ``total``.

    On a CPU, torch first converts all of a ``part`` of lower precision in memory; pieces are converted in the cache.
    """
    if total.dtype == part.dtype or total.device.type != "cpu" or not (total.is_contiguous() and part.is_contiguous()):
        total.add_(part)
        return
    pieces = (torch.split(tensor.view(-1), _CACHED_ELEMENTS) for tensor in (total, part))
    for piece, added in zip(*pieces, strict=True):
        piece.add_(added.to(piece.dtype))


class _Chunk(NamedTuple):
    """Logits of a chunk without bias, the teacher's logits, and the labels of the first positions."""

    logits: Tensor
    wanted: Tensor | None
    words: Tensor

    def parts(self, size: int) -> Iterator[tuple[Tensor, Tensor | None, Tensor | None]]:
        """Parts of at most ``size`` positions, either all with labels or all without."""
        ends = (len(self.words), len(self.logits))
        for first, end in ((0, ends[0]), ends):
            for start in range(first, end, size):
                part = slice(start, min(start + size, end))
                wanted = None if self.wanted is None else self.wanted[part]
                yield self.logits[part], wanted, self.words[part] if first < ends[0] else None


def _pass_over(chunk: _Chunk, biases: tuple[Tensor, Tensor | None], task: _Task, learns: bool) -> tuple[Tensor, Tensor]:
    """Sums of the soft and masked losses of a chunk; overwrites its logits with the gradient if ``learns``."""
    soft = masked = chunk.logits.new_zeros((), dtype=torch.float64)
    on_cpu = chunk.logits.device.type == "cpu"
    size = _CACHED_POSITIONS if on_cpu else len(chunk.logits)
    weights = (task.weights.soft, task.masked_factor, task.weights.temperature)
    for logits, wanted, words in chunk.parts(size):
        # Compile only shapes that repeat; on a GPU, every step has the same shapes.
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
    """Sums of soft and masked losses, and the gradient of their weighted sum with respect to the logits.

    In place where possible: on a CPU, another pass over the logits costs as much as an exponential.
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
    # One graph per shape: whole chunks, the last labels and the last positions, for every phase.
    torch._dynamo.config.recompile_limit = MAX_GRAPHS
    return torch.compile(_losses_and_gradient, dynamic=False)
