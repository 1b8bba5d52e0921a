"""Decontamination: finds documents that share a 13-gram of words with evaluation data, as GPT-3 does.

See Brown et al. 2020, appendix C; words are those of ``word_ngrams``, without case and punctuation. An evaluation text
shorter than 13 words counts as one n-gram if it has ``min_words`` words. Shorter texts (a phrase of SST-2, a title)
occur in a corpus by chance, so they are ignored and counted.

GPT-3 ignores n-grams that more than ten documents have. Here they count, because otherwise a test that was copied
eleven times would pass. This also drops documents with stock phrases: 2.4 % of 13,130 Wikipedia articles that are no
source of SQuAD's development set share an n-gram with it.

Evaluation texts are cleaned as documents are, so that neither Unicode's forms nor control characters hide a text. Nor
do letters of other widths and shapes, ligatures, upper case and invisible characters, on either side.

A task is a folder, a glob or a file. In a folder, files count whose path contains a word such as ``dev``, ``test`` or
``validation``. Every string in them is text of the task, whatever its column; labels are numbers, or too short.
"""

import functools
import hashlib
import json
import logging
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Self, TypeAlias

import numpy as np
import numpy.typing as npt
from pydantic import Field, PositiveInt, model_validator

from cluster.artifacts.errors import StageError
from cluster.artifacts.recipe import Recipe
from cluster.corpus import evaluation_texts, word_ngrams
from cluster.corpus.clean_text import clean, readings
from cluster.corpus.document_table import I64, Mask
from cluster.corpus.filters import Cleaning, Filter
from cluster.corpus.word_ngrams import U64
from cluster.readers import read_errors
from cluster.readers.splits import refuse_artifacts
from cluster.storage import filesystem, patterns

U16 = npt.NDArray[np.uint16]
Word: TypeAlias = Annotated[str, Field(pattern="^[a-z]+$")]

logger = logging.getLogger("stillhouse")

# Bits of the bitmap per n-gram of the evaluation data: at most one lookup in sixteen needs the exact search.
_BITS_PER_NGRAM = 16


