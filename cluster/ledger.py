"""What has been read of the pieces of a corpus, taken in their order whatever the order in which it is finished.

A limit counts documents in order, and too many bad documents are noticed in order: so what is kept, and whether a run
stops, does not depend on how many pieces were in the hands of actors at the time.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from cluster import faults
from cluster.choice import Scanned
from cluster.pieces import Piece
from cluster.pool import Unit
from cluster.sources import AnySource


class Ledger:
    """Results of pieces, and how far they reach without a gap."""

    def __init__(self, pieces: Sequence[Piece], sources: Sequence[AnySource], max_bad_share: float) -> None:
        self._pieces, self._sources, self._share = pieces, sources, max_bad_share
        self._results: dict[int, Sequence[dict[str, Any]]] = {}
        self._reached = self._named = 0
        """Pieces before this one are settled, read or not needed; those before that one are named, in work at least."""
        self._settled, self._given = _Given(sources), _Given(sources)
        """What the settled pieces gave; and all that were read of those that were named, gaps or not."""
        self._read, self._bad = 0, Counter[str]()
        self._examples: list[dict[str, Any]] = []
        self._used: list[Scanned] = []

    @property
    def used(self) -> Sequence[Scanned]:
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

    def _use(self, piece: Piece, spans: Sequence[dict[str, Any]]) -> None:
        self._used.append(Scanned(piece, spans))
        for facts in self._settled.take(piece, spans):
            self._read += facts["rows"]
            self._bad.update(facts["bad"])
            self._examples += facts["examples"][: faults.EXAMPLES - len(self._examples)]
        faults.check(self._read, self._bad, self._share, self._examples)


class _Given:
    """What sources have given towards their limits."""

    def __init__(self, sources: Sequence[AnySource]) -> None:
        self._sources = sources
        self._documents, self._bytes = Counter[int](), Counter[int]()

    def take(self, piece: Piece, spans: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Count a piece; returns the spans of sources that had not given their limit before it."""
        exhausted = {span.source for span in piece.spans if self._is_exhausted(span.source)}
        counting = [pair for pair in zip(piece.spans, spans, strict=True) if pair[0].source not in exhausted]
        for span, facts in counting:
            self._documents[span.source] += facts["passed"]
            self._bytes[span.source] += facts["passed_bytes"]
        return [facts for _, facts in counting]

    def exhausts(self, piece: Piece) -> bool:
        """Whether nothing in a piece can count any more."""
        return all(self._is_exhausted(span.source) for span in piece.spans)

    def _is_exhausted(self, number: int) -> bool:
        source = self._sources[number]
        return (source.limit is not None and self._documents[number] >= source.limit) or (
            source.max_bytes is not None and self._bytes[number] >= source.max_bytes
        )
