"""Training a WordPiece vocabulary, the same one every time.

The trainer of the tokenizers library numbers the continuations of single characters (``##e``) in the order of a hash
map, so two runs give two vocabularies. Here the characters are counted first and handed to it in a fixed order.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.trainers import WordPieceTrainer
from transformers import BertTokenizerFast

from cluster.stage import StageError

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MAX_ALPHABET = 1000
MAX_LENGTH = 512
"""Longest input the saved tokenizer lets through uncut: the positions of a BERT."""


def train(
    read_texts: Callable[[], Iterable[list[str]]], *, vocab_size: int, lowercase: bool, min_frequency: int
) -> Any:
    """A BERT tokenizer with a vocabulary learned from texts.

    ``read_texts`` gives all texts, in batches, each time it is called (twice). Characters rarer than the
    thousandth are left to [UNK].

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
        raise StageError(f"tokenizer.vocab_size = {vocab_size} holds not even the characters: set {least} or more")
    trainer = WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=first,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    trained.train_from_iterator(read_texts(), trainer)
    # A new tokenizer, because in the trained one the continuations count as special tokens.
    return BertTokenizerFast(
        vocab=trained.get_vocab(), do_lower_case=lowercase, model_max_length=MAX_LENGTH, name_or_path=""
    )


def _alphabet(tokenizer: Tokenizer, texts: Iterable[list[str]]) -> list[str]:
    """The most frequent characters after normalisation, in the order of their code points."""
    counts = Counter[str]()
    for text in _each(texts):
        counts.update(tokenizer.normalizer.normalize_str(text))
    known = [(-count, character) for character, count in counts.items() if not character.isspace()]
    return sorted(character for _, character in sorted(known)[:MAX_ALPHABET])


def _may_continue(tokenizer: Tokenizer, character: str) -> bool:
    """Whether a word may go on with this character: punctuation and Chinese characters are words of their own."""
    word = tokenizer.normalizer.normalize_str(f"a{character}")
    return len(tokenizer.pre_tokenizer.pre_tokenize_str(word)) == 1


def _each(texts: Iterable[list[str]]) -> Iterator[str]:
    for batch in texts:
        yield from batch