class Decontamination(Recipe):
    """The evaluation data that a corpus must not contain."""

    tasks: Annotated[tuple[str, ...], Field(min_length=1)]
    """Folders, globs or files of evaluation data, as paths or URLs."""
    files: Annotated[tuple[Word, ...], Field(min_length=1)] = ("dev", "test", "valid", "validation", "eval")
    """Words in the names of the evaluation files of a folder."""
    words: PositiveInt = 13
    """Words per n-gram."""
    min_words: PositiveInt = 8
    """Fewest words of a shorter evaluation text, which then counts as one n-gram."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.min_words > self.words:
            raise ValueError(f"min_words {self.min_words} is above words {self.words}: lower it")
        return self


@dataclass(frozen=True)
class EvaluationIndex:
    """The n-grams of the evaluation data as numbers, and their tasks."""

    tasks: tuple[str, ...]
    lengths: tuple[int, ...]
    """Lengths of the n-grams in words, ascending: 13, and the lengths of shorter texts."""
    ngrams: U64
    """``[ngrams]``, ascending, unique."""
    owners: U16
    """``[ngrams]``: index of the first of ``tasks`` that has the n-gram."""
    heads: U64
    """``[heads]``, ascending, unique: the first ``lengths[0]`` words of each n-gram."""
    counts: dict[str, dict[str, int]]
    """For each task: files, texts (distinct), ignored (too short), runs (n-grams)."""

    @classmethod
    def load(cls, recipe: Decontamination, cleaning: Cleaning | None = None) -> Self:
        """Read the evaluation data, and clean it as the documents with which it is compared.

        Raises:
            StageError: nothing at a path, no evaluation file in a folder, or a file that cannot be read.
        """
        texts: dict[str, set[str]] = {}
        files = Counter[str]()
        cleaner = Filter(cleaning or Cleaning())
        for task, file in evaluation_files(recipe):
            texts.setdefault(task, set()).update(_texts(file, cleaner))
            files[task] += 1
        found = {task: [_TextNgrams.of(text, recipe) for text in texts[task]] for task in texts}
        numbers = {task: _distinct([text.ngrams for text in found[task]]) for task in found}
        lengths = sorted({text.length for part in found.values() for text in part if len(text.ngrams)})
        if not any(texts.values()):
            raise StageError(f"decontamination: {', '.join(texts)} has no text: name other files, or leave it out")
        if not lengths:
            raise StageError(
                f"decontamination: no text of {', '.join(texts)} has {recipe.min_words} words: lower min_words"
            )
        counts = {
            task: {
                "files": files[task],
                "texts": len(part),
                "ignored": sum(not len(text.ngrams) for text in part),
                "runs": len(numbers[task]),
            }
            for task, part in found.items()
        }
        heads = _distinct([text.heads(lengths[0]) for part in found.values() for text in part])
        return cls(tuple(texts), tuple(lengths), *_merge(list(numbers.values())), heads, counts)

    def overlap(self, text: str) -> str | None:
        """The first task that shares an n-gram with a text, or None."""
        found = [first for reading in readings(text) if (first := self._first(reading)) is not None]
        return self.tasks[min(found)] if found else None

    @property
    def fingerprint(self) -> str:
        """SHA-256 over everything that decides which documents overlap."""
        digest = hashlib.sha256(repr((self.tasks, self.lengths)).encode())
        digest.update(self.ngrams.tobytes())
        digest.update(self.owners.tobytes())
        return digest.hexdigest()

    def save(self, place: filesystem.Location) -> None:
        """Write the index to one file, for other processes."""
        header = json.dumps({"tasks": self.tasks, "lengths": self.lengths, "counts": self.counts})
        with filesystem.writing(place) as path, path.open("wb") as file:
            np.savez(file, header=np.array(header), runs=self.ngrams, owners=self.owners, heads=self.heads)

    @classmethod
    def open(cls, place: filesystem.Location) -> Self:
        """Read an index that :meth:`save` wrote."""
        with filesystem.open_read(place) as file, np.load(file, allow_pickle=False) as arrays:
            header = json.loads(str(arrays["header"]))
            tasks, lengths = tuple(header["tasks"]), tuple(header["lengths"])
            return cls(tasks, lengths, arrays["runs"], arrays["owners"], arrays["heads"], header["counts"])

    def _first(self, text: str) -> int | None:
        words = word_ngrams.words(text)
        starts = self._starts(word_ngrams.ngrams(words, self.lengths[0]))
        owners = [self._owners(word_ngrams.ngrams_at(words, starts, length)) for length in self.lengths if len(starts)]
        return min((int(found.min()) for found in owners if len(found)), default=None)

    def _starts(self, heads: U64) -> I64:
        """Words of a text where an n-gram of the evaluation data may begin."""
        bits = heads & np.uint64(len(self._bitmap) * 8 - 1)
        rough = np.flatnonzero(self._bitmap[bits >> np.uint64(3)] >> (bits & np.uint64(7)).astype(np.uint8) & 1)
        return rough[_find(self.heads, heads[rough])[1]]

    def _owners(self, numbers: U64) -> U16:
        """Owners of the n-grams that are evaluation data."""
        indices, equal = _find(self.ngrams, numbers)
        owners: U16 = self.owners[indices[equal]]
        return owners

    @functools.cached_property
    def _bitmap(self) -> npt.NDArray[np.uint8]:
        """One bit for each value of the heads' low bits, packed to fit the processor's cache."""
        size = 2 ** max(3, (len(self.heads) * _BITS_PER_NGRAM).bit_length())
        bits = np.zeros(size, np.bool_)
        bits[self.heads & np.uint64(size - 1)] = True
        return np.packbits(bits, bitorder="little")


@dataclass(frozen=True)
class _TextNgrams:
    """The n-grams of one evaluation text."""

    words: U64
    length: int
    ngrams: U64
    """``[ngrams]``; empty if the text is too short."""

    @classmethod
    def of(cls, text: str, recipe: Decontamination) -> Self:
        words = word_ngrams.words(text)
        length = min(recipe.words, len(words))
        return cls(words, length, word_ngrams.ngrams(words, length) if length >= recipe.min_words else words[:0])

    def heads(self, length: int) -> U64:
        return word_ngrams.ngrams(self.words, length)[: len(self.ngrams)]


def _texts(file: filesystem.FileInfo, cleaner: Filter) -> set[str]:
    """The texts of a file, each whole and as it stays in a document that holds it."""
    with read_errors.unchanged(file):
        read = [*evaluation_texts.read(file.location)]
    if not any(read):
        logger.warning("decontamination: no text in %s", file.location)
    cleaned = {kept for text in read for kept in (clean(text), cleaner.clean(text))}
    return {reading for text in cleaned for reading in readings(text)}


def evaluation_files(recipe: Decontamination) -> list[tuple[str, filesystem.FileInfo]]:
    """Task and file of all evaluation data, in the order of the recipe's tasks, then by name.

    Raises:
        StageError: nothing at a path, or no evaluation file in a folder.
    """
    return [found for text in recipe.tasks for found in _files(text, recipe.files)]


def _files(text: str, splits: tuple[str, ...]) -> list[tuple[str, filesystem.FileInfo]]:
    pattern = patterns.pattern(text)
    place = pattern.folder
    if pattern.glob or filesystem.is_file(place):
        found = [(info.location.parent.name, info) for info in pattern.files()]
        if not found:
            raise StageError(f"decontamination task {text}: no such file or folder, and nothing matches this glob")
        return found
    if not filesystem.exists(place):
        raise StageError(f"decontamination task {text}: no such file or folder; relative paths start at {Path.cwd()}")
    below = {PurePosixPath(filesystem.relative(info.location, place) or ""): info for info in filesystem.files(place)}
    readable = {name: info for name, info in below.items() if evaluation_texts.is_readable(name)}
    chosen = [(_task(place.name, name, splits), info) for name, info in readable.items() if _is_split(name, splits)]
    # Data sets that eval.provenance makes are evaluation data.
    refuse_artifacts(f"task {text}", place, below.values(), [info for _, info in chosen], meant=("dataset",))
    if not chosen:
        there = ", ".join(sorted({name.name for name in below})[:5]) or "nothing"
        raise StageError(
            f"decontamination task {text}: no file has {', '.join(splits)} in its path and ends in one of "
            f"{', '.join(evaluation_texts.SUFFIXES)} (there is {there}): name files or a glob, or add a word of their "
            "names to decontamination.files"
        )
    return chosen


def _task(folder: str, name: PurePosixPath, splits: tuple[str, ...]) -> str:
    """The task of a file: its folders without those that name a split."""
    return "/".join([folder, *(part for part in name.parent.parts if not _is_split(PurePosixPath(part), splits))])


def _is_split(name: PurePosixPath, splits: tuple[str, ...]) -> bool:
    """Whether a word of a path names an evaluation split: ``dev-v1.1.json``, not ``latest.json``."""
    return not set(re.findall("[a-z]+", str(name).lower())).isdisjoint(splits)


def _distinct(parts: list[U64]) -> U64:
    """``numpy.unique`` of all numbers, without its slower hash table."""
    numbers = np.sort(np.concatenate([np.empty(0, np.uint64), *parts]))
    return numbers[np.append(True, numbers[1:] != numbers[:-1])] if len(numbers) else numbers


def _find(ascending: U64, wanted: U64) -> tuple[I64, Mask]:
    """Position of each number, and whether it is there."""
    indices = np.minimum(np.searchsorted(ascending, wanted), len(ascending) - 1)
    return indices, ascending[indices] == wanted


def _merge(parts: list[U64]) -> tuple[U64, U16]:
    """The distinct n-grams of all tasks, and the first task that has each."""
    owners = np.repeat(np.arange(len(parts), dtype=np.uint16), [len(part) for part in parts])
    ngrams, firsts = np.unique(np.concatenate(parts), return_index=True)
    return ngrams, owners[firsts]
