"""Statistics of texts: lengths, words, characters, duplicates, and samples."""

import hashlib
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import NamedTuple

import numpy as np

from cluster.inspect.findings import Bars, Block, Histogram, Pairs, Sample
from cluster.telemetry.formatting import share

_CLOSELY = 2**22
"""Characters in which to count words and characters."""
_SERIES = 4
"""Series of the histogram; one more has all other labels."""
_WORD = re.compile(r"[^\W\d_]+")
_LINE = 30
"""Least characters of a line whose repetition is worth a remark."""
_LONGEST = 80
_WORDS, _SHOWN_CHARACTERS = 16, 1200
_CLASSES = {"L": "letters", "M": "letters", "Z": "white space", "N": "digits", "P": "punctuation", "S": "symbols"}


class SampledText(NamedTuple):
    """A document of the sample."""

    digest: bytes
    characters: int
    """Of the whole document."""
    text: str
    """Its beginning."""


@dataclass
class TextStats:
    """Statistics that do not depend on the order of the texts."""

    whole: bool = True
    """Every document was read."""
    lengths: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    """Characters of the documents, by source or label."""
    digests: set[bytes] = field(default_factory=set)
    lines: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Number of documents by label and line."""
    words: Counter[str] = field(default_factory=Counter)
    characters: Counter[str] = field(default_factory=Counter)
    closely: int = 0
    """Characters in which words and characters were counted."""
    samples: dict[str, list[SampledText]] = field(default_factory=lambda: defaultdict(list))
    """By label, the documents with the smallest digests: a uniform and reproducible sample."""

    def add(self, label: str, document: str, num_samples: int) -> None:
        digest = hashlib.blake2b(document.encode(), digest_size=12).digest()
        self.lengths[label].append(len(document))
        self.digests.add(digest)
        self.lines.update({(label, line) for line in document.splitlines() if len(line) >= _LINE})
        if self.closely < _CLOSELY:
            self.closely += len(document)
            self.characters.update(document)
            self.words.update(map(str.lower, _WORD.findall(document)))
        drawn = self.samples[label]
        if num_samples and (len(drawn) < num_samples or digest < drawn[-1].digest):
            sample = SampledText(digest, len(document), document[:_SHOWN_CHARACTERS])
            self.samples[label] = sorted([*drawn, sample])[:num_samples]

    @property
    def documents(self) -> int:
        return sum(map(len, self.lengths.values()))

    @property
    def repeated(self) -> int:
        return self.documents - len(self.digests)

    @property
    def median(self) -> int:
        """Median characters of a document."""
        return int(np.median(np.concatenate([np.array(lengths) for lengths in self.lengths.values()])))

    @property
    def repeated_lines(self) -> list[tuple[str, str, int]]:
        """Label, line and number of documents, for lines in several documents of a label; the most frequent first."""
        return [(label, line, number) for (label, line), number in self.lines.most_common(1000) if number > 1]

    def classes(self) -> Mapping[str, float]:
        """Shares of the kinds of characters, the most frequent first."""
        found = Counter[str]()
        for character, number in self.characters.items():
            kind = "white space" if character.isspace() else _CLASSES.get(unicodedata.category(character)[0], "other")
            found[kind] += number
        return {kind: number / max(1, found.total()) for kind, number in found.most_common()}


def describe(stats: TextStats) -> list[Block]:
    """Lengths, duplicates, kinds of characters, and frequent words."""
    kinds = ", ".join(f"{kind} {share(part, 1)}" for kind, part in stats.classes().items())
    rare = [(character, number) for character, number in stats.characters.most_common() if not character.isascii()]
    beyond = share(sum(number for _, number in rare), stats.characters.total())
    letters = " ".join(character for character, _ in rare)[:60]
    words = max(1, stats.words.total())
    entries = [
        ("characters", kinds),
        ("beyond ASCII", beyond + (f", most often {letters}" if rare else "")),
        ("repeated documents", f"{stats.repeated:,} of {stats.documents:,}"),
    ]
    for label, line, number in stats.repeated_lines[:3]:
        short = line if len(line) <= _LONGEST else f"{line[:_LONGEST]}…"
        entries.append(
            ("repeated line", f"in {number:,} of {len(stats.lengths[label]):,} documents of {label}: {short}")
        )
    frequent = {word: 100 * number / words for word, number in stats.words.most_common(_WORDS)}
    words_chart = Bars("Most frequent words", "% of the words", frequent, "{:.2f} %".format)
    return [_histogram(stats), Pairs(entries), words_chart]


def samples(stats: TextStats, num_samples: int) -> list[Sample]:
    """Sampled documents of as many labels as possible, the largest labels first."""
    rounds = zip_longest(*([(label, sample) for sample in stats.samples[label]] for label in _by_size(stats)))
    every = [entry for turn in rounds for entry in turn if entry is not None]
    return [
        Sample(f"{label}, {sample.characters:,} characters", [(sample.text, False)])
        for label, sample in every[:num_samples]
    ]


def _histogram(stats: TextStats) -> Histogram:
    first, rest = _by_size(stats)[:_SERIES], _by_size(stats)[_SERIES:]
    series = {label: stats.lengths[label] for label in first}
    if rest:
        series[f"{len(rest)} others"] = [length for label in rest for length in stats.lengths[label]]
    longest = max(map(max, stats.lengths.values()))
    note = f"median {stats.median:,}, longest {longest:,}"
    return Histogram.of("Documents by length in characters", "characters", series, note)


def _by_size(stats: TextStats) -> list[str]:
    """Labels, that with the most characters first."""
    return sorted(stats.lengths, key=lambda label: -sum(stats.lengths[label]))
