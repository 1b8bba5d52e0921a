"""Loads tokenizers, trains BERT's WordPiece, and reads special ids and vocabularies."""

import contextlib
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.trainers import WordPieceTrainer
from transformers import AutoTokenizer, BertTokenizerFast

from cluster.artifacts import artifact, shipped
from cluster.artifacts.errors import StageError
from cluster.storage.filesystem import write_json
from cluster.telemetry.error_text import first_line

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MAX_ALPHABET = 1000
"""Characters in the vocabulary of a trained tokenizer; rarer ones become [UNK]."""
MAX_LENGTH = 512
"""Longest input that a trained tokenizer does not cut: the positions of BERT."""

TOKENIZER_CONFIG = "tokenizer_config.json"

_OF_A_CALL = ("max_length", "padding", "pad_to_multiple_of", "stride", "truncation", "truncation_strategy")
"""Values that transformers 5 takes over from the truncation and padding of the loaded file."""
_CLASSES = {"TokenizersBackend": "PreTrainedTokenizerFast"}
"""Class of transformers 5 to its name in transformers 4, which 5 knows too."""


@dataclass(frozen=True)
class SpecialIds:
    """Ids of the special tokens; BERT calls ``cls`` and ``sep`` [CLS] and [SEP], RoBERTa <s> and </s>."""

    cls: int
    sep: int
    mask: int
    pad: int | None
    unk: int | None
    all: tuple[int, ...]
    """Every special id, ascending."""


def load_tokenizer(name: Path | str) -> Any:
    """The fast tokenizer of a model folder, an artifact, a shipped teacher, or a name on the Hugging Face Hub.

    Raises:
        StageError: it does not exist, cannot be fetched, or is not fast.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(shipped.place(name)), trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise StageError(
            f"no tokenizer at {name} ({first_line(error)}): name a folder with tokenizer.json, or a model of the Hub "
            "and check the network"
        ) from None
    if not tokenizer.is_fast:
        raise StageError(f"{name} has no fast tokenizer: convert it to a folder with tokenizer.json first")
    return tokenizer


def save_tokenizer(
    tokenizer: Any, folder: Path, inputs: Sequence[str] | None = None, longest: int | None = None
) -> None:
    """Save a tokenizer so that transformers 4.57 and 5, and the library ``tokenizers``, make the same of any text.

    With a model's ``inputs`` and its ``longest`` input in tokens, the tokenizer makes no others, and says so.
    """
    # The state of the last call; users of tokenizer.json alone would be cut and padded as that was.
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    with quiet_tokenizer():
        tokenizer.save_pretrained(folder)
    path = folder / TOKENIZER_CONFIG
    values = json.loads(path.read_text(encoding="utf-8"))
    values = {name: value for name, value in values.items() if name not in _OF_A_CALL}
    values["tokenizer_class"] = _CLASSES.get(values["tokenizer_class"], values["tokenizer_class"])
    if isinstance(values.get("extra_special_tokens"), list):
        # transformers 4 has a mapping under this name; both read the list under its old one.
        values["additional_special_tokens"] = values.pop("extra_special_tokens")
    if inputs is not None:
        values["model_input_names"] = list(inputs)
    if longest is not None:
        values["model_max_length"] = min(longest, tokenizer.model_max_length)
    write_json(path, values)


def special_ids(tokenizer: Any) -> SpecialIds:
    """The special ids for masked-language training.

    Raises:
        StageError: the tokenizer has no token for the start, the end, or a masked word.
    """
    ids = {role: getattr(tokenizer, f"{role}_token_id") for role in ("cls", "sep", "mask", "pad", "unk")}
    for role in ("cls", "sep", "mask"):
        if ids[role] is None:
            raise StageError(
                f"the tokenizer {tokenizer.name_or_path or 'given'} has no {role}_token: "
                "use that of a masked language model such as BERT or RoBERTa"
            )
    return SpecialIds(**ids, all=tuple(sorted({*tokenizer.all_special_ids})))


def vocabulary_size(tokenizer: Any) -> int:
    """Embeddings that a model needs: the highest id + 1, or the number of entries if that is more."""
    return int(max(len(tokenizer), max(tokenizer.get_vocab().values()) + 1))


def vocabulary_digest(tokenizer: Any) -> str:
    """SHA-256 over all ids and their tokens: the same digest means that ids have the same meaning."""
    return artifact.digest(sorted([number, token] for token, number in tokenizer.get_vocab().items()))


@contextlib.contextmanager
def quiet_tokenizer() -> Iterator[None]:
    """Hide the progress bars and load reports of transformers; it raises what matters as an error."""
    verbosity, bars = transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        if bars:
            transformers.logging.enable_progress_bar()


def train_wordpiece(
    read_texts: Callable[[], Iterable[list[str]]], vocab_size: int, lowercase: bool, min_frequency: int
) -> Any:
    """A BERT tokenizer with a vocabulary learned from texts.

    Each call of ``read_texts`` gives all texts, in batches; there are two calls.

    Raises:
        StageError: the vocabulary is too small for the special tokens and the alphabet.
    """
    trained = Tokenizer(WordPiece(unk_token="[UNK]"))
    trained.normalizer = BertNormalizer(lowercase=lowercase)
    trained.pre_tokenizer = BertPreTokenizer()
    alphabet = _alphabet(trained, read_texts())
    continuations = [f"##{character}" for character in alphabet if _may_continue(trained, character)]
    first = [*SPECIAL_TOKENS, *continuations]
    if vocab_size < (least := len(first) + len(alphabet)):
        raise StageError(f"tokenizer.vocab_size = {vocab_size} is too small for the characters: set {least} or more")
    trainer = WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=first,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    trained.train_from_iterator(read_texts(), trainer)
    # A new tokenizer, because in the trained one the continuations are special tokens.
    return BertTokenizerFast(
        vocab=trained.get_vocab(), do_lower_case=lowercase, model_max_length=MAX_LENGTH, name_or_path=""
    )


def _alphabet(tokenizer: Tokenizer, texts: Iterable[list[str]]) -> list[str]:
    """The most frequent characters after normalization, in the order of their code points."""
    counts = Counter[str]()
    for text in itertools.chain.from_iterable(texts):
        counts.update(tokenizer.normalizer.normalize_str(text))
    ranked = sorted((-count, character) for character, count in counts.items() if not character.isspace())
    return sorted(character for _, character in ranked[:MAX_ALPHABET])


def _may_continue(tokenizer: Tokenizer, character: str) -> bool:
    """Whether a word may contain this character after its first: punctuation and Chinese characters are words."""
    word = tokenizer.normalizer.normalize_str(f"a{character}")
    return len(tokenizer.pre_tokenizer.pre_tokenize_str(word)) == 1
