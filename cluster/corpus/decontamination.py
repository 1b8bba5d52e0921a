"""Documents that overlap evaluation data, found by runs of 13 words, so that scores can be trusted.

A document that shares a run of 13 words with a text of a named task is left out, as in GPT-3 (Brown et al. 2020,
appendix C); words are those of ``word_ngrams``, without case and punctuation. A shorter evaluation text
counts whole when it has ``min_words`` words; what is shorter still (a phrase of SST-2, a title) would be found by
chance all over a corpus, and is counted as ignored.

GPT-3 lets runs pass that more than ten documents have. Here they count, because a test that was copied eleven times
would pass as well. The price is documents with stock phrases: of 13,130 Wikipedia articles, none of which SQuAD's
development set was made of, 2.4 % share a run with it, four fifths of them only runs that more than two articles have,
such as a census bureau's.

A task is a folder, a glob or a file. Of a folder, files count whose name, or the name of a folder they lie in, says
``dev``, ``test`` or ``validation``; every string in them is text of the task, whatever its column is called. Labels are
numbers, or too short.
"""

import functools
import hashlib
import json
import re
from collections import Counter
from dataclasses import dataclass
from glob import has_magic
from pathlib import Path, PurePosixPath
from typing import Annotated, Self, TypeAlias

import numpy as np
import numpy.typing as npt
from pydantic import Field, PositiveInt, model_validator

from cluster.artifacts.errors import StageError
from cluster.artifacts.recipe import Recipe
from cluster.corpus import evaluation_texts, word_ngrams
from cluster.storage import filesystem

U64 = npt.NDArray[np.uint64]
U16 = npt.NDArray[np.uint16]
Word: TypeAlias = Annotated[str, Field(pattern="^[a-z]+$")]

# Bits of the rough table for each run of the evaluation data: at most one lookup in sixteen goes on to the exact one.
_BITS_PER_RUN = 16


class Decontamination(Recipe):
    """Which evaluation data a corpus must not contain."""

    tasks: Annotated[tuple[str, ...], Field(min_length=1)]  # folders, globs or files, by path or URL
    files: Annotated[tuple[Word, ...], Field(min_length=1)] = ("dev", "test", "valid", "validation", "eval")
    words: PositiveInt = 13  # in a run
    min_words: PositiveInt = 8  # of a shorter evaluation text that counts whole

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.min_words > self.words:
            raise ValueError(f"min_words {self.min_words} is above words {self.words}: lower it")
        return self


@dataclass(frozen=True)
class TaskFile:
    """A file of evaluation data and the task it belongs to."""

    task: str
    info: filesystem.FileInfo


