"""What texts are like: lengths, the words and characters in them, what is there twice, and some to be read."""

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
"""Characters that are looked at one by one."""
_SERIES = 4
"""Series told apart in the histogram; the others are one."""
_WORD = re.compile(r"[^\W\d_]+")
_LINE = 30
"""Characters of a line that says something when it is repeated."""
_LONGEST = 80
_WORDS, _SHOWN_CHARACTERS = 16, 1200
_CLASSES = {"L": "letters", "M": "letters", "Z": "white space", "N": "digits", "P": "punctuation", "S": "symbols"}


class Drawn(NamedTuple):
    """A document to be read."""

    digest: bytes
    characters: int
    """Of the whole document."""
    text: str
    """How it begins."""


@dataclass
class TextStats:
    """What was read; the same texts in any order give the same."""

    whole: bool = True
    """Every document was read."""
    lengths: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    """Characters of the documents, by source or label."""
    digests: set[bytes] = field(default_factory=set)
    lines: Counter[tuple[str, str]] = field(default_factory=Counter)
    """In how many documents of a label a line stands."""
    words: Counter[str] = field(default_factory=Counter)
    characters: Counter[str] = field(default_factory=Counter)
    closely: int = 0
    """Characters that words and characters were counted in."""
    samples: dict[str, list["Drawn"]] = field(default_factory=lambda: defaultdict(list))
    """Of each label the documents with the smallest digests: drawn evenly, and the same every time."""

    def add(self, label: str, document: str, num_samples: int) -> None:
        """Note a document."""
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
            sample = Drawn(digest, len(document), document[:_SHOWN_CHARACTERS])
            self.samples[label] = sorted([*drawn, sample])[:num_samples]

    @property
    def documents(self) -> int:
        return sum(map(len, self.lengths.values()))

    @property
    def repeated(self) -> int:
        return self.documents - len(self.digests)

    @property
    def median(self) -> int:
        """Characters of a document of middle length."""
        return int(np.median(np.concatenate([np.array(lengths) for lengths in self.lengths.values()])))

    @property
    def repeated_lines(self) -> list[tuple[str, str, int]]:
        """Label, line and number of documents, for lines that stand in several of a label; the most frequent first."""
        return [(label, line, number) for (label, line), number in self.lines.most_common(1000) if number > 1]

    def classes(self) -> Mapping[str, float]:
        """Shares of kinds of characters."""
        found = Counter[str]()
        for character, number in self.characters.items():
            kind = "white space" if character.isspace() else _CLASSES.get(unicodedata.category(character)[0], "other")
            found[kind] += number
        return {kind: number / max(1, found.total()) for kind, number in found.most_common()}


def described(text: TextStats) -> list[Block]:
    """Lengths, and what the text is made of."""
    kinds = ", ".join(f"{kind} {share(part, 1)}" for kind, part in text.classes().items())
    beyond = sum(number for character, number in text.characters.items() if not character.isascii())
    rare = " ".join(character for character, _ in text.characters.most_common() if not character.isascii())
    words = text.words.total()
    often = {word: 100 * number / max(1, words) for word, number in text.words.most_common(_WORDS)}
    entries = [
        ("characters", kinds),
        ("beyond ASCII", f"{share(beyond, text.characters.total())}" + (f", most often {rare[:60]}" if rare else "")),
        ("repeated documents", f"{text.repeated:,} of {text.documents:,}"),
        *(
            ("repeated line", f"in {number:,} of {len(text.lengths[label]):,} documents of {label}: {_short(line)}")
            for label, line, number in text.repeated_lines[:3]
        ),
    ]
    return [
        _histogram(text),
        Pairs(entries),
        Bars("Most frequent words", "% of the words", often, {word: f"{part:.2f} %" for word, part in often.items()}),
    ]


def samples(text: TextStats, num_samples: int) -> list[Sample]:
    """Documents to be read, of as many labels as there are samples, the largest labels first."""
    by_size = sorted(text.samples, key=lambda label: -sum(text.lengths[label]))
    rounds = zip_longest(*([(label, drawn) for drawn in text.samples[label]] for label in by_size))
    every = [entry for turn in rounds for entry in turn if entry is not None]
    return [
        Sample(f"{label}, {drawn.characters:,} characters", [(drawn.text, False)])
        for label, drawn in every[:num_samples]
    ]


def _histogram(text: TextStats) -> Histogram:
    by_size = sorted(text.lengths, key=lambda label: -sum(text.lengths[label]))
    series = {label: text.lengths[label] for label in by_size[:_SERIES]}
    if rest := by_size[_SERIES:]:
        series[f"{len(rest)} others"] = [length for label in rest for length in text.lengths[label]]
    longest = max(max(lengths) for lengths in text.lengths.values())
    note = f"median {text.median:,}, longest {longest:,}"
    return Histogram.of("Documents by length in characters", "characters", series, note)


def _short(line: str) -> str:
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}…"
