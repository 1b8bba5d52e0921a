"""What has been read of the pieces of a corpus, taken in their order whatever the order in which it is finished.

A limit counts documents in order, and too many bad documents are noticed in order: so what is kept, and whether a run
stops, does not depend on how many pieces were in the hands of actors at the time.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cluster.actors.actor_pool import Unit
from cluster.corpus.document_table import I64, DocumentRow, Mask, ScannedSpan
from cluster.readers import bad_documents
from cluster.readers.source_recipes import AnySource
from cluster.readers.splits import Split


class SelectionLimit:
    """How much of a source has been taken."""

    def __init__(self, documents: int | None, num_bytes: int | None) -> None:
        self._documents = float("inf") if documents is None else documents
        self._bytes = float("inf") if num_bytes is None else num_bytes
        self._over = False

    def within(self, passed: Mask, sizes: npt.NDArray[np.uint32]) -> int:
        """How many of the source's next documents count: those up to the last that its limits allow."""
        if self._over:
            return 0
        documents, num_bytes = np.cumsum(passed), np.cumsum(sizes * passed, dtype=np.int64)
        # Up to the document that is one too many; behind the last one that is allowed nothing is read any more.
        too_many = (documents > self._documents) | (num_bytes > self._bytes)
        full = documents >= self._documents
        ends = [int(np.argmax(mask)) + extra for mask, extra in ((too_many, 0), (full, 1)) if mask.any()]
        self._over = bool(ends)
        self._documents -= int(documents[-1]) if len(documents) else 0
        self._bytes -= int(num_bytes[-1]) if len(num_bytes) else 0
        return min(ends, default=len(passed))


def within_limits(owners: I64, passed: Mask, sizes: npt.NDArray[np.uint32], limits: Sequence[SelectionLimit]) -> Mask:
    found = np.zeros(len(owners), np.bool_)
    for owner in np.unique(owners):
        at = np.flatnonzero(owners == owner)
        found[at[: limits[owner].within(passed[at], sizes[at])]] = True
    return found


class ScanLedger:
    """Results of pieces, and how far they reach without a gap."""

    def __init__(self, pieces: Sequence[Split], sources: Sequence[AnySource], max_bad_share: float) -> None:
        self._pieces, self._sources, self._share = pieces, sources, max_bad_share
        self._results: dict[int, Sequence[dict[str, Any]]] = {}
        self._reached = self._named = 0
        """Pieces before this one are settled, read or not needed; those before that one are named, in work at least."""
        self._settled, self._given = _Given(sources), _Given(sources)
        """What the settled pieces gave; and all that were read of those that were named, gaps or not."""
        self._read, self._bad = 0, Counter[str]()
        self._examples: list[dict[str, Any]] = []
        self._used: list[ScannedSpan] = []

    @property
    def used(self) -> Sequence[ScannedSpan]:
        """The settled pieces that were needed, in order."""
        return self._used

    def add(self, number: int, spans: Sequence[dict[str, Any]]) -> None:
        """Take the result of a piece.

        Raises:
            StageError: too many of the documents up to some piece are bad.
        """
        self._results[number] = spans
        if number < self._named:
            self._given.take(self._pieces[number], spans)
        self._settle()

    def wanted(self) -> Iterator[Unit]:
        """Pieces that are still to be read, in order; those of a source that has given its limit are left out."""
        for piece in self._pieces:
            # Whatever those before it are still going to give, they are before it.
            superfluous = self._given.exhausts(piece)
            self._named = piece.number + 1
            if piece.number in self._results:
                self._given.take(piece, self._results[piece.number])
            elif not superfluous:
                yield Unit(piece.name, piece, piece.size)
        self._settle()

    def _settle(self) -> None:
        while self._reached < len(self._pieces):
            piece = self._pieces[self._reached]
            superfluous = self._settled.exhausts(piece)
            if not superfluous and piece.number not in self._results:
                return
            self._reached += 1
            if not superfluous:
                self._use(piece, self._results[piece.number])

    def _use(self, piece: Split, spans: Sequence[dict[str, Any]]) -> None:
        self._used.append(ScannedSpan(piece, spans))
        for facts in self._settled.take(piece, spans):
            self._read += facts["rows"]
            self._bad.update(facts["bad"])
            self._examples += facts["examples"][: bad_documents.EXAMPLES - len(self._examples)]
        bad_documents.check(self._read, self._bad, self._share, self._examples)


class _Given:
    """What sources have given towards their limits."""

    def __init__(self, sources: Sequence[AnySource]) -> None:
        self._sources = sources
        self._documents, self._bytes = Counter[int](), Counter[int]()

    def take(self, piece: Split, spans: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Count a piece; returns the spans of sources that had not given their limit before it."""
        exhausted = {span.source for span in piece.spans if self._is_exhausted(span.source)}
        counting = [pair for pair in zip(piece.spans, spans, strict=True) if pair[0].source not in exhausted]
        for span, facts in counting:
            self._documents[span.source] += facts["passed"]
            self._bytes[span.source] += facts["passed_bytes"]
        return [facts for _, facts in counting]

    def exhausts(self, piece: Split) -> bool:
        """Whether nothing in a piece can count any more."""
        return all(self._is_exhausted(span.source) for span in piece.spans)

    def _is_exhausted(self, number: int) -> bool:
        source = self._sources[number]
        return (source.limit is not None and self._documents[number] >= source.limit) or (
            source.max_bytes is not None and self._bytes[number] >= source.max_bytes
        )


class RemainingLimit:
    """How much a source may still give."""

    def __init__(self, source: AnySource) -> None:
        self._documents, self._bytes = source.limit, source.max_bytes

    @property
    def nothing(self) -> bool:
        return self._documents == 0 or (self._bytes is not None and self._bytes <= 0)

    def take(self, row: DocumentRow) -> None:
        if row.text is not None:
            self._documents = None if self._documents is None else self._documents - 1
            self._bytes = None if self._bytes is None else self._bytes - row.size
