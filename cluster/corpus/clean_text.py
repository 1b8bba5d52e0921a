"""The form of every text in a corpus, and of every text that is compared with one.

NFC with Unix line endings, spaces for tabs and for control characters that separate words, and no other control
characters, lone surrogates, byte order marks or outer white space.
"""

import re
import unicodedata

# Control characters (newline stays), lone surrogates, which UTF-8 cannot hold, and the byte order mark.
_UNWANTED = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufeff]")
# Of these, white space: vertical tab, form feed, the four separators, next line.
_SEPARATORS = frozenset("\x09\x0b\x0c\x1c\x1d\x1e\x1f\x85")
_ASCII_UNWANTED = bytes({*range(0x20), 0x7F} - {0x0A})


def clean(text: str) -> str:
    """The text in NFC, with Unix line endings, spaces for tabs, and no control characters or outer white space."""
    if text.isascii():
        raw = text.encode()
        if len(raw.translate(None, _ASCII_UNWANTED)) == len(raw):
            return text.strip()
    return normalized(text).strip()


def normalized(text: str) -> str:
    """The text in the characters of clean text, with its outer white space."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\t", " ")
    return unicodedata.normalize("NFC", _UNWANTED.sub(_replacement, text))


def _replacement(unwanted: re.Match[str]) -> str:
    return " " if unwanted[0] in _SEPARATORS else ""
