"""Words and word n-grams of a text as 64-bit numbers, for near-duplicates and decontamination.

A word is a run of letters, marks, digits and characters beyond the basic plane of Unicode (rare scripts, emoji), in
lower case. So ``It's``, ``it 's`` and ``(IT) S`` are the same two words. Invisible characters inside words (soft
hyphens, word joiners, marks of direction) do not count. Languages without separators have one word per clause: for them
only equal clauses match.

The numbers depend on the text alone, not on machine, process or library version, because actors compare them, also
after a restart. The code is array arithmetic, without loops over characters or words.
"""

import functools
import unicodedata

import numpy as np
import numpy.typing as npt

U64 = npt.NDArray[np.uint64]

# Characters hashed at once: temporary arrays stay in the processor's cache.
_PART = 2**15

# Odd, and so invertible modulo 2**64; from splitmix64, and from the 64-bit LCG of Steele and Vigna.
_CHARACTER_BASE = 0x9E3779B97F4A7C15
_WORD_BASE = 0xD1342543DE82EF95
_MODULUS = 2**64


@functools.lru_cache(maxsize=1)  # several steps need the words of the same text
def words(text: str) -> U64:
    """The words of a text, ``[words]``, read-only."""
    parts = [_words(text[start:end]) for start, end in _parts(text)]
    found = np.concatenate(parts) if parts else np.empty(0, np.uint64)
    found.setflags(write=False)
    return found


def ngrams(found: U64, length: int) -> U64:
    """All n-grams of ``length`` words in order, ``[max(0, words - length + 1)]``."""
    if length > len(found):
        return np.empty(0, np.uint64)
    return splitmix64(_sums(found, length) + np.uint64(length))


def ngrams_at(found: U64, starts: npt.NDArray[np.int64], length: int) -> U64:
    """The n-grams that begin at these words, without those that would end after the last word."""
    starts = starts[starts + length <= len(found)]
    factors = np.array([pow(_WORD_BASE, place, _MODULUS) for place in range(length)], np.uint64)
    sums: U64 = (found[starts[:, None] + np.arange(length)] * factors).sum(axis=1, dtype=np.uint64)
    return splitmix64(sums + np.uint64(length))


def splitmix64(numbers: U64) -> U64:
    """The finalizer of SplitMix64 (Steele et al. 2014): a bijection; every output bit depends on every input bit."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))


def _parts(text: str) -> list[tuple[int, int]]:
    """Ranges of at most :data:`_PART` characters that end at a space or line end if they contain one."""
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
    """Polynomials in the words of each n-gram, composed of two n-grams of half the length."""
    if length == 1:
        return found
    half = length // 2
    front = _sums(found, half)
    sums: U64 = front[: len(front) - half] + front[half:] * np.uint64(pow(_WORD_BASE, half, _MODULUS))
    if length % 2:
        sums = sums[:-1] + found[length - 1 :] * np.uint64(pow(_WORD_BASE, length - 1, _MODULUS))
    return sums


def _words(part: str) -> U64:
    """Words as polynomials in their characters, from differences of one running sum over the whole part."""
    # In UTF-16 a character beyond the basic plane is two units, and the table counts both as part of a word.
    units = np.frombuffer(part.encode("utf-16-le", "surrogatepass"), np.uint16)
    if not part.isascii():
        units = units[~_invisible()[units]]
    values = np.zeros(len(units) + 2, np.uint64)
    values[1:-1] = _characters()[units]
    inside = values != 0
    borders = np.flatnonzero(inside[1:] != inside[:-1])
    starts, ends = borders[::2], borders[1::2]
    powers, inverses = _powers()
    sums = np.zeros(len(units) + 1, np.uint64)
    np.cumsum(values[1:-1] * powers[: len(units)], out=sums[1:])
    return splitmix64((sums[ends] - sums[starts]) * inverses[starts])


@functools.cache
def _characters() -> U64:
    """A number for each UTF-16 unit, that of its lower case; 0 for separators."""
    kinds = [unicodedata.category(chr(unit)) for unit in range(2**16)]
    lower = [ord(chr(unit).lower()[0]) if kind[0] in "LMN" or kind == "Cs" else 0 for unit, kind in enumerate(kinds)]
    codes = np.array(lower, np.uint64)
    values: U64 = np.where(codes != 0, splitmix64(codes * np.uint64(_CHARACTER_BASE)), np.uint64(0))
    return values


@functools.cache
def _invisible() -> npt.NDArray[np.bool_]:
    """Whether a UTF-16 unit is a format character; the zero-width space separates words."""
    return np.array([unicodedata.category(chr(unit)) == "Cf" and unit != 0x200B for unit in range(2**16)])


@functools.cache
def _powers() -> tuple[U64, U64]:
    """Powers of the base and of its inverse for each unit of a part."""
    bases = (_CHARACTER_BASE, pow(_CHARACTER_BASE, -1, _MODULUS))
    ones = np.ones(1, np.uint64)
    powers, inverses = (np.cumprod(np.concatenate([ones, np.full(2 * _PART, base, np.uint64)])) for base in bases)
    return powers, inverses
