"""Inputs to calibrate a static quantization with: real text, cut from the rows of a tokens artifact."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field, NonNegativeInt, PositiveInt

from cluster.artifacts.errors import StageError
from cluster.artifacts.recipe import Recipe
from cluster.tokens.rows import open_tokens
from cluster.tokens.tokenizer import SpecialIds, special_ids, vocabulary_digest
from deploy.conversion.parity import SHORTEST, Feed
from deploy.conversion.source_model import SourceModel

SHORTEST_PAIR = SHORTEST + 2
"""[CLS], [SEP] and [SEP] around two tokens."""


class Calibration(Recipe):
    """The text that a quantization is calibrated with."""

    rows: PositiveInt = 128
    """Rows of tokens to calibrate with."""
    lengths: tuple[Annotated[int, Field(ge=SHORTEST_PAIR)], ...] = Field((16, 32, 64, 128), min_length=1)
    """Lengths in tokens, which the rows have in turn."""
    seed: NonNegativeInt = 0
    """Seed of the choice of rows."""


def check_given(inputs: Mapping[str, Path], wanted: bool, setting: str) -> None:
    """
    Raises:
        StageError: the input ``tokens`` is absent though the recipe's setting needs it, or the reverse.
    """
    if wanted != ("tokens" in inputs):
        raise StageError(
            f"{setting} and --tokens DIR, the rows to calibrate with, belong together: give both or neither"
        )


def feeds(calibration: Calibration, tokens: Path, source: SourceModel) -> list[Feed]:
    """Inputs of one row each, ``[1, length]``: single texts and pairs in turn, because tasks have both.

    Raises:
        StageError: the tokens were made with another vocabulary than the model's.
        ArtifactError: not a complete tokens artifact.
        RowsError: its row files are damaged.
    """
    opened = open_tokens(tokens)
    if opened.artifact.facts.get("vocabulary") != vocabulary_digest(source.tokenizer):
        raise StageError(
            f"{tokens} was made with another vocabulary than that of {source.folder}: give the tokens that the model "
            "was trained on, or make some with its tokenizer"
        )
    marks = special_ids(source.tokenizer)
    chance = np.random.default_rng(calibration.seed)
    chosen = np.sort(chance.choice(len(opened.train), min(calibration.rows, len(opened.train)), replace=False))
    found = []
    for number, row in enumerate(opened.train.take(chosen)):
        words = row[~np.isin(row, marks.all)]
        length = min(calibration.lengths[number // 2 % len(calibration.lengths)], source.positions)
        found.append(_input(words, length, number % 2 == 1, marks, source.inputs))
    return found


def _input(words: np.ndarray, length: int, pair: bool, marks: SpecialIds, names: Sequence[str]) -> Feed:
    """A text of at most ``length`` tokens; with ``pair``, its two halves as a pair."""
    words = words[: length - (3 if pair else 2)]
    half = len(words) // 2 if pair else len(words)
    first = [marks.cls, *words[:half], marks.sep]
    second = [*words[half:], marks.sep] if pair else []
    feed = {
        "input_ids": np.array([[*first, *second]], dtype=np.int64),
        "attention_mask": np.ones((1, len(first) + len(second)), dtype=np.int64),
        "token_type_ids": np.array([[0] * len(first) + [1] * len(second)], dtype=np.int64),
    }
    return {name: feed[name] for name in names}
