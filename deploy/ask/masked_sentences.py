"""Sentences with a hidden word, from documents that a pipeline held out of training."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cluster.artifacts import artifact, commit
from cluster.corpus.shard_writer import SHARDS
from cluster.models.example_inputs import ExampleInput
from cluster.tokens.heldout import is_heldout
from cluster.tokens.shard_tokenizer import read_texts
from cluster.tokens.tokenizer import load_tokenizer
from deploy.predict import MASK

COUNT = 6
_SENTENCE = re.compile(r"(?<=[.!?] )[A-Z][a-z']*(?: [\w',;-]+){6,20}\.(?=\s|$)")
"""A sentence of plain words after another one: no code, heading or list."""
_WORD = re.compile(r"[a-z]{4,10}")


def from_heldout_text(pipeline: Path, model: Path) -> tuple[ExampleInput, ...]:
    """Up to :data:`COUNT` sentences, each of another document, with a word hidden that is one token of the model.

    Raises:
        ArtifactError, StageError: the corpus is damaged.
    """
    corpus, tokens = pipeline / "corpus", pipeline / "tokens"
    if not all((folder / commit.MANIFEST).is_file() for folder in (corpus, tokens)):
        return ()
    share = float(artifact.read(tokens, "tokens").facts["heldout_share"])
    tokenizer = load_tokenizer(model)
    found: list[ExampleInput] = []
    for text in _texts(corpus):
        if is_heldout(text, share) and (example := _hidden(text, tokenizer)) is not None:
            found.append(example)
            if len(found) == COUNT:
                break
    return tuple(found)


def _texts(corpus: Path) -> Iterator[str]:
    """The documents, one of every file in turns, so that the first examples come from different sources."""
    files = [
        (text for group in read_texts(corpus / name) for text in group)
        for name in artifact.read(corpus, "corpus").matching(SHARDS)
    ]
    while files:
        for file in list(files):
            if (text := next(file, None)) is None:
                files.remove(file)
            else:
                yield text


def _hidden(text: str, tokenizer: Any) -> ExampleInput | None:
    """The first plain sentence with its longest word hidden; of equally long ones the last."""
    for match in _SENTENCE.finditer(" ".join(text.split())):
        sentence = match[0]
        words = [word for word in _WORD.finditer(sentence) if _is_token(sentence, word, tokenizer)]
        if words:
            word = max(words, key=lambda each: (len(each[0]), each.start()))
            hidden = f"{sentence[: word.start()]}{MASK}{sentence[word.end() :]}"
            return ExampleInput(hidden, answer=word[0])
    return None


def _is_token(sentence: str, word: re.Match[str], tokenizer: Any) -> bool:
    """Whether a match is a whole word, occurs once, and is one token."""
    whole = re.compile(rf"(?<![\w'-]){word[0]}(?![\w'-])", re.IGNORECASE)
    ids = tokenizer(f" {word[0]}", add_special_tokens=False)["input_ids"]
    return [found.start() for found in whole.finditer(sentence)] == [word.start()] and len(ids) == 1
