"""Texts to token ids, faster than one call of the tokenizer for each text and the same ids.

Most words of a corpus have been seen before. Where a tokenizer never looks across a blank, a text is the sequence of
its words between blanks, and the ids of every word are kept. The words that are new are given to the tokenizer, many
in one text, between separators that it cuts at before it does anything else; for BERT's WordPiece, whose definition
is short (Wu et al. 2016, section 4.1; Devlin et al. 2018), plain ASCII words are cut up here. Tokenizers of other
kinds get whole texts. Ids travel as bytes: each an unsigned integer of the type in which rows are stored.
"""

import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer

from cluster.tokens.rows import token_type

KEPT_WORDS = 2**19
"""Words whose ids are kept; when there are more, all are forgotten. Some 200 bytes each."""
KEPT_CHARACTERS = 100
"""Longer words are not kept: in some texts a whole line, or all of it, is one."""

_SEPARATOR = "\ue000\uf8ff"
_NEW_WORDS = 4096
_PART = re.compile(r"[A-Za-z0-9]+|[^A-Za-z0-9]")
_BLANK_BESIDE_SPACE = re.compile(r"^ |\s | \s| $")

# Each of these works on characters, or on what lies between two blanks, and never joins across one.
_BLIND_TO_NEIGHBOURS = {"BertNormalizer", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "StripAccents"}
_SPLIT_AT_BLANKS = {"BertPreTokenizer", "WhitespaceSplit", "Whitespace"}


class EncodingError(ValueError):
    """A tokenizer fails on a text."""


def load_encoder(file: Path) -> Tokenizer:
    """The tokenizer of a tokenizer.json as a plain text encoder.

    It neither truncates nor pads, and the name of a special token inside a text is text: no document can write [SEP].
    """
    return _plain(Tokenizer.from_file(str(file)))


