"""Answers to a question about a passage, found in what a model says of each token.

A passage longer than the model reads is read through several windows, each of which shares a third, 128 tokens at
most, with the one before it. A span's worth is the sum of the logits of its first and last token (Devlin et al. 2019);
it is at most 30 tokens long.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from cluster.artifacts.errors import StageError
from cluster.models.export_spec import Exported
from cluster.models.runtimes import Call, Feed

SHARED = 128
LONGEST = 30
CANDIDATES = 20

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class AnswerSpan:
    """A piece of the passage, ``passage[begin:end]``."""

    text: str
    probability: float
    """Among the best candidates of all windows."""
    begin: int
    end: int


def best_answer(
    call: Call, exported: Exported, tokenizer: PreTrainedTokenizerBase, question: str, passage: str, top: int
) -> list[AnswerSpan]:
    """The best answers, the best first; none where the passage is empty.

    Raises:
        StageError: the question leaves no room for a passage.
    """
    spans: dict[tuple[int, int], float] = {}
    for feed, characters in _windows(exported, tokenizer, question, passage):
        found = call(feed)
        for begin, end, worth in _spans(found["start_logits"][0], found["end_logits"][0], characters):
            spans[begin, end] = max(worth, spans.get((begin, end), worth))
    best = sorted(spans, key=lambda place: -spans[place])[:CANDIDATES]
    worths = np.array([spans[place] for place in best])
    shares = np.exp(worths - worths.max()) / np.exp(worths - worths.max()).sum() if best else worths
    return [
        AnswerSpan(passage[begin:end], float(share), begin, end)
        for (begin, end), share in list(zip(best, shares, strict=True))[:top]
    ]


def _windows(
    exported: Exported, tokenizer: PreTrainedTokenizerBase, question: str, passage: str
) -> Iterator[tuple[Feed, Sequence[tuple[int, int] | None]]]:
    """Inputs ``[1, length]``, and of each token its place in the passage in characters, None where it is not of it."""
    asked = tokenizer(question, add_special_tokens=False)["input_ids"]
    room = exported.positions - len(asked) - tokenizer.num_special_tokens_to_add(pair=True)
    if room < 1:
        raise StageError(f"the question fills all {exported.positions} tokens that the model reads: shorten it")
    encoded: Any = tokenizer(
        question,
        passage,
        truncation="only_second",
        max_length=exported.positions,
        stride=min(SHARED, room // 3),
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        return_token_type_ids="token_type_ids" in exported.inputs,
    )
    for number, ids in enumerate(encoded["input_ids"]):
        sides = encoded.sequence_ids(number)
        places = zip(encoded["offset_mapping"][number], sides, strict=True)
        feed = {name: np.array([encoded[name][number]], dtype=np.int64) for name in exported.inputs}
        assert len(ids) == len(sides)
        yield feed, [place if side == 1 else None for place, side in places]


def _spans(
    starts: Floats, ends: Floats, characters: Sequence[tuple[int, int] | None]
) -> Iterator[tuple[int, int, float]]:
    """Place in the passage and worth of what begins and ends at one of the likeliest tokens."""
    inside = [number for number, place in enumerate(characters) if place is not None]
    firsts = sorted(inside, key=lambda token: -starts[token])[:CANDIDATES]
    lasts = sorted(inside, key=lambda token: -ends[token])[:CANDIDATES]
    for first in firsts:
        for last in lasts:
            begin, end = characters[first], characters[last]
            if first <= last < first + LONGEST and begin is not None and end is not None:
                yield begin[0], end[1], float(starts[first] + ends[last])
