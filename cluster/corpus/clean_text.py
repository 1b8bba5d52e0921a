"""The form of every text in a corpus, and of every text that is compared with one.

NFC with Unix line endings, spaces for tabs and for control characters that separate words, and no other control
characters, lone surrogates, byte order marks or outer white space.
"""

import functools
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


# Invisible, though no format characters (DerivedCoreProperties.txt, Default_Ignorable_Code_Point).
_INVISIBLE = "\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u3164\uffa0"
_VARIANTS = range(0xFE00, 0xFE10)
_TAGS = range(0xE0000, 0xE1000)
_APOSTROPHES = "\u02bb\u02bc"
"""Apostrophes that Unicode calls letters."""
_ZERO_WIDTH_SPACE = "\u200b"


def readings(text: str) -> list[str]:
    """The text as it is compared with others, where more must not matter than in clean text.

    Letters of other widths and shapes (ligatures, full width, bold of mathematics) become usual ones without case, as
    in NFKC, and invisible characters go. All other characters stay. There are two readings of a text with zero-width
    spaces, which may stand between words or inside of them.
    """
    if text.isascii():
        return [text]
    if (found := text.translate(_folds())) != text:
        found = unicodedata.normalize("NFC", found)
    return [found, found.replace(_ZERO_WIDTH_SPACE, "")] if _ZERO_WIDTH_SPACE in found else [found]


class _Folds(dict[int, str]):
    """What each character becomes, filled as characters occur."""

    def __missing__(self, code: int) -> str:
        letter = chr(code)
        if letter in _INVISIBLE or code in _VARIANTS or code in _TAGS:
            found = ""
        elif unicodedata.category(letter)[0] in "LN":
            folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", letter).casefold())
            found = "".join("'" if each in _APOSTROPHES else each for each in folded)
        else:
            found = letter
        self[code] = found
        return found


@functools.cache
def _folds() -> _Folds:
    return _Folds()
