"""Encodes texts to token ids, with the same ids as the tokenizer and faster.

Most words of a corpus occur more than once. If a tokenizer never looks across a space, a text is the sequence of its
words between spaces, and a cache holds the ids of each word. The tokenizer encodes many new words as one text, joined
by a separator that it splits at first. Plain ASCII words for BERT's WordPiece, whose definition is short (Wu et al.
2016, section 4.1; Devlin et al. 2018), are split here. Tokenizers of other kinds encode whole texts. Ids are bytes:
unsigned integers of the type in which rows are stored.
"""

import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer

from cluster.tokens.rows import token_type

KEPT_WORDS = 2**19
"""Size of the cache of words, which starts over when it is full. A word takes about 200 bytes."""
KEPT_CHARACTERS = 100
"""Longest word that is cached: in some texts a word is a whole line, or the whole text."""

_SEPARATOR = "\ue000\uf8ff"
_NEW_WORDS = 4096
_PART = re.compile(r"[A-Za-z0-9]+|[^A-Za-z0-9]")
_SPACE_BESIDE_WHITE_SPACE = re.compile(r"^ |\s | \s| $")

# These work on characters, or on the text between two spaces, and never join text across a space.
_LOCAL_NORMALIZERS = {"BertNormalizer", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "StripAccents"}
_SPLIT_AT_SPACES = {"BertPreTokenizer", "WhitespaceSplit", "Whitespace"}


def load_encoder(file: Path) -> Tokenizer:
    """The tokenizer of a tokenizer.json as a plain text encoder.

    It neither truncates nor pads, and the name of a special token in a text is text: no document can write [SEP].
    """
    return _plain(Tokenizer.from_file(str(file)))


