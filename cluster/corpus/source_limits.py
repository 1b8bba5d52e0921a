"""Limits of the sources, and the progress of the scan towards them.

Limits and the share of bad documents count in the order of the splits, whatever the order in which actors finish them.
So the corpus, and whether a run stops, do not depend on the number of actors.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from cluster.actors.actor_pool import Unit
from cluster.artifacts.errors import StageError
from cluster.corpus.document_table import Mask, ScannedSplit
from cluster.readers import bad_documents, source_recipes
from cluster.readers.source_recipes import AnySource
from cluster.readers.splits import SourceSpan, Split
from cluster.telemetry.formatting import plural


class SourceLimit:
    """The documents and bytes of text that a source may still give."""

    def __init__(self, documents: int | None, num_bytes: int | None) -> None:
        self._documents = float("inf") if documents is None else documents
        self._bytes = float("inf") if num_bytes is None else num_bytes

    @property
    def reached(self) -> bool:
        return self._documents <= 0 or self._bytes <= 0

    def take(self, documents: int, num_bytes: int) -> None:
        self._documents -= documents
        self._bytes -= num_bytes

    def take_rows(self, passed: Mask, sizes: npt.NDArray[np.uint32]) -> int:
        """Take the source's next rows; returns how many are within the limits.

        Rows end after the last allowed document, or before the first that has too many bytes. Rows that did not pass
        the filters take nothing.
        """
        if self._documents <= 0 or self._bytes < 0:
            return 0
        documents, num_bytes = np.cumsum(passed), np.cumsum(sizes * passed, dtype=np.int64)
        too_large, full = num_bytes > self._bytes, documents >= self._documents
        ends = [int(np.argmax(mask)) + extra for mask, extra in ((too_large, 0), (full, 1)) if mask.any()]
        if len(passed):
            self.take(int(documents[-1]), int(num_bytes[-1]))
        return min(ends, default=len(passed))


def limits_of(sources: Sequence[AnySource]) -> list[SourceLimit]:
    return [SourceLimit(source.limit, source.max_bytes) for source in sources]


@dataclass
class SourceTally:
    """What was read of a source."""

    read: int = 0
    passed: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    """Number of documents by reason."""
    examples: list[dict[str, Any]] = field(default_factory=list)
    """The first bad documents."""
    files: set[str] = field(default_factory=set)

    def add(self, span: SourceSpan, facts: dict[str, Any]) -> None:
        self.read += facts["rows"]
        self.passed += facts["passed"]
        self.dropped.update(facts["dropped"])
        self.examples += facts["examples"][: bad_documents.EXAMPLES - len(self.examples)]
        self.files.add(span.name)

    def check_not_empty(self, number: int, source: AnySource) -> None:
        """Raise StageError if no document of the source is left: it would be missing in silence."""
        if self.passed:
            return
        dropped = bad_documents.format_counts(self.dropped) + bad_documents.format_examples(self.examples)
        commonest = max(self.dropped, key=lambda reason: self.dropped[reason], default="")
        advice = bad_documents.ADVICE.get(commonest, "change the filter, or leave the source out")
        raise StageError(
            f"source {number + 1} ({source_recipes.describe(source)}) has no document: "
            + (f"of {self.read:,} read, all are dropped ({dropped}): {advice}" if self.read else self._nothing_read())
        )

    def _nothing_read(self) -> str:
        return f"{plural(len(self.files), 'file')} without any text: name others, or leave the source out"


class ScanProgress:
    """Collects the results of splits, and decides which splits are still needed."""

    def __init__(self, splits: Sequence[Split], sources: Sequence[AnySource], max_bad_share: float) -> None:
        self._splits, self._max_bad_share = splits, max_bad_share
        self._results: dict[int, ScannedSplit] = {}
        self._num_settled = 0
        """The first splits, each read or not needed."""
        self._num_scheduled = 0
        """The first splits, each scheduled, read or not needed."""
        self._settled_limits, self._scheduled_limits = limits_of(sources), limits_of(sources)
        """What is left after the settled splits, and after the results of all scheduled splits."""
        self._sources = sources
        self._read = [SourceTally() for _ in sources]
        self._last_splits = {span.source: split.number for split in splits for span in split.spans}
        self.used: list[ScannedSplit] = []
        """The settled splits that are needed, in order."""

    def add(self, number: int, facts: Sequence[dict[str, Any]]) -> None:
        """Add the result of a split.

        Raises:
            StageError: too many documents of the settled splits are bad, or a source has no document.
        """
        self._results[number] = ScannedSplit(self._splits[number], facts)
        if number < self._num_scheduled:
            _take(self._scheduled_limits, self._results[number])
        self._settle()

    def pending(self) -> Iterator[Unit]:
        """Splits to read, in order; skips those whose sources have all reached their limits."""
        for split in self._splits:
            # Results of earlier splits that are still missing can only lower the limits further.
            needed = _is_needed(split, self._scheduled_limits)
            self._num_scheduled = split.number + 1
            if split.number in self._results:
                _take(self._scheduled_limits, self._results[split.number])
            elif needed:
                yield Unit(split.name, split, split.size)
        self._settle()

    def _settle(self) -> None:
        while self._num_settled < len(self._splits):
            split = self._splits[self._num_settled]
            needed = _is_needed(split, self._settled_limits)
            if needed and split.number not in self._results:
                return
            self._num_settled += 1
            if needed:
                self._use(self._results[split.number])

    def _use(self, scanned: ScannedSplit) -> None:
        self.used.append(scanned)
        for span, facts in _take(self._settled_limits, scanned):
            self._read[span.source].add(span, facts)
        self._check_bad_share()
        for number, last in self._last_splits.items():
            if last == scanned.split.number:
                self._read[number].check_not_empty(number, self._sources[number])

    def _check_bad_share(self) -> None:
        bad: Counter[str] = Counter()
        for tally in self._read:
            bad.update({reason: count for reason, count in tally.dropped.items() if reason in bad_documents.ADVICE})
        examples = [example for tally in self._read for example in tally.examples]
        bad_documents.check_bad_share(
            sum(tally.read for tally in self._read), bad, self._max_bad_share, examples[: bad_documents.EXAMPLES]
        )


def _is_needed(split: Split, limits: Sequence[SourceLimit]) -> bool:
    return not all(limits[span.source].reached for span in split.spans)


def _take(limits: Sequence[SourceLimit], scanned: ScannedSplit) -> list[tuple[SourceSpan, dict[str, Any]]]:
    """Take a split; returns the spans, and their facts, whose source had not reached its limit before the split."""
    within = {span.source for span in scanned.split.spans if not limits[span.source].reached}
    taken = [(span, facts) for span, facts in scanned.spans() if span.source in within]
    for span, facts in taken:
        limits[span.source].take(facts["passed"], facts["passed_bytes"])
    return taken
