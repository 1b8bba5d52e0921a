"""Answers as spans of a passage: what is learned of them, and the best ones found in what a model says.

A model gives each token of a row a logit to be the first of the answer and one to be the last; a span is worth their
sum. [CLS] stands for no answer.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from eval.finetune.batching import Features, Rows
from eval.finetune.passage_windows import Window
from eval.finetune.task_distillation import TaskDistillation, soft_targets
from eval.tasks.questions import Question

BEST_OF = 20
ANSWER_TOKENS = 30

# Finite, unlike minus infinity: a teacher's and a student's differ by 0, where infinities would differ by nan.
NEVER = -1e9

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Span:
    """A piece of a passage that may be the answer."""

    text: str
    logit: float
    begin: int
    """Place in the passage, in characters."""
    end: int


@dataclass(frozen=True)
class Found:
    """What was found for one question: spans, the best one first, and what no answer is worth."""

    spans: tuple[Span, ...]
    null: float

    @property
    def null_difference(self) -> float:
        """By how much no answer is worth more than the best span, in logits."""
        return self.null - self.spans[0].logit if self.spans else -NEVER


@dataclass(frozen=True)
class SpanLoss:
    """Loss of rows by their numbers: of the given answers, and of the teacher's logits where there is a second step."""

    features: Features
    targets: Tensor
    """``[rows, 2]``, int64: first and last token of the answer."""
    taught: Tensor | None
    """``[tokens, 2]``, in the order of ``features.ids``: the teacher's logits."""
    second_step: TaskDistillation | None

    def __call__(self, logits: Tensor, rows: Rows) -> Tensor:
        """Sum over the rows of the mean of both ends' losses, in nats, over real positions only.

        ``logits`` is ``[rows, 2, longest]``, fp32.
        """
        places, real = self.features.places(rows)
        logits = logits.masked_fill(~real[:, None], NEVER)
        targets = self.targets[torch.from_numpy(rows).to(logits.device, non_blocking=True)]
        task = cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum") / 2
        if self.taught is None or self.second_step is None:
            return task
        taught = self.taught[places].transpose(1, 2).masked_fill(~real[:, None], NEVER)
        soft = soft_targets(logits, taught, self.second_step.temperature).sum() / 2
        return self.second_step.task * task + self.second_step.soft * soft


def find(question: Question, seen: Iterable[tuple[Window, Floats]]) -> Found:
    """The best spans over all windows of a question; ``seen`` has the logits ``[2, tokens]`` of each."""
    spans: dict[tuple[int, int], float] = {}
    null = -NEVER
    for window, logits in seen:
        null = min(null, float(logits[:, 0].sum()))
        for begin, end, logit in _spans(window, logits):
            spans[begin, end] = max(logit, spans.get((begin, end), NEVER))
    best = sorted(spans.items(), key=lambda item: (-item[1], item[0]))
    return Found(tuple(_unlike(question.context, best)), null)


def probabilities(spans: Sequence[Span]) -> list[float]:
    """Of each of the best spans among them."""
    weights = np.exp(np.array([span.logit for span in spans]) - max((span.logit for span in spans), default=0.0))
    return [float(weight) for weight in weights / weights.sum()]


def _spans(window: Window, logits: Floats) -> list[tuple[int, int, float]]:
    """Of one window: place in the passage and logit of what begins and ends at one of the likeliest tokens."""
    tokens = len(window.characters)
    starts, ends = logits[:, window.offset : window.offset + tokens]
    firsts, lasts = (np.argsort(-side, kind="stable")[:BEST_OF] for side in (starts, ends))
    first, last = (grid.ravel() for grid in np.meshgrid(firsts, lasts, indexing="ij"))
    fits = (first <= last) & (last < first + ANSWER_TOKENS)
    first, last = first[fits], last[fits]
    best = np.argsort(-(starts[first] + ends[last]), kind="stable")[:BEST_OF]
    places = zip(window.characters[first[best], 0], window.characters[last[best], 1], strict=True)
    worth = starts[first[best]] + ends[last[best]]
    return [(int(begin), int(end), float(logit)) for (begin, end), logit in zip(places, worth, strict=True)]


def _unlike(context: str, best: Sequence[tuple[tuple[int, int], float]]) -> list[Span]:
    """The first so many of them with different texts; a text that stands in several places counts once."""
    found: dict[str, Span] = {}
    for (begin, end), logit in best:
        if len(found) < BEST_OF and (text := context[begin:end]) not in found:
            found[text] = Span(text, logit, begin, end)
    return list(found.values())
