"""Counts the documents of each file: those read are those kept, and those dropped by reason.

A file that gives nothing is named on stderr; a source that gives nothing is refused.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from cluster.artifacts.errors import StageError
from cluster.corpus import document_table, selection
from cluster.corpus.document_table import ScannedSplit
from cluster.corpus.selection import Selection
from cluster.readers import bad_documents, source_recipes
from cluster.readers.source_recipes import AnyFiles, AnySource

SHOWN = 5
"""Files without documents that are named on stderr; the manifest has all."""

logger = logging.getLogger("stillhouse")


@dataclass
class FileCounts:
    """The documents of one file, or of one shard of a data set."""

    source: int
    name: str
    """Relative to its source, so that the source's folder does not matter."""
    place: str
    """The file itself."""
    read: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    digests: list[str] = field(default_factory=list)
    """Of the documents in each of its spans."""
    is_whole: bool = True
    """Whether it was read to its end: its source had not reached its limit before."""

    @property
    def kept(self) -> int:
        return self.read - self.dropped.total()

    def to_json(self) -> dict[str, Any]:
        found = {"source": self.source, "name": self.name, "read": self.read, "kept": self.kept}
        dropped = {"dropped": dict(self.dropped)} if self.dropped else {}
        return {**found, **dropped, "sha256": sha256("".join(self.digests).encode()).hexdigest()}

    def __str__(self) -> str:
        if not self.read:
            return f"{self.place}: it is empty"
        advice = next(
            (f"; {bad_documents.ADVICE[reason]}" for reason in self.dropped if reason in bad_documents.ADVICE), ""
        )
        return f"{self.place}: {self.read:,} read, all dropped ({bad_documents.format_counts(self.dropped)}){advice}"


def count(scanned: Sequence[ScannedSplit], selected: Selection) -> list[FileCounts]:
    """The counts of each file that was read, in order."""
    found: dict[tuple[int, str], FileCounts] = {}
    spans = document_table.spans(scanned)
    for number, (span, facts) in enumerate(spans):
        file = found.setdefault((span.source, span.name), FileCounts(span.source, span.name, span.place or span.name))
        file.read += int(selected.read[number])
        file.dropped.update(selected.dropped_of[number])
        file.digests.append(facts["fingerprint"])
        file.is_whole &= facts["whole"] and int(selected.read[number]) == facts["rows"]
    return list(found.values())


def check_sources(files: Sequence[FileCounts], sources: Sequence[AnySource]) -> None:
    """Name the files without documents on stderr.

    Raises:
        StageError: a source gives no document, and other sources do not have its documents either.
    """
    for number, source in enumerate(sources):
        own = [file for file in files if file.source == number]
        if not any(file.kept for file in own):
            _check_repeated(number, source, own)
    empty = [file for file in files if not file.kept and file.is_whole and isinstance(sources[file.source], AnyFiles)]
    for file in empty[:SHOWN]:
        logger.warning("corpus: no document from %s", file)
    if len(empty) > SHOWN:
        logger.warning("corpus: no document from %d more files: they are in facts.files", len(empty) - SHOWN)


def _check_repeated(number: int, source: AnySource, files: Sequence[FileCounts]) -> None:
    """Say that other sources have all documents of this one, or raise StageError."""
    dropped: Counter[str] = Counter()
    for file in files:
        dropped.update(file.dropped)
    name = f"source {number + 1} ({source_recipes.describe(source)})"
    if dropped[selection.REPEATED] or dropped[selection.NEAR]:
        logger.warning("corpus: no document from %s: %s", name, bad_documents.format_counts(dropped))
    elif dropped[selection.OVER_WEIGHT]:
        raise StageError(f"{name} has no document of as little text as its weight allows: raise its weight")
    elif source.max_bytes is not None:
        raise StageError(f"{name} has no document within max_bytes = {source.max_bytes}: raise it")
    else:
        raise StageError(f"{name} has no document (dropped: {bad_documents.format_counts(dropped)}): leave it out")
