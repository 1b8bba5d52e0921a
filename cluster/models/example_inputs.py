"""Inputs to try a fine-tuned model on: a few development examples, on which it was not trained.

::

    examples.json    [{"text": "a text", "second": "its partner, or a passage", "answer": "entailment"}, …]

Stages that fine-tune write the file, and pages that ask the model offer its inputs.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from cluster.artifacts.errors import StageError
from cluster.storage import filesystem

FILE = "examples.json"


@dataclass(frozen=True)
class ExampleInput:
    """One input of a model, with what the data says about it."""

    text: str
    """The text, the question, or the text with [MASK]."""
    second: str | None = None
    """The second text of a pair, or the passage."""
    answer: str | None = None
    """The label, score, answer (empty: the passage holds none) or hidden word; None where the data does not say."""


def write(folder: Path, examples: Iterable[ExampleInput]) -> None:
    filesystem.write_json(folder / FILE, [asdict(example) for example in examples])


def read(folder: Path) -> tuple[ExampleInput, ...]:
    """The examples in a model's folder; none where the file is absent.

    Raises:
        StageError: the file has other contents.
    """
    if not (folder / FILE).is_file():
        return ()
    try:
        return tuple(ExampleInput(**entry) for entry in filesystem.read_json(folder / FILE))
    except (TypeError, ValueError) as error:
        raise StageError(f"{folder / FILE} holds no examples ({error}): delete it, or make the model again") from None
