"""Near-duplicates by MinHash (Broder 1997) and locality-sensitive hashing (Indyk and Motwani 1998).

A document is the set of its word n-grams. A signature has one number per band; two documents share a band with
probability ``s ** rows`` at Jaccard similarity ``s``. Documents that share a band are connected, and the first document
of each connected group stays. The default recipe (9 bands of 13 rows) finds a pair with probability 0.01 at similarity
0.6, 0.08 at 0.7, 0.40 at 0.8, 0.93 at 0.9 and 0.998 at 0.95.

datasketch provides permutations, signatures and the number of bands.
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
from cluster.corpus.document_table import I64, Mask
from cluster.corpus.word_ngrams import U64

# N-grams permuted at once: [512, permutations] of 32 bits stay in the cache, whatever the document's length.
_NGRAMS = 512

# To save memory, a sixteenth of the range of numbers is sorted at a time, and collected block by block.
_PARTS, _PART_SHIFT = 16, np.uint64(60)
_BLOCK = 2**16


class NearDuplicates(Recipe):
    """Which documents count as near-duplicates."""

    threshold: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.8
    """Jaccard similarity of two documents' word n-grams around which they count as near-duplicates."""
    permutations: Annotated[int, Field(ge=2, le=1024)] = 128
    """Most hash functions of a signature; more make the threshold sharper and cost time."""
    words: PositiveInt = 5
    """Words per n-gram."""
    seed: NonNegativeInt = 1
    """Seed of the hash functions."""

    @model_validator(mode="after")
    def _has_bands(self) -> Self:
        bands(self)
        return self


@functools.cache
def bands(recipe: NearDuplicates) -> tuple[int, int]:
    """Number of bands and rows per band with the fewest false positives and negatives at the threshold.

    Raises:
        ValueError: too few permutations for two bands at this threshold.
    """
    try:
        index = MinHashLSH(threshold=recipe.threshold, num_perm=recipe.permutations)
    except ValueError:
        raise ValueError(
            f"{recipe.permutations} permutations are too few for two bands at threshold {recipe.threshold}: "
            "raise permutations"
        ) from None
    return index.b, index.r


def signature(text: str, recipe: NearDuplicates) -> U64:
    """One number per band, ``[bands]``; documents that share one are probably near-duplicates."""
    num_bands, num_rows = bands(recipe)
    table = minhash(text, recipe).reshape(num_bands, num_rows).astype(np.uint64)
    # A band is the n-gram of its rows.
    return word_ngrams.ngrams(table.reshape(-1), num_rows)[::num_rows]


def minhash(text: str, recipe: NearDuplicates) -> npt.NDArray[np.uint32]:
    """The smallest n-gram under each permutation, ``[bands * rows]``."""
    sketch = _empty(recipe).copy()
    ngrams = _ngrams(text, recipe.words)
    for start in range(0, len(ngrams), _NGRAMS):
        sketch.update_batch([ngrams[start : start + _NGRAMS]])
    return np.asarray(sketch.hashvalues, np.uint32)


def near_duplicates(columns: Iterable[U64], eligible: Mask) -> Mask:
    """Documents to drop, ``[documents]``: all of each connected group except the first.

    ``columns`` are the bands, ``[documents]`` each, in any order, one in memory at a time. Only ``eligible`` documents
    connect and are marked. Needs 16 bytes per document in addition to the column, at most 22.
    """
    parents = np.arange(len(eligible), dtype=np.int64)
    for column in columns:
        for ones, others in _links(column, eligible):
            _unite(parents, ones, others)
    marked: Mask = parents != np.arange(len(eligible))
    return marked


@functools.cache
def _empty(recipe: NearDuplicates) -> MinHash:
    """An empty sketch, whose copies share the permutations; it takes arrays of numbers, which are their own hashes."""
    num_bands, num_rows = bands(recipe)
    return MinHash(num_perm=num_bands * num_rows, seed=recipe.seed, hashfunc=lambda numbers: numbers, scheme="affine32")


def _ngrams(text: str, length: int) -> npt.NDArray[np.uint32]:
    """The word n-grams; a shorter text is one n-gram, and a text without words equals only itself."""
    found = word_ngrams.words(text)
    if not len(found):
        return np.array([xxhash.xxh32_intdigest(text.encode())], np.uint32)
    return word_ngrams.ngrams(found, min(length, len(found))).astype(np.uint32)


def _links(column: U64, eligible: Mask) -> Iterator[tuple[I64, I64]]:
    """Pairs of eligible documents with equal numbers: the first of each set of equals, and each of the set."""
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
    """Eligible documents whose number is in one part of the range."""
    found: list[I64] = []
    for start in range(0, len(column), _BLOCK):
        block = slice(start, start + _BLOCK)
        inside = (column[block] >> _PART_SHIFT == part) & eligible[block]
        found.append(np.flatnonzero(inside) + start)
    return np.concatenate(found) if found else np.empty(0, np.int64)


def _unite(parents: I64, ones: I64, others: I64) -> None:
    """Union of pairs of documents. A parent is an earlier document of its group, so a root is the group's first.

    Each round puts every root with an earlier neighbor under the earliest one, which at least halves the roots.
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
    """Halve the paths until each has one step: a chain of a million documents takes twenty rounds."""
    while True:
        above = parents[parents[places]]
        if np.array_equal(above, parents[places]):
            return
        parents[places] = above