@dataclass(frozen=True)
class Evaluation:
    """What documents are compared with: runs of words as numbers, and whose they are."""

    tasks: tuple[str, ...]
    lengths: tuple[int, ...]
    """How many words the runs have: 13, and as many as the shorter texts that count whole."""
    runs: U64
    """``[runs]``, ascending, each once."""
    owners: U16
    """``[runs]``: which of ``tasks``; the first where several share a run."""
    heads: U64
    """``[heads]``, ascending: the first ``lengths[0]`` words of every run."""
    counts: dict[str, dict[str, int]]
    """What was read for each task: files, texts (each once), ignored (texts that are too short), runs."""

    @classmethod
    def load(cls, recipe: Decontamination) -> Self:
        """Read the evaluation data.

        Raises:
            StageError: nothing there, no evaluation file in a folder, or a file that cannot be read.
        """
        texts: dict[str, set[str]] = {}
        files = Counter[str]()
        for file in listing(recipe):
            texts.setdefault(file.task, set()).update(evaluation_texts.read(file.info.location))
            files[file.task] += 1
        found = {task: [_Runs.of(text, recipe) for text in texts[task]] for task in texts}
        numbers = {task: _distinct([runs.numbers for runs in found[task]]) for task in found}
        lengths = sorted({runs.length for part in found.values() for runs in part if len(runs.numbers)})
        if not lengths:
            raise StageError(
                f"decontamination: no text of {', '.join(texts)} has {recipe.min_words} words: lower min_words"
            )
        counts = {
            task: {
                "files": files[task],
                "texts": len(part),
                "ignored": sum(not len(runs.numbers) for runs in part),
                "runs": len(numbers[task]),
            }
            for task, part in found.items()
        }
        heads = _distinct([runs.heads(lengths[0]) for part in found.values() for runs in part])
        return cls(tuple(texts), tuple(lengths), *_merge(list(numbers.values())), heads, counts)

    def overlap(self, text: str) -> str | None:
        """The first task that shares a run of words with a text; None where no task does."""
        words = word_ngrams.words(text)
        starts = self._starts(word_ngrams.grams(words, self.lengths[0]))
        owners = [self._owners(word_ngrams.grams_at(words, starts, length)) for length in self.lengths if len(starts)]
        first = min((int(found.min()) for found in owners if len(found)), default=None)
        return None if first is None else self.tasks[first]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything that decides which documents overlap."""
        digest = hashlib.sha256(repr((self.tasks, self.lengths)).encode())
        digest.update(self.runs.tobytes())
        digest.update(self.owners.tobytes())
        return digest.hexdigest()

    def save(self, place: filesystem.Location) -> None:
        """Write it as one file, for processes that did not load it."""
        header = json.dumps({"tasks": self.tasks, "lengths": self.lengths, "counts": self.counts})
        with filesystem.writing(place) as path, path.open("wb") as file:
            np.savez(file, header=np.array(header), runs=self.runs, owners=self.owners, heads=self.heads)

    @classmethod
    def open(cls, place: filesystem.Location) -> Self:
        """Read what :meth:`save` wrote."""
        with filesystem.open_read(place) as file, np.load(file, allow_pickle=False) as arrays:
            header = json.loads(str(arrays["header"]))
            tasks, lengths = tuple(header["tasks"]), tuple(header["lengths"])
            return cls(tasks, lengths, arrays["runs"], arrays["owners"], arrays["heads"], header["counts"])

    def _starts(self, heads: U64) -> npt.NDArray[np.int64]:
        """Where in a text a run of the evaluation data may begin: nearly nowhere, so little is left to compare."""
        bits = heads & np.uint64(len(self._table) * 8 - 1)
        rough = np.flatnonzero(self._table[bits >> np.uint64(3)] >> (bits & np.uint64(7)).astype(np.uint8) & 1)
        return rough[_find(self.heads, heads[rough])[1]]

    def _owners(self, numbers: U64) -> U16:
        """Owners of those runs that are evaluation data."""
        places, equal = _find(self.runs, numbers)
        owners: U16 = self.owners[places[equal]]
        return owners

    @functools.cached_property
    def _table(self) -> npt.NDArray[np.uint8]:
        """Whether any head ends in these bits, eight to a byte: small enough for the cache of a processor."""
        size = 2 ** max(3, (len(self.heads) * _BITS_PER_RUN).bit_length())
        bits = np.zeros(size, np.bool_)
        bits[self.heads & np.uint64(size - 1)] = True
        return np.packbits(bits, bitorder="little")


@dataclass(frozen=True)
class _Runs:
    """The runs of one evaluation text."""

    words: U64
    length: int
    numbers: U64
    """``[runs]``; none of a text that is too short."""

    @classmethod
    def of(cls, text: str, recipe: Decontamination) -> Self:
        words = word_ngrams.words(text)
        length = min(recipe.words, len(words))
        return cls(words, length, word_ngrams.grams(words, length) if length >= recipe.min_words else words[:0])

    def heads(self, length: int) -> U64:
        return word_ngrams.grams(self.words, length)[: len(self.numbers)]


def listing(recipe: Decontamination) -> list[TaskFile]:
    """The files that are evaluation data, in order of the recipe's tasks and of their names.

    Raises:
        StageError: nothing at a path, or nothing in a folder that is evaluation data.
    """
    return [file for text in recipe.tasks for file in _files(text, recipe.files)]


def _files(text: str, splits: tuple[str, ...]) -> list[TaskFile]:
    place = filesystem.location(text)
    if has_magic(text) or filesystem.is_file(place):
        found = [TaskFile(info.location.parent.name, info) for info in filesystem.files(text)]
        if not found:
            raise StageError(f"decontamination task {text}: nothing matches this glob")
        return found
    if not filesystem.exists(place):
        raise StageError(f"decontamination task {text}: nothing is there; relative paths start at {Path.cwd()}")
    below = {PurePosixPath(name): info for name, info in filesystem.listing(place).items()}
    readable = {name: info for name, info in below.items() if name.suffix in evaluation_texts.SUFFIXES}
    chosen = [_of_folder(place.name, name, info, splits) for name, info in readable.items() if _is_split(name, splits)]
    if not chosen:
        there = ", ".join(sorted({name.name for name in below})[:5]) or "nothing"
        raise StageError(
            f"decontamination task {text}: no file there says {', '.join(splits)} in its name and is one of "
            f"{', '.join(evaluation_texts.SUFFIXES)} (there is {there}): name files or a glob, or add a word of their "
            "names to decontamination.files"
        )
    return chosen


def _of_folder(folder: str, name: PurePosixPath, info: filesystem.FileInfo, splits: tuple[str, ...]) -> TaskFile:
    """A task is named by its folders, those left out that say which split lies in them."""
    parents = [part for part in name.parent.parts if not _is_split(PurePosixPath(part), splits)]
    return TaskFile("/".join([folder, *parents]), info)


def _is_split(name: PurePosixPath, splits: tuple[str, ...]) -> bool:
    """Whether a path says in a word of its own that it is evaluation data: ``dev-v1.1.json``, not ``latest.json``."""
    return not set(re.findall("[a-z]+", str(name).lower())).isdisjoint(splits)


def _distinct(parts: list[U64]) -> U64:
    """All numbers, ascending and each once: what ``numpy.unique`` does, without its detour by a table of hashes."""
    numbers = np.sort(np.concatenate(parts))
    return numbers[np.append(True, numbers[1:] != numbers[:-1])] if len(numbers) else numbers


def _find(ascending: U64, wanted: U64) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Where each number would stand, and whether it does."""
    places = np.minimum(np.searchsorted(ascending, wanted), len(ascending) - 1)
    return places, ascending[places] == wanted


def _merge(parts: list[U64]) -> tuple[U64, U16]:
    """Runs of all tasks, each once, and the first task that has it."""
    owners = np.repeat(np.arange(len(parts), dtype=np.uint16), [len(part) for part in parts])
    runs, firsts = np.unique(np.concatenate(parts), return_index=True)
    return runs, owners[firsts]
