"""Pieces of sources to tables of judged documents: the first half of making a corpus.

::

    pieces/00000.parquet    source: string    the document's label
                            text: large_string    clean; null where the document is left out
                            reason: string    why it is left out; null where it is not
                            bytes: uint32    of the text in UTF-8
                            high, low: uint64    the two halves of a digest of the text
                            band0 …: uint64    what near-duplicates share, where they are looked for
    pieces/00000.json       what is known of each span; written last

One row for each document read, in order. Everything that can be told from a document alone is told here; what depends
on other documents is left to :mod:`cluster.choice`.
"""

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from cluster import faults, formats, near_duplicates, storage
from cluster.cleaning import Cleaner, Cleaning
from cluster.decontamination import Evaluation
from cluster.faults import Document, Fault
from cluster.near_duplicates import NearDuplicates
from cluster.pieces import Piece, Span
from cluster.pool import Attempt
from cluster.sources import AnyFiles, AnySource
from cluster.stage import StageError
from cluster.storage import Location

SOURCE, TEXT, REASON, BYTES, HIGH, LOW, BAND = "source", "text", "reason", "bytes", "high", "low", "band"
OVERLAP = "overlap with "
"""Begins the reason of a document that overlaps evaluation data; the task follows."""

GROUP_BYTES = 2**22
"""Text in a row group."""
GROUP_ROWS = 2**16


@dataclass
class SpanFacts:
    """What is known of a span that was read."""

    rows: int = 0
    """Documents read, those left out included."""
    passed: int = 0
    passed_bytes: int = 0
    bad: dict[str, int] = field(default_factory=dict)
    examples: list[dict[str, Any]] = field(default_factory=list)
    """Of bad documents: file, where in it, reason, and how they begin."""
    fingerprint: str = ""
    """Digest of what was read, document by document."""


@dataclass(frozen=True)
class Question:
    """What is asked of every document."""

    sources: tuple[AnySource, ...]
    cleaning: Cleaning
    near_duplicates: NearDuplicates | None = None
    evaluation: Location | None = None
    """Where :class:`~cluster.decontamination.Evaluation` lies, if documents are held against it."""

    @property
    def bands(self) -> int:
        return near_duplicates.bands(self.near_duplicates)[0] if self.near_duplicates else 0


class Scanner:
    """An actor's worker: reads one piece after another."""

    def __init__(self, question: Question, folder: Location) -> None:
        self._question, self._folder = question, folder
        self._cleaner = Cleaner(question.cleaning)

    @functools.cached_property
    def _evaluation(self) -> Evaluation | None:
        place = self._question.evaluation
        return None if place is None else Evaluation.open(place)

    def work(self, piece: Piece, attempt: Attempt) -> dict[str, Any]:
        """Write the table of a piece and what is known of its spans."""
        with storage.writing(table_of(self._folder, piece.number)) as path, _Table(path, self._question.bands) as table:
            # A source that has given its limit in this piece has no more to give.
            left = [_Left(source) for source in self._question.sources]
            facts = [self._scan(span, left[span.source], table) for span in piece.spans]
        result = {"spans": [asdict(found) for found in facts]}
        storage.write_json(marker_of(self._folder, piece.number), result)
        return result

    def _scan(self, span: Span, left: "_Left", table: "_Table") -> SpanFacts:
        facts, digest = SpanFacts(), hashlib.sha256()
        for label, documents in formats.read(self._question.sources[span.source], span):
            for document in documents:
                if left.nothing:
                    break
                row = self._judge(label, document)
                self._note(facts, span, document, row)
                digest.update(row.digest or row.reason.encode())
                left.take(row)
                table.add(row)
            if left.nothing:
                break
        if isinstance(self._question.sources[span.source], AnyFiles):
            _refuse_changed(span)
        facts.fingerprint = digest.hexdigest()
        return facts

    def _judge(self, label: str, document: Document) -> "Row":
        if isinstance(document, Fault):
            return Row(label, None, document.reason)
        judged = self._cleaner.judge(document)
        if judged.reason is not None:
            return Row(label, None, judged.reason)
        if self._evaluation is not None and (task := self._evaluation.overlap(judged.text)) is not None:
            return Row(label, None, OVERLAP + task)
        encoded = judged.text.encode()
        digest = hashlib.blake2b(encoded, digest_size=16).digest()
        near = self._question.near_duplicates
        signature = near_duplicates.signature(judged.text, near) if near is not None else None
        return Row(label, judged.text, "", len(encoded), digest, signature)

    def _note(self, facts: SpanFacts, span: Span, document: Document, row: "Row") -> None:
        if row.text is not None:
            facts.passed += 1
            facts.passed_bytes += row.size
        elif row.reason in faults.ADVICE:
            facts.bad[row.reason] = facts.bad.get(row.reason, 0) + 1
            if len(facts.examples) < faults.EXAMPLES:
                facts.examples.append(_example(facts.rows, span, document, row.reason))
        facts.rows += 1


