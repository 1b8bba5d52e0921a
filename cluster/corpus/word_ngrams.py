"""Words and runs of words as 64-bit numbers: what near-duplicates and overlaps with evaluation data are found by.

A word is a run of letters, marks and digits in lower case, and of whatever lies beyond the basic plane of Unicode (rare
scripts, emoji); everything else separates words. So ``It's``, ``it 's`` and ``(IT) S`` are the same two words, and a
text is found again in other punctuation, case or line breaks. Languages that put nothing between their words make one
word of a clause: there these numbers find only whole equal clauses.

The numbers depend on the text alone, not on the machine, the process or a version of a library: they are compared
between actors and after a restart. Everything is array arithmetic: no loop over characters or words.
"""

import functools
import unicodedata

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
    if length > len(found):
        return np.empty(0, np.uint64)
    return mix(_sums(found, length) + np.uint64(length))


def grams_at(found: U64, starts: npt.NDArray[np.int64], length: int) -> U64:
    """The runs of ``length`` words that begin at these places, those left out that would end behind the last word."""
    starts = starts[starts + length <= len(found)]
    factors = np.array([pow(_WORD_BASE, place, _MODULUS) for place in range(length)], np.uint64)
    sums: U64 = (found[starts[:, None] + np.arange(length)] * factors).sum(axis=1, dtype=np.uint64)
    return mix(sums + np.uint64(length))


def mix(numbers: U64) -> U64:
    """The finalizer of splitmix64 (Steele et al. 2014): a bijection after which every bit depends on every other."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))


def _parts(text: str) -> list[tuple[int, int]]:
    """Where to cut a text: at the last blank or line end of every part, or hard where there is none."""
    found: list[tuple[int, int]] = []
    start = 0
    while start < len(text):
        end = start + _PART
        if end < len(text):
            border = max(text.rfind(" ", start + 1, end), text.rfind("\n", start + 1, end))
            end = border if border > 0 else end
        found.append((start, end))
        start = end
    return found


def _sums(found: U64, length: int) -> U64:
    """Polynomials in the words of every run, put together from two runs of half the length."""
    if length == 1:
        return found
    half = length // 2
    front = _sums(found, half)
    sums: U64 = front[: len(front) - half] + front[half:] * np.uint64(pow(_WORD_BASE, half, _MODULUS))
    if length % 2:
        sums = sums[:-1] + found[length - 1 :] * np.uint64(pow(_WORD_BASE, length - 1, _MODULUS))
    return sums


def _words(part: str) -> U64:
    """Words as polynomials in their characters, by differences of one running sum over the whole part."""
    # In UTF-16 a character beyond the basic plane is two units, each in the table as part of a word.
    units = np.frombuffer(part.encode("utf-16-le", "surrogatepass"), np.uint16)
    values = np.zeros(len(units) + 2, np.uint64)
    values[1:-1] = _characters()[units]
    inside = values != 0
    borders = np.flatnonzero(inside[1:] != inside[:-1])
    starts, ends = borders[::2], borders[1::2]
    powers, inverses = _powers()
    sums = np.zeros(len(units) + 1, np.uint64)
    np.cumsum(values[1:-1] * powers[: len(units)], out=sums[1:])
    return mix((sums[ends] - sums[starts]) * inverses[starts])


@functools.cache
def _characters() -> U64:
    """A number for every unit of UTF-16, that of its lower case; 0 for what separates words."""
    kinds = [unicodedata.category(chr(unit)) for unit in range(2**16)]
    lower = [ord(chr(unit).lower()[0]) if kind[0] in "LMN" or kind == "Cs" else 0 for unit, kind in enumerate(kinds)]
    codes = np.array(lower, np.uint64)
    values: U64 = np.where(codes != 0, mix(codes * np.uint64(_CHARACTER_BASE)), np.uint64(0))
    return values


@functools.cache
def _powers() -> tuple[U64, U64]:
    """Powers of the base, and of its inverse, for every unit of a part."""
    bases = (_CHARACTER_BASE, pow(_CHARACTER_BASE, -1, _MODULUS))
    ones = np.ones(1, np.uint64)
    powers, inverses = (np.cumprod(np.concatenate([ones, np.full(2 * _PART, base, np.uint64)])) for base in bases)
    return powers, inverses
