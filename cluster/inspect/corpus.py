"""Corpora: sources, dropped documents and the reasons, and statistics of the text.

Counts of documents and bytes come from the manifest. Statistics of the text come from :data:`BUDGET` bytes, evenly
spread over the files.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.artifacts.artifact import Artifact
from cluster.corpus import document_table
from cluster.inspect.findings import (
    Bars,
    Block,
    Findings,
    InspectError,
    Pairs,
    Section,
    Table,
    evenly,
    fact,
    with_share,
)
from cluster.inspect.text_stats import TextStats, describe, samples
from cluster.readers.bad_documents import format_counts
from cluster.storage import filesystem
from cluster.telemetry import progress
from cluster.telemetry.error_text import first_line
from cluster.telemetry.formatting import file_size, plural, share

BUDGET = 2**25
"""Bytes of text to read."""
_FILES = 32
_SOURCES = 12
"""Sources with a row of their own."""
_FEW = 5
"""Documents that may share a line."""
_SHORT, _DROPPED, _LETTERS, _BOILERPLATE, _ONE_SOURCE = 100, 0.5, 0.65, 0.05, 0.95
"""Median characters of a document, and shares, that are worth a remark."""


def inspect(found: Artifact, num_samples: int) -> Findings:
    """View of a corpus."""
    stats = _read(found, num_samples)
    looked = "all documents" if stats.whole else f"{stats.documents:,} documents, evenly spread over the files"
    sections = [
        _sources(found),
        _cleaning(found),
        Section("TEXT", describe(stats), f"Measured on {looked}."),
        Section("DOCUMENTS", samples(stats, num_samples)),
    ]
    return Findings(remarks=_remarks(found, stats), sections=sections)


def _read(found: Artifact, num_samples: int) -> TextStats:
    names = found.matching("*.parquet")
    chosen = evenly(names, _FILES)
    stats = TextStats(whole=len(chosen) == len(names))
    for name in progress.progress(chosen, "documents", len(chosen), "files"):
        for label, document in _documents(found, name, BUDGET // len(chosen), stats):
            stats.add(label, document, num_samples)
    return stats


def _documents(found: Artifact, name: str, budget: int, stats: TextStats) -> Iterator[tuple[str, str]]:
    """Sources and texts of some row groups of a file."""
    columns = [document_table.SOURCE, document_table.TEXT]
    try:
        with filesystem.open_read(found.location / name) as source, pq.ParquetFile(source) as file:
            groups = list(range(file.num_row_groups))
            each = max(1, file.metadata.row_group(0).column(1).total_uncompressed_size) if groups else 1
            wanted = evenly(groups, max(1, budget // each))
            stats.whole &= len(wanted) == len(groups)
            for number in wanted:
                table = file.read_row_group(number, columns=columns)
                yield from zip(*(table[column].to_pylist() for column in columns), strict=True)
    except (pa.ArrowException, KeyError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk, its server or the permissions, not the contents
        raise InspectError(
            f"{found.location / name} cannot be read ({first_line(error)}): make the corpus again"
        ) from None


def _sources(found: Artifact) -> Section:
    total = int(fact(found, "bytes"))
    ordered = sorted(fact(found, "sources").items(), key=lambda item: -item[1]["bytes"])
    rows = []
    for label, source in ordered[:_SOURCES]:
        weight = "–" if source["weight"] is None else f"{source['weight']:g}"
        rows.append((label, source["licence"] or "–", *_amounts([source], total), weight))
    if others := [source for _, source in ordered[_SOURCES:]]:
        rows.append((f"{len(others)} others", "", *_amounts(others, total), ""))
    files = plural(len(fact(found, "files")), "file")
    note = f"{int(fact(found, 'documents')):,} documents, {file_size(total)} of text, from {files}."
    return Section(
        "SOURCES", [Table(("source", "license", "documents", "text", "share", "weight"), rows, texts=2)], note
    )


def _amounts(sources: list[Mapping[str, int]], total: int) -> tuple[str, str, str]:
    """Documents, text and share of the text."""
    documents, num_bytes = (sum(source[key] for source in sources) for key in ("documents", "bytes"))
    return f"{documents:,}", file_size(num_bytes), share(num_bytes, total)


def _cleaning(found: Artifact) -> Section:
    read, dropped = int(fact(found, "read")), fact(found, "dropped")
    values = {"kept": int(fact(found, "documents")), **dict(sorted(dropped.items(), key=lambda item: -item[1]))}
    blocks: list[Block] = [
        Bars(f"{read:,} documents: kept, or dropped by reason", "documents", values, with_share(read)),
        Pairs(_duplicates(found)),
    ]
    if examples := fact(found, "examples"):
        rows = [(one["reason"], f"{one['file']}: {one['where']}", one["text"]) for one in examples]
        blocks.append(Table(("not usable", "where", "begins"), rows, texts=3))
    if empty := _without_documents(found):
        blocks.append(
            Table(
                (f"{plural(len(empty), 'file')} without documents", "dropped", "read"),
                [(one["name"], format_counts(one.get("dropped", {})), f"{one['read']:,}") for one in empty[:_SOURCES]],
                texts=2,
            )
        )
    return Section("CLEANING", blocks)


def _without_documents(found: Artifact) -> list[Mapping[str, Any]]:
    """Files that give the corpus nothing."""
    return [file for file in fact(found, "files") if not file["kept"]]


def _duplicates(found: Artifact) -> list[tuple[str, str]]:
    duplicates, recipe = fact(found, "duplicates"), found.recipe
    near = f"{duplicates['near']:,}" if recipe["near_duplicates"] else "not looked for: no table [near_duplicates]"
    overlap = ", ".join(f"{number:,} with {task}" for task, number in duplicates["overlap"].items()) or "none"
    overlap = overlap if recipe["decontamination"] else "not looked for: no table [decontamination]"
    return [("exact duplicates", f"{duplicates['exact']:,}"), ("near duplicates", near), ("evaluation texts", overlap)]


def _remarks(found: Artifact, stats: TextStats) -> list[str]:
    facts, remarks = found.facts, []
    read, sources = int(fact(found, "read")), fact(found, "sources")
    dropped: Mapping[str, int] = fact(found, "dropped")
    if (lost := read - int(facts["documents"])) > _DROPPED * read:
        most = max(dropped, key=lambda reason: dropped[reason])
        remarks.append(f"{share(lost, read)} of the documents read were dropped, most of them as {most}")
    largest = max(sources, key=lambda label: sources[label]["bytes"])
    if len(sources) > 1 and (part := sources[largest]["bytes"]) > _ONE_SOURCE * facts["bytes"]:
        remarks.append(f"{share(part, facts['bytes'])} of the text comes from one source, {largest}")
    if stats.repeated:
        remarks.append(f"{stats.repeated:,} documents are duplicates: stillhouse corpus did not make this corpus")
    if stats.median < _SHORT:
        remarks.append(f"half of the documents have at most {stats.median:,} characters: are they whole documents?")
    if (letters := stats.classes().get("letters", 0.0)) < _LETTERS:
        remarks.append(f"only {share(letters, 1)} of the characters are letters: tables, code or markup?")
    for label, line, number in stats.repeated_lines[:1]:
        if number > max(_FEW, _BOILERPLATE * (documents := len(stats.lengths[label]))):
            remarks.append(f"{number:,} of {documents:,} documents of {label} have the line {line[:80]!r}")
    return remarks
