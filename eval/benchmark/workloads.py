"""Inputs of benchmarks: sentence pairs, questions with their passages, token ids of fixed lengths.

Each model tokenizes the texts with its own tokenizer, one at a time; tokenization is timed separately.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from eval.benchmark import elmo
from eval.benchmark.elmo import ElmoSizes
from eval.benchmark.model_process import Arrays
from eval.benchmark.reference_models import Head, Reader
from eval.tasks.definitions import TASKS
from eval.tasks.examples import dev_from_folder
from eval.tasks.questions import dev_questions_from_folder

Kind: TypeAlias = Literal["pairs", "questions", "lengths"]
Text: TypeAlias = tuple[str, str]

PAIRS, QUESTIONS = TASKS["stsb"], TASKS["squad"]
"""As in the paper: a pass over the development set of STS-B on a server, SQuAD on a phone."""


@dataclass(frozen=True)
class Workload:
    """The inputs of a benchmark, the same for every model."""

    kind: Kind
    length: int | None
    """Tokens of every input; None where inputs are as long as their texts."""
    texts: Sequence[Text] = ()
    about: Mapping[str, Any] = field(default_factory=dict)
    """Files and numbers of the texts."""

    @property
    def name(self) -> str:
        """For errors and logs: ``pairs``, ``questions``, ``30 tokens``."""
        return f"{self.length} tokens" if self.kind == "lengths" else self.kind

    @property
    def head(self) -> Head:
        heads: dict[Kind, Head] = {"pairs": "score", "questions": "answers", "lengths": "any"}
        return heads[self.kind]


@dataclass(frozen=True)
class Encoded:
    """The inputs of a workload from one tokenizer; ``seconds`` to tokenize all of them, None for random ids."""

    rows: list[Arrays]
    seconds: float | None

    @property
    def longest(self) -> int:
        return max(self._tokens())

    @property
    def tokens(self) -> float:
        """Mean per input; for ELMo the words of both sentences with their marks."""
        return statistics.fmean(self._tokens())

    def _tokens(self) -> list[int]:
        # Ids are [batch, tokens]; ELMo has [tokens, characters] for each of two sentences.
        return [
            int(row["input_ids"].shape[1]) if "input_ids" in row else sum(len(ids) for ids in row.values())
            for row in self.rows
        ]


def pairs(folder: Path, limit: int | None) -> Workload:
    """STS-B's development set in its order, or the same part of it every time.

    Raises:
        ExamplesError: the folder does not have the task.
    """
    _, (dev, *_) = dev_from_folder(PAIRS, folder)
    first, second = dev.sample(limit).texts
    texts = list(zip(first, second, strict=True))
    return Workload("pairs", None, texts, _about(dev.files, len(dev), len(texts), dev.is_subset))


def questions(folder: Path, limit: int | None, length: int) -> Workload:
    """SQuAD's development set, or a part of it: questions with their passages, cut or padded to ``length`` tokens.

    Raises:
        ExamplesError: the folder does not have the task.
    """
    dev = dev_questions_from_folder(QUESTIONS, folder)
    texts = [(each.text, each.context) for each in dev.sample(limit).items]
    return Workload("questions", length, texts, _about(dev.files, len(dev), len(texts), dev.is_subset))


def _about(files: Sequence[str], examples: int, measured: int, subset: bool) -> dict[str, Any]:
    return {"files": list(files), "examples": examples, "measured": measured, "subset": subset or measured < examples}


def read(workload: Workload, reader: Reader, most: int, types: bool) -> Encoded:
    """Token ids of a workload's texts, at most ``most`` per input; ``types``: whether the model has token types."""
    longest = workload.length or min(PAIRS.max_length, most)

    def encode(text: Text) -> Arrays:
        inputs = reader.tokenizer(
            *text,
            truncation="longest_first",
            max_length=longest,
            padding="max_length" if workload.length else False,
            return_token_type_ids=types,
            return_tensors="np",
        )
        return dict(inputs)

    return _timed(encode, workload.texts)


def read_characters(workload: Workload, sizes: ElmoSizes) -> Encoded:
    """Character ids of both sentences, for ELMo."""

    def encode(text: Text) -> Arrays:
        first, second = elmo.encode(*text, sizes)
        return {"first": first.numpy(), "second": second.numpy()}

    return _timed(encode, workload.texts)


def drawn(length: int, rows: int, batch: int, vocab_size: int, seed: int) -> Encoded:
    """Random token ids ``[batch, length]``, the same for every model.

    From the upper half of the smallest vocabulary, where no tokenizer has its padding token, which a model may treat
    specially.
    """
    chance = np.random.default_rng((seed, length))
    ids = chance.integers(vocab_size // 2, vocab_size, (rows, batch, length))
    return Encoded([{"input_ids": row, "attention_mask": np.ones_like(row)} for row in ids], None)


def _timed(encode: Callable[[Text], Arrays], texts: Sequence[Text]) -> Encoded:
    encode(texts[0])  # not counted: a tokenizer builds its tables in the first call
    rows, seconds = [], 0.0
    for text in texts:
        started = time.perf_counter()
        row = encode(text)
        seconds += time.perf_counter() - started
        rows.append(row)
    return Encoded(rows, seconds)
