"""Near-duplicates by MinHash (Broder 1997) and locality-sensitive hashing (Indyk and Motwani 1998).

A document is the set of its runs of words. A signature has one number per band; two documents share a band with
probability ``s ** rows`` at Jaccard similarity ``s``. Documents that share a band are connected, and of every connected
group the first in order stays. With the default recipe (9 bands of 13 rows) a pair is found with probability 0.01 at
similarity 0.6, 0.08 at 0.7, 0.40 at 0.8, 0.93 at 0.9 and 0.998 at 0.95.

Permutations, signatures and the number of bands are datasketch's.
"""

import functools
from collections.abc import Iterable, Iterator
from typing import Annotated, Self

import numpy as np
import numpy.typing as npt
import xxhash
from datasketch import MinHash, MinHashLSH
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from cluster.artifacts.recipe import Recipe
from cluster.corpus import word_ngrams

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

# Runs of words permuted at once: [512, permutations] of 32 bits stay in the cache, whatever the document's length.
_RUNS = 512

# A sixteenth of all numbers is sorted at a time, and looked for block by block: that needs little memory of its own,
# also where everything is a duplicate.
_PARTS, _PART_SHIFT = 16, np.uint64(60)
_BLOCK = 2**16


class NearDuplicates(Recipe):
    """What counts as nearly the same document."""

    threshold: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.8  # Jaccard similarity of the sets of runs of words
    permutations: Annotated[int, Field(ge=2, le=1024)] = 128  # at most so many; more make the threshold sharper
    words: PositiveInt = 5  # in a run
    seed: NonNegativeInt = 1

    @model_validator(mode="after")
    def _has_bands(self) -> Self:
        bands(self)
        return self


@functools.cache
def bands(recipe: NearDuplicates) -> tuple[int, int]:
    """Bands, and rows in each, that miss and mistake the least around the threshold.

    Raises:
        ValueError: so few permutations for so high or low a threshold that there is only one band.
    """
    try:
        index = MinHashLSH(threshold=recipe.threshold, num_perm=recipe.permutations)
    except ValueError:
        raise ValueError(
            f"{recipe.permutations} permutations make no two bands at threshold {recipe.threshold}: raise permutations"
        ) from None
    return index.b, index.r


def signature(text: str, recipe: NearDuplicates) -> U64:
    """One number per band, ``[bands]``; documents that share one are near-duplicates, most probably."""
    num_bands, num_rows = bands(recipe)
    table = minhash(text, recipe).reshape(num_bands, num_rows).astype(np.uint64)
    # Of all runs of rows, those that begin where a band does.
    return word_ngrams.grams(table.reshape(-1), num_rows)[::num_rows]


def minhash(text: str, recipe: NearDuplicates) -> npt.NDArray[np.uint32]:
    """The smallest number of any run under each permutation, ``[bands * rows]``."""
    sketch = _empty(recipe).copy()
    runs = _runs(text, recipe.words)
    for start in range(0, len(runs), _RUNS):
        sketch.update_batch([runs[start : start + _RUNS]])
    return np.asarray(sketch.hashvalues, np.uint32)


def repeated(columns: Iterable[U64], eligible: Mask) -> Mask:
    """Which documents go: all of a connected group but the first, ``[documents]``.

    ``columns`` are the bands, ``[documents]`` each, one held at a time and in any order; documents that are not
    ``eligible`` connect nothing and are not marked. Beside the column it needs 16 bytes a document, 22 at its worst.
    """
    parents = np.arange(len(eligible), dtype=np.int64)
    for column in columns:
        for ones, others in _links(column, eligible):
            _unite(parents, ones, others)
    marked: Mask = parents != np.arange(len(eligible))
    return marked


@functools.cache
def _empty(recipe: NearDuplicates) -> MinHash:
    """A sketch of nothing, whose copies share the permutations; values come as arrays and hash to themselves."""
    num_bands, num_rows = bands(recipe)
    return MinHash(num_perm=num_bands * num_rows, seed=recipe.seed, hashfunc=lambda runs: runs, scheme="affine32")


def _runs(text: str, length: int) -> npt.NDArray[np.uint32]:
    """The set of runs of words; a shorter text is one run, and one without words is like its equals only."""
    found = word_ngrams.words(text)
    if not len(found):
        return np.array([xxhash.xxh32_intdigest(text.encode())], np.uint32)
    return word_ngrams.grams(found, min(length, len(found))).astype(np.uint32)


def _links(column: U64, eligible: Mask) -> Iterator[tuple[I64, I64]]:
    """Pairs of eligible documents with equal numbers: one of them, and each of them."""
    for part in range(_PARTS):
        places = _places(column, eligible, part)
        values = column[places]
        order = np.argsort(values)
        values, places = values[order], places[order]
        again = values[1:] == values[:-1]
        if again.any():
            shared = np.append(again, False) | np.append(False, again)
            values, places = values[shared], places[shared]
            starts = np.flatnonzero(np.append(True, values[1:] != values[:-1]))
            yield np.repeat(places[starts], np.diff(starts, append=len(values))), places


def _places(column: U64, eligible: Mask, part: int) -> I64:
    """Eligible documents whose number lies in one part of all numbers."""
    found: list[I64] = []
    for start in range(0, len(column), _BLOCK):
        block = slice(start, start + _BLOCK)
        inside = (column[block] >> _PART_SHIFT == part) & eligible[block]
        found.append(np.flatnonzero(inside) + start)
    return np.concatenate(found) if found else np.empty(0, np.int64)


def _unite(parents: I64, ones: I64, others: I64) -> None:
    """Connect pairs of documents. A parent is an earlier document of the same group, so a root is a group's first.

    Every round hangs each root that has an earlier neighbour under the earliest of them; at least every second root
    goes, so rounds are few.
    """
    while True:
        ones, others = _root(parents, ones), _root(parents, others)
        apart = ones != others
        if not apart.any():
            return
        ones, others = ones[apart], others[apart]
        lower, higher = np.minimum(ones, others), np.maximum(ones, others)
        np.minimum.at(parents, higher, lower)
        _shorten(parents, higher)


def _root(parents: I64, places: I64) -> I64:
    while True:
        above = parents[places]
        if np.array_equal(above, places):
            return places
        places = above


def _shorten(parents: I64, places: I64) -> None:
    """Halve paths until they are one step long: a chain of a million documents takes twenty rounds."""
    while True:
        above = parents[parents[places]]
        if np.array_equal(above, parents[places]):
            return
        parents[places] = above