def _plain(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


class Encoder:
    """Encodes texts with one tokenizer and a cache of words."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._tokenizer = _plain(tokenizer)
        self.dtype = np.dtype(token_type(vocab_size))
        self._words = _word_cache(self._tokenizer, self.dtype)

    def encode(self, texts: Sequence[str]) -> Sequence[bytes | None]:
        """Ids of each text; None for a text on which the tokenizer fails."""
        encode_all = self._words.encode if self._words is not None else self.encode_whole
        if (ids := _try(encode_all, texts)) is not None:
            return ids
        if self._words is not None:
            self._words.forget()
        return [found[0] if (found := _try(self.encode_whole, [text])) else None for text in texts]

    def encode_whole(self, texts: Sequence[str]) -> list[bytes]:
        """Ids of each text, by the tokenizer alone."""
        return _encode(self._tokenizer, texts, self.dtype)


def _try(encode: Callable[[Sequence[str]], Iterable[bytes]], texts: Sequence[str]) -> list[bytes] | None:
    """Ids of texts, or None if the tokenizer fails. Running out of memory is not the fault of a text."""
    try:
        return list(encode(texts))
    except MemoryError:
        raise
    except BaseException as error:
        # A panic of the library is not an Exception.
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            return None
        raise


def _encode(tokenizer: Tokenizer, texts: Sequence[str], dtype: np.dtype[Any]) -> list[bytes]:
    encoded = tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
    return [np.array(encoding.ids, dtype=dtype).tobytes() for encoding in encoded]


def _word_cache(tokenizer: Tokenizer, dtype: np.dtype[Any]) -> "_WordCache | None":
    """A cache of words for this tokenizer; None unless it is known not to look across spaces."""
    definition = json.loads(tokenizer.to_str())
    added = [token for token in definition["added_tokens"] if not token["special"]]
    # NFKC turns some characters, such as the acute accent, into a space and a mark.
    if any(re.search(r"\s", unicodedata.normalize("NFKC", token["content"])) for token in added):
        return None
    normalizer, pre_tokenizer = definition["normalizer"] or {}, definition["pre_tokenizer"] or {}
    steps = normalizer.get("normalizers", [normalizer]) if normalizer else []
    normalizers, splitter = [step["type"] for step in steps], pre_tokenizer.get("type")
    if _LOCAL_NORMALIZERS.issuperset(normalizers) and splitter in _SPLIT_AT_SPACES:
        is_bert = definition["model"]["type"] == "WordPiece" and splitter == "BertPreTokenizer"
        is_plain_bert = is_bert and not added and normalizers == ["BertNormalizer"]
        word_pieces = _WordPieces(definition, dtype) if is_plain_bert else None
        return _WordCache(_NewWords(tokenizer, dtype), word_pieces, _split_at_spaces)
    if splitter == "ByteLevel" and pre_tokenizer.get("use_regex", True) and not normalizers and not added:
        return _WordCache(_NewWords(tokenizer, dtype), None, _split_before_spaces)
    return None


def _split_at_spaces(text: str) -> list[str]:
    return text.replace("\n", " ").split(" ")


def _split_before_spaces(text: str) -> list[str]:
    """Words that begin with the space before them, as byte-level tokenizers split.

    These also look at the second of two spaces, and at a space at an end: texts with such are one word.
    """
    if _SPACE_BESIDE_WHITE_SPACE.search(text):
        return [text]
    first, *others = text.split(" ")
    return [first, *[" " + word for word in others]]


class _NewWords:
    """Ids of words from the tokenizer, each as if it were a text."""

    def __init__(self, tokenizer: Tokenizer, dtype: np.dtype[Any]) -> None:
        self._tokenizer, self._dtype = tokenizer, dtype
        self._splitting = _plain(Tokenizer.from_str(tokenizer.to_str()))
        self._splitting.add_tokens([AddedToken(_SEPARATOR, normalized=False, special=False)])
        self._separator = self._splitting.token_to_id(_SEPARATOR)

    def encode(self, words: Sequence[str]) -> Iterable[bytes]:
        for start in range(0, len(words), _NEW_WORDS):
            yield from self._encode_joined(words[start : start + _NEW_WORDS])

    def _encode_joined(self, words: Sequence[str]) -> list[bytes]:
        joined = _SEPARATOR.join(words)
        if joined.count(_SEPARATOR) != len(words) - 1 or "" in words:
            return _encode(self._tokenizer, words, self._dtype)
        (whole,) = self._splitting.encode_batch_fast([joined], add_special_tokens=False)
        ids = np.array(whole.ids, dtype=np.uint32)
        cuts = np.flatnonzero(ids == self._separator)
        raw, width = ids.astype(self._dtype).tobytes(), self._dtype.itemsize
        starts, ends = [0, *((cuts + 1) * width).tolist()], [*(cuts * width).tolist(), len(raw)]
        return [raw[start:end] for start, end in zip(starts, ends, strict=True)]


class _WordPieces:
    """Ids of plain ASCII words as BERT defines them: split at punctuation, then match the longest known prefix."""

    def __init__(self, definition: dict[str, Any], dtype: np.dtype[Any]) -> None:
        model = definition["model"]
        prefix = model["continuing_subword_prefix"]
        known: dict[str, bytes] = {token: dtype.type(number).tobytes() for token, number in model["vocab"].items()}
        self._first = known
        self._next = {token[len(prefix) :]: ids for token, ids in known.items() if token.startswith(prefix)}
        self._longest = max(map(len, known))
        self._unknown, self._max_characters = known[model["unk_token"]], model["max_input_chars_per_word"]
        self._lowercase = definition["normalizer"]["lowercase"]
        self._parts: dict[str, bytes] = {}

    def encode(self, word: str) -> bytes:
        """Ids of a word of printable ASCII characters."""
        known, found = self._parts, b""
        if len(known) > KEPT_WORDS:
            self.forget()
        for part in _PART.findall(word.lower() if self._lowercase else word):
            if (ids := known.get(part)) is None:
                ids = self._encode_part(part)
                if len(part) <= KEPT_CHARACTERS:
                    known[part] = ids
            found += ids
        return found

    def forget(self) -> None:
        self._parts.clear()

    def _encode_part(self, part: str) -> bytes:
        if len(part) > self._max_characters:
            return self._unknown
        table, start, found = self._first, 0, b""
        while start < len(part):
            end = min(len(part), start + self._longest)
            while (ids := table.get(part[start:end])) is None:
                end -= 1
                if end == start:
                    return self._unknown
            found, start, table = found + ids, end, self._next
        return found


class _WordCache(dict[str, bytes | bytearray]):
    """Ids by word. A word that the tokenizer has yet to encode has an empty array, which is filled later."""

    def __init__(
        self, new_words: _NewWords, word_pieces: _WordPieces | None, split: Callable[[str], list[str]]
    ) -> None:
        super().__init__()
        self._new_words, self._word_pieces, self.split = new_words, word_pieces, split
        self._waiting: list[tuple[str, bytearray]] = []

    def encode(self, texts: Sequence[str]) -> Iterable[bytes]:
        if len(self) > KEPT_WORDS:
            self.forget()
        ids_of = self.__getitem__
        found = [list(map(ids_of, self.split(text))) for text in texts]
        self._encode_waiting()
        return map(b"".join, found)

    def forget(self) -> None:
        self.clear()
        self._waiting.clear()
        if self._word_pieces:
            self._word_pieces.forget()

    def __missing__(self, word: str) -> bytes | bytearray:
        if self._word_pieces and word.isascii() and word.isprintable():
            ids = self._word_pieces.encode(word)
            if len(word) <= KEPT_CHARACTERS:
                self[word] = ids
            return ids
        later = self[word] = bytearray()
        self._waiting.append((word, later))
        return later

    def _encode_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        for (word, later), ids in zip(waiting, self._new_words.encode([word for word, _ in waiting]), strict=True):
            later[:] = ids
            if len(word) <= KEPT_CHARACTERS:
                self[word] = ids
            else:
                del self[word]
