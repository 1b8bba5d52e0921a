"""Scans splits: reads, cleans and filters documents one by one, and writes a document table per split.

The scan decides everything that depends on one document alone; :mod:`cluster.corpus.selection` decides the rest.
"""

import contextlib
import functools
import hashlib
from dataclasses import asdict, dataclass, field
from typing import Any

from cluster.actors.actor_pool import Attempt
from cluster.corpus import minhash
from cluster.corpus.decontamination import EvaluationIndex
from cluster.corpus.document_table import OVERLAP, DocumentRow, DocumentTableWriter, facts_path, table_path
from cluster.corpus.filters import Cleaning, Filter
from cluster.corpus.minhash import NearDuplicates
from cluster.corpus.source_limits import SourceLimit, limits_of
from cluster.readers import bad_documents, read_errors, text_files
from cluster.readers.bad_documents import BadDocument, Document
from cluster.readers.source_recipes import AnyFiles, AnySource
from cluster.readers.splits import SourceSpan, Split
from cluster.storage import filesystem
from cluster.storage.filesystem import FileInfo, Location


@dataclass
class SpanFacts:
    """Counts of a span that was read."""

    rows: int = 0
    """Documents read, dropped ones included."""
    passed: int = 0
    passed_bytes: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    """Number of documents by reason, bad ones included."""
    examples: list[dict[str, Any]] = field(default_factory=list)
    """Bad documents: place, where, reason, text."""
    whole: bool = True
    """Whether it was read to its end: its source had not reached its limit in this split."""
    fingerprint: str = ""
    """Digest over the documents."""


@dataclass(frozen=True)
class ScanConfig:
    """Scan settings, the same for every document."""

    sources: tuple[AnySource, ...]
    cleaning: Cleaning
    near_duplicates: NearDuplicates | None = None
    evaluation: Location | None = None
    """File of the :class:`~cluster.corpus.decontamination.EvaluationIndex`."""

    @property
    def bands(self) -> int:
        return minhash.bands(self.near_duplicates)[0] if self.near_duplicates else 0


class Scanner:
    """Worker of the actor pool: scans one split after another."""

    def __init__(self, config: ScanConfig, folder: Location) -> None:
        self._config, self._folder = config, folder
        self._filter = Filter(config.cleaning)

    @functools.cached_property
    def _evaluation(self) -> EvaluationIndex | None:
        place = self._config.evaluation
        return None if place is None else EvaluationIndex.open(place)

    def work(self, split: Split, attempt: Attempt) -> dict[str, Any]:
        """Write the document table of a split, then the facts of its spans."""
        with (
            filesystem.writing(table_path(self._folder, split.number)) as path,
            DocumentTableWriter(path, self._config.bands) as table,
        ):
            # A source that reaches its limit within this split needs no more documents from it.
            limits = limits_of(self._config.sources)
            facts = [self._scan(span, limits[span.source], table) for span in split.spans]
        result = {"spans": [asdict(found) for found in facts]}
        filesystem.write_json(facts_path(self._folder, split.number), result)
        return result

    def _scan(self, span: SourceSpan, limit: SourceLimit, table: DocumentTableWriter) -> SpanFacts:
        facts, digest = SpanFacts(), hashlib.sha256()
        source = self._config.sources[span.source]
        with _unchanged(span) if isinstance(source, AnyFiles) else contextlib.nullcontext():
            found = text_files.read(source, span)
            for label, document in ((label, document) for label, batch in found for document in batch):
                if limit.reached:
                    facts.whole = False
                    break
                row = self._row(label, document)
                _count(facts, span, document, row)
                digest.update(row.digest or row.reason.encode())
                if row.text is not None:
                    limit.take(1, row.size)
                table.add(row)
        facts.fingerprint = digest.hexdigest()
        return facts

    def _row(self, label: str, document: Document) -> DocumentRow:
        if isinstance(document, BadDocument):
            return DocumentRow(label, None, document.reason)
        result = self._filter.apply(document)
        if result.reason is not None:
            return DocumentRow(label, None, result.reason)
        if self._evaluation is not None and (task := self._evaluation.overlap(result.text)) is not None:
            return DocumentRow(label, None, OVERLAP + task)
        encoded = result.text.encode()
        digest = hashlib.blake2b(encoded, digest_size=16).digest()
        near = self._config.near_duplicates
        signature = minhash.signature(result.text, near) if near is not None else None
        return DocumentRow(label, result.text, "", len(encoded), digest, signature)


def _unchanged(span: SourceSpan) -> contextlib.AbstractContextManager[None]:
    return read_errors.unchanged(FileInfo(filesystem.location(span.place), span.size, span.stamp))


def _count(facts: SpanFacts, span: SourceSpan, document: Document, row: DocumentRow) -> None:
    if row.text is not None:
        facts.passed += 1
        facts.passed_bytes += row.size
    else:
        facts.dropped[row.reason] = facts.dropped.get(row.reason, 0) + 1
        if row.reason in bad_documents.ADVICE and len(facts.examples) < bad_documents.EXAMPLES:
            facts.examples.append(_example(facts.rows, span, document, row.reason))
    facts.rows += 1


def _example(row: int, span: SourceSpan, document: Document, reason: str) -> dict[str, Any]:
    if isinstance(document, BadDocument):
        where, text = document.where, document.text
    else:
        where = f"document {row + 1}{f' behind byte {span.start}' if span.size and span.start else ''}"
        text = bad_documents.excerpt(document)
    place = span.place if span.size else f"{span.place} {span.name}".strip()
    return {"place": place, "where": where, "reason": reason, "text": text}