def _plain(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


class Encoder:
    """Token ids of texts with one tokenizer, remembering what it has seen."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._tokenizer = _plain(tokenizer)
        self.dtype = np.dtype(token_type(vocab_size))
        self._words = _words(self._tokenizer, self.dtype)

    def encode(self, texts: Sequence[str]) -> list[bytes | None]:
        """Ids of each text; None for a text on which the tokenizer fails."""
        try:
            return list(self._words.encode(texts)) if self._words else self._whole(texts)
        except BaseException as error:
            if not _is_failure(error):
                raise
        if self._words:
            self._words.forget()
        return [self._alone(text) for text in texts]

    def _whole(self, texts: Sequence[str]) -> list[bytes | None]:
        return [*_each(self._tokenizer, texts, self.dtype)]

    def _alone(self, text: str) -> bytes | None:
        try:
            return self._whole([text])[0]
        except BaseException as error:
            if not _is_failure(error):
                raise
            return None


def _each(tokenizer: Tokenizer, texts: Sequence[str], dtype: np.dtype[Any]) -> list[bytes]:
    """Ids of each text by the library alone."""
    encoded = tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
    return [np.array(encoding.ids, dtype=dtype).tobytes() for encoding in encoded]


def _is_failure(error: BaseException) -> bool:
    """Whether the tokenizer gave up; a panic of the library is no Exception."""
    if isinstance(error, MemoryError):  # says nothing of the text: elsewhere it would stay
        return False
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def _words(tokenizer: Tokenizer, dtype: np.dtype[Any]) -> "_Words | None":
    """What remembers words for this tokenizer; None where it looks across blanks, or nobody knows."""
    definition = json.loads(tokenizer.to_str())
    added = [token for token in definition["added_tokens"] if not token["special"]]
    # NFKC makes a blank and a mark of some characters, such as the acute accent.
    if any(re.search(r"\s", unicodedata.normalize("NFKC", token["content"])) for token in added):
        return None
    normalizers, pre_tokenizer = _steps(definition["normalizer"]), definition["pre_tokenizer"] or {}
    if {step["type"] for step in normalizers} <= _BLIND_TO_NEIGHBOURS and pre_tokenizer.get("type") in _SPLIT_AT_BLANKS:
        bert = definition["model"]["type"] == "WordPiece" and pre_tokenizer["type"] == "BertPreTokenizer"
        plain = bert and not added and [step["type"] for step in normalizers] == ["BertNormalizer"]
        pieces = _WordPieces(definition, dtype) if plain else None
        return _Words(_NewWords(tokenizer, dtype), pieces)
    byte_level = pre_tokenizer.get("type") == "ByteLevel" and pre_tokenizer.get("use_regex", True)
    if byte_level and not normalizers and not added:
        return _LedWords(_NewWords(tokenizer, dtype), None)
    return None


def _steps(normalizer: dict[str, Any] | None) -> list[dict[str, Any]]:
    if normalizer is None:
        return []
    return list(normalizer["normalizers"]) if normalizer["type"] == "Sequence" else [normalizer]


class _NewWords:
    """Ids of words from the tokenizer itself, each as if it were alone."""

    def __init__(self, tokenizer: Tokenizer, dtype: np.dtype[Any]) -> None:
        self._alone, self._dtype = tokenizer, dtype
        self._cutting = _plain(Tokenizer.from_str(tokenizer.to_str()))
        self._cutting.add_tokens([AddedToken(_SEPARATOR, normalized=False, special=False)])
        self._separator = self._cutting.token_to_id(_SEPARATOR)

    def encode(self, words: Sequence[str]) -> Iterable[bytes]:
        for start in range(0, len(words), _NEW_WORDS):
            yield from self._cut(words[start : start + _NEW_WORDS])

    def _cut(self, words: Sequence[str]) -> list[bytes]:
        joined = _SEPARATOR.join(words)
        if joined.count(_SEPARATOR) != len(words) - 1 or "" in words:
            return _each(self._alone, words, self._dtype)
        (whole,) = self._cutting.encode_batch_fast([joined], add_special_tokens=False)
        ids = np.array(whole.ids, dtype=np.uint32)
        cuts = np.flatnonzero(ids == self._separator)
        raw, width = ids.astype(self._dtype).tobytes(), self._dtype.itemsize
        starts, ends = [0, *((cuts + 1) * width).tolist()], [*(cuts * width).tolist(), len(raw)]
        return [raw[start:end] for start, end in zip(starts, ends, strict=True)]


class _WordPieces:
    """Ids of plain ASCII words by BERT's definition: cut at punctuation, then the longest known piece, and again."""

    def __init__(self, definition: dict[str, Any], dtype: np.dtype[Any]) -> None:
        model = definition["model"]
        prefix = model["continuing_subword_prefix"]
        known: dict[str, bytes] = {piece: dtype.type(number).tobytes() for piece, number in model["vocab"].items()}
        self._first = known
        self._next = {piece[len(prefix) :]: ids for piece, ids in known.items() if piece.startswith(prefix)}
        self._longest = max(map(len, known))
        self._unknown, self._most = known[model["unk_token"]], model["max_input_chars_per_word"]
        self._lowercase = definition["normalizer"]["lowercase"]
        self._parts: dict[str, bytes] = {}

    def encode(self, word: str) -> bytes:
        """Ids of a word of printable ASCII characters."""
        known, found = self._parts, b""
        if len(known) > KEPT_WORDS:
            self.forget()
        for part in _PART.findall(word.lower() if self._lowercase else word):
            if (ids := known.get(part)) is None:
                ids = self._pieces(part)
                if len(part) <= KEPT_CHARACTERS:
                    known[part] = ids
            found += ids
        return found

    def forget(self) -> None:
        self._parts.clear()

    def _pieces(self, part: str) -> bytes:
        if len(part) > self._most:
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


class _Known(dict[str, bytes | bytearray]):
    """Word to ids. A word that is not there and must wait for the tokenizer gets an empty array, filled later."""

    def __init__(self, new_words: _NewWords, pieces: _WordPieces | None) -> None:
        super().__init__()
        self._new_words, self._pieces = new_words, pieces
        self._waiting: list[tuple[str, bytearray]] = []

    def __missing__(self, word: str) -> bytes | bytearray:
        if self._pieces and word.isascii() and word.isprintable():
            ids = self._pieces.encode(word)
            if len(word) <= KEPT_CHARACTERS:
                self[word] = ids
            return ids
        later = self[word] = bytearray()
        self._waiting.append((word, later))
        return later

    def settle(self) -> None:
        """Fill what waits."""
        waiting, self._waiting = self._waiting, []
        for (word, later), ids in zip(waiting, self._new_words.encode([word for word, _ in waiting]), strict=True):
            later[:] = ids
            if len(word) <= KEPT_CHARACTERS:
                self[word] = ids
            else:
                del self[word]

    def forget(self) -> None:
        self.clear()
        self._waiting.clear()
        if self._pieces:
            self._pieces.forget()


class _Words:
    """Texts as words between blanks or line ends."""

    def __init__(self, new_words: _NewWords, pieces: _WordPieces | None) -> None:
        self._known = _Known(new_words, pieces)

    def encode(self, texts: Sequence[str]) -> Iterable[bytes]:
        if len(self._known) > KEPT_WORDS:
            self.forget()
        known = self._known.__getitem__
        found = [list(map(known, self._split(text))) for text in texts]
        self._known.settle()
        return map(b"".join, found)

    def forget(self) -> None:
        self._known.forget()

    def _split(self, text: str) -> list[str]:
        return text.replace("\n", " ").split(" ")


class _LedWords(_Words):
    """Texts as words that each begin with the blank before them, as byte-level tokenizers see them.

    They also look at the second of two blanks, and at a blank at an end: texts with such are words of their own.
    """

    def _split(self, text: str) -> list[str]:
        if _BLANK_BESIDE_SPACE.search(text):
            return [text]
        first, *others = text.split(" ")
        return [first, *[" " + word for word in others]]
