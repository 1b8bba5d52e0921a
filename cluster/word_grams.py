"""Words and runs of words as 64-bit numbers: what near-duplicates and overlaps with evaluation data are found by.

A word is a run of letters, marks and digits in lower case; everything else separates words. So ``It's``, ``it 's``
and ``(IT) S`` are the same two words, and a text is found again in other punctuation, case or line breaks. Languages
that put nothing between their words make one word of a clause: there these numbers find only whole equal clauses.

The numbers depend on the text alone, not on the machine, the process or a version of a library: they are compared
between actors and after a restart. Everything is array arithmetic: no loop over characters or words.
"""

import functools
import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

U64 = npt.NDArray[np.uint64]

# Texts are taken in parts of so many characters: temporary arrays then stay small, and in the cache.
_PART = 2**15

# Odd, so that they have an inverse modulo 2**64; the one of splitmix64, and of the 64-bit LCG of Steele and Vigna.
_CHARACTER_BASE = 0x9E3779B97F4A7C15
_WORD_BASE = 0xD1342543DE82EF95
_MODULUS = 2**64


@functools.lru_cache(maxsize=1)
def words(text: str) -> U64:
    """The words of a text, ``[words]``. The last text is remembered: several steps ask for those of the same one."""
    parts = [_words(text[start:end]) for start, end in _parts(text)]
    found = np.concatenate(parts) if parts else np.empty(0, np.uint64)
    found.setflags(write=False)
    return found


def grams(found: U64, length: int) -> U64:
    """Every run of ``length`` words in order, ``[max(0, words - length + 1)]``."""
    return next(grams_of_lengths(found, (length,)))


def grams_of_lengths(found: U64, lengths: Sequence[int]) -> Iterator[U64]:
    """:func:`grams` of several lengths, shortest first, for little more than the price of the longest."""
    total = np.zeros(len(found), np.uint64)
    factor = 1
    for offset in range(max(lengths, default=0)):
        count = max(0, len(found) - offset)
        total = total[:count] + found[offset:] * np.uint64(factor)
        factor = factor * _WORD_BASE % _MODULUS
        if offset + 1 in lengths:
            yield mix(total + np.uint64(offset + 1))


def mix(numbers: U64) -> U64:
    """The finalizer of splitmix64 (Steele et al. 2014): a bijection after which every bit depends on every other."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))


def _parts(text: str) -> list[tuple[int, int]]:
    """Where to cut a text: at the last blank of every part, or hard where there is none."""
    found: list[tuple[int, int]] = []
    start = 0
    while start < len(text):
        end = start + _PART
        if end < len(text) and (blank := text.rfind(" ", start + 1, end)) > 0:
            end = blank
        found.append((start, end))
        start = end
    return found


def _words(part: str) -> U64:
    """Words as polynomials in their characters, by differences of one running sum over the whole part."""
    codes = np.frombuffer(part.encode("utf-32-le", "surrogatepass"), np.uint32)
    values = _characters()[np.minimum(codes, 0xFFFF)]
    inside = values != 0
    borders = np.flatnonzero(np.diff(inside.view(np.int8), prepend=0, append=0))
    starts, ends = borders[::2], borders[1::2]
    powers, inverses = _powers()
    # Astral characters are all one to the table of the basic plane, so each brings its own number along.
    if len(codes) and codes.max() > 0xFFFF:
        values = np.where(codes > 0xFFFF, mix(codes.astype(np.uint64)), values)
    sums = np.zeros(len(codes) + 1, np.uint64)
    np.cumsum(values * powers[: len(codes)], out=sums[1:])
    return mix((sums[ends] - sums[starts]) * inverses[starts])


@functools.cache
def _characters() -> U64:
    """A number for every character of the basic plane, that of its lower case; 0 for what separates words."""
    kept = [chr(code) if unicodedata.category(chr(code))[0] in "LMN" else "" for code in range(2**16)]
    lower = np.array([ord(character.lower()[0]) if character else 0 for character in kept], np.uint64)
    values = np.where(lower != 0, mix(lower * np.uint64(_CHARACTER_BASE)), np.uint64(0))
    values[0xFFFF] = 1  # stands for all characters beyond the plane; itself it is none
    return values


@functools.cache
def _powers() -> tuple[U64, U64]:
    """Powers of the base, and of its inverse, for every place of a part."""
    bases = (_CHARACTER_BASE, pow(_CHARACTER_BASE, -1, _MODULUS))
    ones = np.ones(1, np.uint64)
    powers, inverses = (np.cumprod(np.concatenate([ones, np.full(_PART, base, np.uint64)])) for base in bases)
    return powers, inverses
