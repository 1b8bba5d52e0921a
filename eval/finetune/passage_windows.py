"""Questions and passages as rows for a model: a long passage is read through several windows.

As Devlin et al. 2019 did for SQuAD: ``[CLS] question [SEP] part of the passage [SEP]``; the question is cut at 64
tokens, and each window begins ``stride`` tokens after the one before it. Every token keeps its place in the passage in
characters, so that an answer is always text exactly as it stands there.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from eval.finetune.batching import Features, Rows
from eval.finetune.task_model import ModelError
from eval.tasks.questions import Question

QUERY_TOKENS = 64
STRIDE = 128

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Passage:
    """A tokenized passage: ids, and the characters ``[tokens, 2]`` from and to which each token reaches."""

    ids: list[int]
    characters: Ints


@dataclass(frozen=True)
class Window:
    """One row: whose it is, and where in it the passage lies."""

    question: int
    """Number of the question."""
    offset: int
    """Place in the row of the first token of the passage."""
    characters: Ints
    """``[tokens, 2]`` of the part of the passage that is in this window."""


@dataclass(frozen=True)
class Windows:
    """All windows of a split, encoded."""

    features: Features
    windows: tuple[Window, ...]

    @property
    def questions(self) -> Rows:
        """``[rows]``: the question of each row."""
        return np.array([window.question for window in self.windows])


@dataclass(frozen=True)
class Frame:
    """What a tokenizer puts around a pair of texts: for BERT ``[CLS]`` first ``[SEP]`` second ``[SEP]``."""

    before: list[int]
    between: list[int]
    after: list[int]
    typed: bool
    """Whether its models are told which text a token is of: type 1 from the second text on."""

    @classmethod
    def of(cls, tokenizer: Any) -> "Frame":
        pair = tokenizer("a", "a")
        ids, sides = pair["input_ids"], pair.sequence_ids()
        first, second = (sides.index(side) for side in (0, 1))
        ends = [len(sides) - sides[::-1].index(side) for side in (0, 1)]
        return cls(ids[:first], ids[ends[0] : second], ids[ends[1] :], "token_type_ids" in pair)


def windows(tokenizer: Any, questions: Sequence[Question], max_length: int, stride: int) -> Windows:
    """Encode questions with their passages.

    Raises:
        ModelError: there is no room for a passage beside a question.
    """
    frame = Frame.of(tokenizer)
    # Not verbose: that a passage is longer than the model reads is what windows are for.
    plain = functools.partial(tokenizer, add_special_tokens=False, return_attention_mask=False, verbose=False)
    passages = _passages(plain, questions)
    asked = plain([each.text for each in questions])
    ids: list[list[int]] = []
    types: list[list[int]] = []
    found: list[Window] = []
    for number, (question, query) in enumerate(zip(questions, asked["input_ids"], strict=True)):
        passage = passages[question.context]
        before = [*frame.before, *query[:QUERY_TOKENS], *frame.between]
        room = max_length - len(before) - len(frame.after)
        if room < 1:
            raise ModelError(
                f"max_length = {max_length} leaves no room beside the question {question.text!r}: raise it"
            )
        for first in _firsts(len(passage.ids), room, min(stride, room)):
            part = passage.ids[first : first + room]
            ids.append([*before, *part, *frame.after])
            types.append([0] * len(before) + [1] * (len(part) + len(frame.after)))
            found.append(Window(number, len(before), passage.characters[first : first + room]))
    features = Features.of(ids, types if frame.typed else None, tokenizer.pad_token_id)
    return Windows(features, tuple(found))


def targets(found: Windows, questions: Sequence[Question]) -> Ints:
    """First and last token of each row's first given answer, ``[rows, 2]``.

    Both are 0, the place of [CLS], where the window does not hold the whole answer, or there is none.
    """
    places = np.zeros((len(found.windows), 2), dtype=np.int64)
    for row, window in enumerate(found.windows):
        question = questions[window.question]
        if question.answers:
            places[row] = _target(window, question.starts[0], question.starts[0] + len(question.answers[0]))
    return places


def _target(window: Window, begin: int, end: int) -> tuple[int, int]:
    if not len(window.characters) or begin < window.characters[0, 0] or end > window.characters[-1, 1]:
        return 0, 0
    first = int(np.searchsorted(window.characters[:, 1], begin, side="right"))
    last = int(np.searchsorted(window.characters[:, 0], end, side="left")) - 1
    # An answer between two tokens is white space: no token stands for it.
    return (window.offset + first, window.offset + last) if first <= last else (0, 0)


def _firsts(tokens: int, room: int, stride: int) -> range:
    """First tokens of the windows: as many as are needed to see all, one also for a passage without tokens."""
    return range(0, max(tokens - room, 0) + stride, stride)


def _passages(plain: Callable[..., Any], questions: Sequence[Question]) -> dict[str, Passage]:
    texts = list(dict.fromkeys(question.context for question in questions))
    encoded = plain(texts, return_offsets_mapping=True)
    found = zip(texts, encoded["input_ids"], encoded["offset_mapping"], strict=True)
    return {text: Passage(ids, np.array(places, dtype=np.int64).reshape(-1, 2)) for text, ids, places in found}
