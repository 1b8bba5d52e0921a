"""What a model says about one input, and the check of the input's texts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

from cluster.artifacts.errors import StageError


@dataclass(frozen=True)
class Prediction:
    """One prediction of a model."""

    text: str
    """A label, a number, an answer (empty: no answer), or a word."""
    probability: float | None
    """None for a score."""
    begin: int | None = None
    """For an answer: first and end character in the passage."""
    end: int | None = None
    mask: int | None = None
    """For a word: the number of the mask that it fills, from 1."""


@dataclass(frozen=True)
class NoAnswer:
    """Whether a passage holds no answer, according to a model of SQuAD 2.0."""

    chosen: bool
    margin: float | None
    """Logit of no answer minus that of the best span; None if the passage has no span."""
    threshold: float
    """Margin above which there is no answer."""


@dataclass(frozen=True)
class Predictions(Sequence[Prediction]):
    """The predictions for one input, the likeliest first, and how much of the input the model read."""

    predictions: tuple[Prediction, ...]
    tokens: int
    """Tokens of the input, with special tokens. A passage is always read to its end."""
    tokens_read: int
    no_answer: NoAnswer | None = None
    """None for a model that always gives an answer."""

    @property
    def cut_note(self) -> str | None:
        """What people must know where the model did not read the whole input."""
        if self.tokens_read >= self.tokens:
            return None
        return f"read {self.tokens_read} of {self.tokens} tokens, the rest has no effect: shorten the text"

    @property
    def no_answer_note(self) -> str | None:
        """How a model of SQuAD 2.0 decided whether the passage holds an answer; None without spans."""
        found = self.no_answer
        if found is None or found.margin is None:
            return None
        verdict = "no answer" if found.chosen else "an answer"
        return (
            f"{verdict}: no answer minus best span is {found.margin:+.2f} logits, the threshold is {found.threshold:g}"
        )

    @overload
    def __getitem__(self, index: int) -> Prediction: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Prediction, ...]: ...
    def __getitem__(self, index: int | slice) -> Prediction | tuple[Prediction, ...]:
        return self.predictions[index]

    def __len__(self) -> int:
        return len(self.predictions)


def check_text(text: str, name: str) -> None:
    """Refuse what is no text; ``name`` says what it is for.

    Raises:
        StageError: not a string, not UTF-8, or with a NUL character.
    """
    if not isinstance(text, str):
        raise StageError(f"the {name} is {text!r}, not text: give a string")
    if (place := text.find("\0")) >= 0:
        raise StageError(f"the {name} has a NUL character at {place}, so it is no plain text: convert it first")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise StageError(f"the {name} is not UTF-8 at character {error.start}: convert it first") from None
