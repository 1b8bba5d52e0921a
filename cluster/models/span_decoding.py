"""Answers questions about passages: splits a passage into windows, and finds the best spans in the logits of a model.

Windows overlap; each is ``[CLS] question [SEP] part [SEP]``. The score of a span, of at most 30 tokens, is the sum of
the logits of its first and last token (Devlin et al. 2019); that of no answer is the sum of both logits of [CLS], the
lowest of all windows (SQuAD 2.0). The page in ``deploy/browser`` does the same in JavaScript.
"""

import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from cluster.artifacts.errors import StageError
from cluster.models.export_spec import Exported
from cluster.models.runtimes import Call

OVERLAP = 128
"""Most tokens that two neighboring windows of :func:`answer` share."""
SPAN_TOKENS = 30
BEST_OF = 20
"""First tokens, last tokens and spans to consider per window."""
NULL_THRESHOLD = 0.0
"""Logits by which no answer must exceed the best span to be the answer, as in the score of SQuAD 2.0."""
NO_SPAN = -1e9
"""Logit of the best span where there is none; finite, for JSON."""

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Window:
    """The part of a passage in one model input."""

    question: int
    """Index of the question."""
    offset: int
    """Index of the passage's first token in the input."""
    characters: Ints
    """``[tokens, 2]``: first and end character of each token in the passage."""


@dataclass(frozen=True)
class EncodedWindow:
    """A window and its model input, without padding."""

    window: Window
    ids: list[int]
    types: list[int]
    """Token types: 0 for the question, 1 for the passage."""


@dataclass(frozen=True)
class Span:
    """A candidate answer, ``passage[begin:end]``."""

    text: str
    logit: float
    """Sum of the logits of first and last token."""
    begin: int
    end: int


@dataclass(frozen=True)
class AnswerCandidates:
    """Spans of one question with different texts, the best first, and the logit of no answer."""

    spans: tuple[Span, ...]
    null: float

    @property
    def null_difference(self) -> float:
        """Logit of no answer minus that of the best span."""
        return self.null - self.spans[0].logit if self.spans else -NO_SPAN

    @property
    def is_null(self) -> bool:
        """Whether no answer is the answer, for a model of SQuAD 2.0."""
        return self.null_difference > NULL_THRESHOLD

    def ranked(self, nullable: bool) -> list[tuple[Span, float]]:
        """The candidates, the best first, with their probabilities; where ``nullable``, no answer is an empty one."""
        no_answer = [Span("", self.null, -1, -1)] if nullable else []
        best = sorted([*self.spans, *no_answer], key=lambda span: -span.logit)
        return list(zip(best, _probabilities(best), strict=True))


def encode_windows(
    tokenizer: Any,
    questions: Sequence[str],
    passages: Sequence[str],
    max_length: int,
    stride: int,
    question_tokens: int | None = None,
) -> Iterator[EncodedWindow]:
    """Windows of at most ``max_length`` tokens for each question and its passage, in order.

    Windows begin ``stride`` tokens apart, or less if a window holds fewer. Questions are cut to ``question_tokens``.

    Raises:
        StageError: a question leaves no room for its passage, or the tokenizer writes no [CLS].
    """
    before, between, after = _special_tokens(tokenizer)
    if not before:
        raise StageError(
            "the tokenizer puts no [CLS] before a question, which stands for no answer: use the model's own"
        )
    # Not verbose: transformers would warn about long passages, which the windows solve.
    plain = functools.partial(tokenizer, add_special_tokens=False, return_attention_mask=False, verbose=False)
    tokens = _tokenize_once(plain, passages)
    for number, (passage, query) in enumerate(zip(passages, plain(list(questions))["input_ids"], strict=True)):
        ids, characters = tokens[passage]
        prefix = [*before, *query[:question_tokens], *between]
        room = max_length - len(prefix) - len(after)
        if room < 1:
            raise StageError(
                f"max_length = {max_length} leaves no room for a passage with the question {questions[number]!r}: "
                "raise it"
            )
        step = min(stride, room)
        # Windows that cover the passage; one for a passage without tokens.
        for first in range(0, max(len(ids) - room, 0) + step, step):
            part = ids[first : first + room]
            yield EncodedWindow(
                Window(number, len(prefix), characters[first : first + room]),
                [*prefix, *part, *after],
                [0] * len(prefix) + [1] * (len(part) + len(after)),
            )


