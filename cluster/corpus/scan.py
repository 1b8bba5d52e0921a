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
on other documents is left to :mod:`cluster.corpus.selection`.
"""

import functools
import hashlib
from dataclasses import asdict, dataclass, field
from typing import Any

from cluster.actors.actor_pool import Attempt
from cluster.artifacts.errors import StageError
from cluster.corpus import minhash
from cluster.corpus.decontamination import Evaluation
from cluster.corpus.document_table import OVERLAP, DocumentRow, DocumentTable, marker_of, table_of
from cluster.corpus.filters import Cleaning, Filter
from cluster.corpus.minhash import NearDuplicates
from cluster.corpus.source_limits import RemainingLimit
from cluster.readers import bad_documents, text_files
from cluster.readers.bad_documents import Document, Fault
from cluster.readers.source_recipes import AnyFiles, AnySource
from cluster.readers.splits import Span, Split
from cluster.storage import filesystem
from cluster.storage.filesystem import Location


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
class ScanConfig:
    """What is asked of every document."""

    sources: tuple[AnySource, ...]
    cleaning: Cleaning
    near_duplicates: NearDuplicates | None = None
    evaluation: Location | None = None
    """Where :class:`~cluster.corpus.decontamination.Evaluation` lies, if documents are held against it."""

    @property
    def bands(self) -> int:
        return minhash.bands(self.near_duplicates)[0] if self.near_duplicates else 0


class Scanner:
    """An actor's worker: reads one piece after another."""

    def __init__(self, question: ScanConfig, folder: Location) -> None:
        self._question, self._folder = question, folder
        self._cleaner = Filter(question.cleaning)

    @functools.cached_property
    def _evaluation(self) -> Evaluation | None:
        place = self._question.evaluation
        return None if place is None else Evaluation.open(place)

    def work(self, piece: Split, attempt: Attempt) -> dict[str, Any]:
        """Write the table of a piece and what is known of its spans."""
        with (
            filesystem.writing(table_of(self._folder, piece.number)) as path,
            DocumentTable(path, self._question.bands) as table,
        ):
            # A source that has given its limit in this piece has no more to give.
            left = [RemainingLimit(source) for source in self._question.sources]
            facts = [self._scan(span, left[span.source], table) for span in piece.spans]
        result = {"spans": [asdict(found) for found in facts]}
        filesystem.write_json(marker_of(self._folder, piece.number), result)
        return result

    def _scan(self, span: Span, left: "RemainingLimit", table: "DocumentTable") -> SpanFacts:
        facts, digest = SpanFacts(), hashlib.sha256()
        for label, documents in text_files.read(self._question.sources[span.source], span):
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

    def _judge(self, label: str, document: Document) -> "DocumentRow":
        if isinstance(document, Fault):
            return DocumentRow(label, None, document.reason)
        judged = self._cleaner.judge(document)
        if judged.reason is not None:
            return DocumentRow(label, None, judged.reason)
        if self._evaluation is not None and (task := self._evaluation.overlap(judged.text)) is not None:
            return DocumentRow(label, None, OVERLAP + task)
        encoded = judged.text.encode()
        digest = hashlib.blake2b(encoded, digest_size=16).digest()
        near = self._question.near_duplicates
        signature = minhash.signature(judged.text, near) if near is not None else None
        return DocumentRow(label, judged.text, "", len(encoded), digest, signature)

    def _note(self, facts: SpanFacts, span: Span, document: Document, row: "DocumentRow") -> None:
        if row.text is not None:
            facts.passed += 1
            facts.passed_bytes += row.size
        elif row.reason in bad_documents.ADVICE:
            facts.bad[row.reason] = facts.bad.get(row.reason, 0) + 1
            if len(facts.examples) < bad_documents.EXAMPLES:
                facts.examples.append(_example(facts.rows, span, document, row.reason))
        facts.rows += 1


def _refuse_changed(span: Span) -> None:
    """A corpus of two versions of a file would be of neither."""
    try:
        now = filesystem.info(filesystem.location(span.place))
    except FileNotFoundError:
        now = None
    if now is None or (now.bytes, now.stamp) != (span.size, span.stamp):
        raise StageError(
            f"{span.place} was {'changed' if now else 'removed'} while the corpus was made from it: leave it alone, "
            "and run the same command again, which starts over"
        )


def _example(row: int, span: Span, document: Document, reason: str) -> dict[str, Any]:
    if isinstance(document, Fault):
        where, text = document.where, document.text
    else:
        where = f"document {row + 1}{f' behind byte {span.start}' if span.size and span.start else ''}"
        text = bad_documents.excerpt(document)
    place = span.place if span.size else f"{span.place} {span.name}".strip()
    return {"place": place, "where": where, "reason": reason, "text": text}
