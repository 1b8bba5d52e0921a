"""What the stages must know of a tokenizer: loading it, its special ids, and whether two have the same vocabulary."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoTokenizer

from cluster import artifact
from cluster.stage import StageError


@dataclass(frozen=True)
class SpecialIds:
    """Ids of the special tokens; BERT calls ``cls`` and ``sep`` [CLS] and [SEP], RoBERTa <s> and </s>."""

    cls: int
    sep: int
    mask: int
    pad: int | None
    unk: int | None
    all: tuple[int, ...]
    """Every special id, ascending: these are never masked."""


def load(name: Path | str) -> Any:
    """The fast tokenizer of a model folder, an artifact, or a name on the Hugging Face Hub.

    Raises:
        StageError: there is none, it cannot be fetched, or it is not of the fast kind.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(name), trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
        raise StageError(
            f"no tokenizer at {name} ({reason}): name a folder with tokenizer.json, or a model of the hub in reach"
        ) from None
    if not tokenizer.is_fast:
        raise StageError(f"{name} has no fast tokenizer: convert it to a folder with tokenizer.json first")
    return tokenizer


def special_ids(tokenizer: Any) -> SpecialIds:
    """The special ids that masked-language training needs.

    Raises:
        StageError: the tokenizer has no token for the start, the end, or a masked word.
    """
    for role in ("cls", "sep", "mask"):
        if getattr(tokenizer, f"{role}_token_id") is None:
            raise StageError(
                f"the tokenizer {tokenizer.name_or_path or 'given'} has no {role}_token: "
                "take one of a masked language model such as BERT or RoBERTa"
            )
    return SpecialIds(
        cls=tokenizer.cls_token_id,
        sep=tokenizer.sep_token_id,
        mask=tokenizer.mask_token_id,
        pad=tokenizer.pad_token_id,
        unk=tokenizer.unk_token_id,
        all=tuple(sorted({*tokenizer.all_special_ids})),
    )


def vocab_size(tokenizer: Any) -> int:
    """Number of ids a model must know: one more than the highest, or the number of entries where that is more."""
    return int(max(len(tokenizer), max(tokenizer.get_vocab().values()) + 1))


def vocabulary_digest(tokenizer: Any) -> str:
    """SHA-256 over the vocabulary in the order of its ids, added tokens included.

    Equal for teacher and tokens means that an id stands for the same piece of text in both.
    """
    entries = sorted((number, piece) for piece, number in tokenizer.get_vocab().items())
    return artifact.digest([[number, piece] for number, piece in entries])


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' bars and load reports off the terminal: what matters of them is raised as an error."""
    verbosity, bars = transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        if bars:
            transformers.logging.enable_progress_bar()
