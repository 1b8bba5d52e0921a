"""Answers as spans of a passage: encoded windows, training targets and the loss.

As Devlin et al. 2019 did for SQuAD: a question is cut at 64 tokens, and each window begins ``stride`` tokens after the
one before it. A model gives each token a logit to be the first of the answer and one to be the last; [CLS] stands for
no answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from cluster.models.span_decoding import Ints, Window, encode_windows
from eval.finetune.batching import Features, Rows
from eval.finetune.task_distillation import TaskDistillation, soft_targets
from eval.tasks.questions import Question

QUERY_TOKENS = 64
STRIDE = 128

# Finite, unlike minus infinity: a teacher's and a student's differ by 0, where infinities would differ by nan.
NEVER = -1e9


@dataclass(frozen=True)
class Windows:
    """All windows of a split, encoded; row ``r`` of ``features`` is ``windows[r]``."""

    features: Features
    windows: tuple[Window, ...]

    @property
    def questions(self) -> Rows:
        """``[rows]``: index of the question of each row."""
        return np.array([window.question for window in self.windows])


@dataclass(frozen=True)
class SpanLoss:
    """Loss of rows by their numbers, against the labels and, in a second step, the teacher's logits."""

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


def encode_questions(tokenizer: Any, questions: Sequence[Question], max_length: int, stride: int) -> Windows:
    """Encode questions with their passages.

    Raises:
        StageError: a question leaves no room for its passage.
    """
    texts, passages = [each.text for each in questions], [each.context for each in questions]
    encoded = list(encode_windows(tokenizer, texts, passages, max_length, stride, QUERY_TOKENS))
    types = [each.types for each in encoded] if "token_type_ids" in tokenizer("a", "a") else None
    features = Features.of([each.ids for each in encoded], types, tokenizer.pad_token_id)
    return Windows(features, tuple(each.window for each in encoded))


def targets(encoded: Windows, questions: Sequence[Question]) -> Ints:
    """First and last token of each row's first given answer, ``[rows, 2]``.

    Both are 0, the index of [CLS], where the window does not hold the whole answer, or the question has none.
    """
    tokens = np.zeros((len(encoded.windows), 2), dtype=np.int64)
    for row, window in enumerate(encoded.windows):
        question = questions[window.question]
        if question.answers:
            tokens[row] = _target(window, question.starts[0], question.starts[0] + len(question.answers[0]))
    return tokens


def _target(window: Window, begin: int, end: int) -> tuple[int, int]:
    if not len(window.characters) or begin < window.characters[0, 0] or end > window.characters[-1, 1]:
        return 0, 0
    first = int(np.searchsorted(window.characters[:, 1], begin, side="right"))
    last = int(np.searchsorted(window.characters[:, 0], end, side="left")) - 1
    # An answer between two tokens is white space: no token stands for it.
    return (window.offset + first, window.offset + last) if first <= last else (0, 0)
