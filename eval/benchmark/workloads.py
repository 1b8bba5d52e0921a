"""What models are timed on: pairs of sentences, questions with their passages, token ids of one length.

A model reads its texts with its own tokenizer, one at a time; reading is timed by itself.
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
"""The paper's: a pass over the development set of STS-B on a server, SQuAD on a phone."""


@dataclass(frozen=True)
class Workload:
    """Inputs for every model alike."""

    kind: Kind
    length: int | None
    """Tokens of every input; None where an input is as long as its text."""
    texts: Sequence[Text] = ()
    about: Mapping[str, Any] = field(default_factory=dict)
    """Where the texts are from."""

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
    """The inputs of a workload as one tokenizer gives them; ``seconds`` of tokenising all of them, one by one."""

    rows: list[Arrays]
    seconds: float | None

    @property
    def longest(self) -> int:
        return max(self._tokens())

    @property
    def tokens(self) -> float:
        """Of an input, on average; ELMo's are words of both sentences, with the marks of their ends."""
        return statistics.fmean(self._tokens())

    def _tokens(self) -> list[int]:
        # Ids are [batch, tokens]; ELMo has [tokens, characters] for each of two sentences.
        return [
            int(row["input_ids"].shape[1]) if "input_ids" in row else sum(len(ids) for ids in row.values())
            for row in self.rows
        ]


def pairs(folder: Path, limit: int | None) -> Workload:
    """STS-B's development set in its order, or a part of it, the same one every time.

    Raises:
        ExamplesError: the folder does not hold the task.
    """
    _, (dev, *_) = dev_from_folder(PAIRS, folder)
    first, second = dev.sample(limit).texts
    texts = list(zip(first, second, strict=True))
    return Workload("pairs", None, texts, _about(dev.files, len(dev), len(texts), dev.is_subset))


def questions(folder: Path, limit: int | None, length: int) -> Workload:
    """SQuAD's development set, or a part of it: every question with its passage, cut or padded to ``length`` tokens.

    Raises:
        ExamplesError: the folder does not hold the task.
    """
    dev = dev_questions_from_folder(QUESTIONS, folder)
    texts = [(each.text, each.context) for each in dev.sample(limit).items]
    return Workload("questions", length, texts, _about(dev.files, len(dev), len(texts), dev.is_subset))


def _about(files: Sequence[str], examples: int, measured: int, subset: bool) -> dict[str, Any]:
    return {"files": list(files), "examples": examples, "measured": measured, "subset": subset or measured < examples}


def read(workload: Workload, reader: Reader, most: int, types: bool) -> Encoded:
    """Token ids of a workload's texts, at most ``most`` of one input; with token types where the model has them."""
    longest = workload.length or min(PAIRS.max_length, most)

    def encode(text: Text) -> Arrays:
        given = reader.tokenizer(
            *text,
            truncation="longest_first",
            max_length=longest,
            padding="max_length" if workload.length else False,
            return_token_type_ids=types,
            return_tensors="np",
        )
        return dict(given)

    return _timed(encode, workload.texts)


def read_characters(workload: Workload, sizes: ElmoSizes) -> Encoded:
    """Character ids of both sentences, as ELMo reads them."""

    def encode(text: Text) -> Arrays:
        first, second = elmo.encode(*text, sizes)
        return {"first": first.numpy(), "second": second.numpy()}

    return _timed(encode, workload.texts)


def drawn(length: int, rows: int, batch: int, vocab_size: int, seed: int) -> Encoded:
    """Token ids ``[batch, length]``, the same for every model.

    From the upper half of the smallest vocabulary, where no tokenizer keeps its padding token, which a model might
    treat in another way than a word.
    """
    chance = np.random.default_rng((seed, length))
    ids = chance.integers(vocab_size // 2, vocab_size, (rows, batch, length))
    return Encoded([{"input_ids": row, "attention_mask": np.ones_like(row)} for row in ids], None)


def _timed(encode: Callable[[Text], Arrays], texts: Sequence[Text]) -> Encoded:
    encode(texts[0])  # not counted: a tokenizer makes its tables when it is asked first
    rows, seconds = [], 0.0
    for text in texts:
        started = time.perf_counter()
        row = encode(text)
        seconds += time.perf_counter() - started
        rows.append(row)
    return Encoded(rows, seconds)