def _refuse_changed(span: Span) -> None:
    """A corpus of two versions of a file would be of neither."""
    try:
        now = storage.info(storage.location(span.place))
    except FileNotFoundError:
        now = None
    if now is None or (now.bytes, now.stamp) != (span.size, span.stamp):
        raise StageError(
            f"{span.place} was {'changed' if now else 'removed'} while the corpus was made from it: leave it alone, "
            "and run the same command again, which starts over"
        )


@dataclass(slots=True)
class Row:
    """What became of one document."""

    label: str
    text: str | None
    reason: str
    size: int = 0
    digest: bytes = b""
    signature: npt.NDArray[np.uint64] | None = None


class _Left:
    """How much a source may still give."""

    def __init__(self, source: AnySource) -> None:
        self._documents, self._bytes = source.limit, source.max_bytes

    @property
    def nothing(self) -> bool:
        return self._documents == 0 or (self._bytes is not None and self._bytes <= 0)

    def take(self, row: Row) -> None:
        if row.text is not None:
            self._documents = None if self._documents is None else self._documents - 1
            self._bytes = None if self._bytes is None else self._bytes - row.size


class _Table:
    """A Parquet file that is written a row group at a time."""

    def __init__(self, path: Any, bands: int) -> None:
        self._bands = bands
        fields = [(SOURCE, pa.string()), (TEXT, pa.large_string()), (REASON, pa.string()), (BYTES, pa.uint32())]
        fields += [(name, pa.uint64()) for name in (HIGH, LOW, *map(band, range(bands)))]
        self._schema = pa.schema(fields)
        self._writer = pq.ParquetWriter(path, self._schema, compression="zstd", use_dictionary=[SOURCE, REASON])
        self._rows: list[Row] = []
        self._size = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is None:
            self._flush()
        self._writer.close()

    def add(self, row: Row) -> None:
        self._rows.append(row)
        self._size += row.size
        if self._size >= GROUP_BYTES or len(self._rows) >= GROUP_ROWS:
            self._flush()

    def _flush(self) -> None:
        if not self._rows:
            return
        rows = self._rows
        halves = np.frombuffer(b"".join(row.digest or bytes(16) for row in rows), ">u8").astype(np.uint64)
        columns = [
            pa.array([row.label for row in rows], pa.string()),
            pa.array([row.text for row in rows], pa.large_string()),
            pa.array([row.reason or None for row in rows], pa.string()),
            pa.array([row.size for row in rows], pa.uint32()),
            pa.array(halves[0::2]),
            pa.array(halves[1::2]),
            *map(pa.array, _signatures(rows, self._bands)),
        ]
        self._writer.write_table(pa.Table.from_arrays(columns, schema=self._schema))
        self._rows, self._size = [], 0


def _signatures(rows: Sequence[Row], bands: int) -> npt.NDArray[np.uint64]:
    """One row for each band, ``[bands, rows]``; 0 where a document is left out."""
    found = np.zeros((len(rows), bands), np.uint64)
    for number, row in enumerate(rows):
        if row.signature is not None:
            found[number] = row.signature
    return np.ascontiguousarray(found.T)


def _example(row: int, span: Span, document: Document, reason: str) -> dict[str, Any]:
    if isinstance(document, Fault):
        where, text = document.where, document.text
    else:
        where = f"document {row + 1}{f' behind byte {span.start}' if span.size and span.start else ''}"
        text = faults.excerpt(document)
    place = span.place if span.size else f"{span.place} {span.name}".strip()
    return {"place": place, "where": where, "reason": reason, "text": text}


def band(number: int) -> str:
    """Name of a band's column."""
    return f"{BAND}{number}"


def table_of(folder: Location, number: int) -> Location:
    return folder / f"{number:05}.parquet"


def marker_of(folder: Location, number: int) -> Location:
    return folder / f"{number:05}.json"