def best_spans(passage: str, scored: Iterable[tuple[Window, Floats]]) -> list[Span]:
    """Candidates of all windows of a passage, best first.

    ``scored`` has the logits ``[2, tokens]`` of each window, for the first and the last token of the answer. A span in
    two windows has its higher logit.
    """
    candidates: dict[tuple[int, int], float] = {}
    for window, logits in scored:
        for begin, end, logit in _spans(window, logits):
            candidates[begin, end] = max(logit, candidates.get((begin, end), logit))
    ordered = sorted(candidates.items(), key=lambda item: (-item[1], item[0]))
    return [Span(passage[begin:end], logit, begin, end) for (begin, end), logit in ordered]


def candidates(passage: str, scored: Iterable[tuple[Window, Floats]]) -> AnswerCandidates:
    """The best spans of a question with different texts, and no answer, from the logits of all its windows."""
    scored = list(scored)
    null = min((float(logits[:, 0].sum()) for _, logits in scored), default=-NO_SPAN)
    by_text: dict[str, Span] = {}
    for span in best_spans(passage, scored):
        by_text.setdefault(span.text, span)
    return AnswerCandidates(tuple(itertools.islice(by_text.values(), BEST_OF)), null)


def _probabilities(spans: Sequence[Span]) -> list[float]:
    """Softmax over the logits of these spans."""
    weights = np.exp(np.array([span.logit for span in spans]) - max((span.logit for span in spans), default=0.0))
    return [float(weight) for weight in weights / weights.sum()]


def answer(
    call: Call, exported: Exported, tokenizer: PreTrainedTokenizerBase, question: str, passage: str
) -> AnswerCandidates:
    """The answers of an export to a question, over all windows of the passage; an empty passage has no spans.

    Raises:
        StageError: the question leaves no room for a passage.
    """
    query = tokenizer(question, add_special_tokens=False, verbose=False)["input_ids"]
    room = exported.positions - len(query) - tokenizer.num_special_tokens_to_add(pair=True)
    if room < 1:
        raise StageError(f"the question fills all {exported.positions} tokens of the model: shorten it")

    def logits_of(encoded: EncodedWindow) -> Floats:
        ids, types = (np.array([values], dtype=np.int64) for values in (encoded.ids, encoded.types))
        inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": types}
        outputs = call({name: inputs[name] for name in exported.inputs})
        return np.concatenate((outputs["start_logits"], outputs["end_logits"]))

    stride = room - min(OVERLAP, room // 3)
    windows = encode_windows(tokenizer, [question], [passage], exported.positions, stride)
    return candidates(passage, ((each.window, logits_of(each)) for each in windows))


def _special_tokens(tokenizer: Any) -> tuple[list[int], list[int], list[int]]:
    """Special tokens before, between and after a pair of texts: for BERT ``[CLS]``, ``[SEP]``, ``[SEP]``."""
    pair = tokenizer("a", "a")
    ids, sides = pair["input_ids"], pair.sequence_ids()
    first, second = (sides.index(side) for side in (0, 1))
    ends = [len(sides) - sides[::-1].index(side) for side in (0, 1)]
    return ids[:first], ids[ends[0] : second], ids[ends[1] :]


def _tokenize_once(plain: Any, passages: Sequence[str]) -> dict[str, tuple[list[int], Ints]]:
    """Ids and characters ``[tokens, 2]`` of each distinct passage."""
    texts = list(dict.fromkeys(passages))
    encoded = plain(texts, return_offsets_mapping=True)
    rows = zip(texts, encoded["input_ids"], encoded["offset_mapping"], strict=True)
    return {text: (ids, np.array(offsets, dtype=np.int64).reshape(-1, 2)) for text, ids, offsets in rows}


def _spans(window: Window, logits: Floats) -> list[tuple[int, int, float]]:
    """Begin, end and logit of the best spans of one window."""
    starts, ends = logits[:, window.offset : window.offset + len(window.characters)]
    firsts, lasts = (np.argsort(-side, kind="stable")[:BEST_OF] for side in (starts, ends))
    first, last = (grid.ravel() for grid in np.meshgrid(firsts, lasts, indexing="ij"))
    fits = (first <= last) & (last < first + SPAN_TOKENS)
    first, last = first[fits], last[fits]
    best = np.argsort(-(starts[first] + ends[last]), kind="stable")[:BEST_OF]
    first, last = first[best], last[best]
    places = zip(window.characters[first, 0], window.characters[last, 1], starts[first] + ends[last], strict=True)
    return [(int(begin), int(end), float(logit)) for begin, end, logit in places]
