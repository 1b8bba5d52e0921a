"""What is in a corpus: where its documents come from, what was left out and why, and what the text is like.

Numbers of documents and bytes are the manifest's; what only the text can tell is measured on :data:`BUDGET` bytes of
it, evenly spread over the files.
"""

from collections.abc import Iterator, Mapping

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.artifacts.artifact import Artifact
from cluster.corpus import document_table
from cluster.inspect.findings import Bars, Block, Findings, InspectError, Pairs, Section, Table, fact
from cluster.inspect.text_stats import TextStats, described, samples
from cluster.inspect.token_rows import evenly
from cluster.storage import filesystem
from cluster.telemetry import progress
from cluster.telemetry.error_text import first_line
from cluster.telemetry.formatting import file_size, plural, share

BUDGET = 2**25
"""Bytes of text looked at."""
_FILES = 32
_MOST = 12
"""Sources, reasons and tasks shown one by one."""
_FEW = 5
_SHORT, _DROPPED, _LETTERS, _BOILERPLATE, _ONE_SOURCE = 100, 0.5, 0.65, 0.05, 0.95
"""Characters of a middle document, and shares, from which on something is worth a remark."""


def inspect(found: Artifact, num_samples: int) -> Findings:
    """All there is to see of a corpus."""
    text = _look(found, num_samples)
    looked = "all documents" if text.whole else f"{text.documents:,} documents, evenly spread over the files"
    sections = [
        _sources(found),
        _cleaning(found),
        Section("TEXT", described(text), f"Measured on {looked}."),
        Section("DOCUMENTS", samples(text, num_samples)),
    ]
    return Findings("", "", "", _remarks(found, text), sections)


def _look(found: Artifact, num_samples: int) -> TextStats:
    names = sorted(name for name in found.files if name.endswith(".parquet"))
    chosen = evenly(names, _FILES)
    text = TextStats(whole=len(chosen) == len(names))
    for name in progress.progress(chosen, "documents", len(chosen), "files"):
        for label, document in _documents(found, name, BUDGET // len(chosen), text):
            text.add(label, document, num_samples)
    return text


def _documents(found: Artifact, name: str, budget: int, text: TextStats) -> Iterator[tuple[str, str]]:
    """Labels and texts of some row groups of a file."""
    try:
        with filesystem.open_read(found.location / name) as source, pq.ParquetFile(source) as file:
            groups = list(range(file.num_row_groups))
            each = max(1, file.metadata.row_group(0).column(1).total_uncompressed_size) if groups else 1
            wanted = evenly(groups, max(1, budget // each))
            text.whole &= len(wanted) == len(groups)
            for number in wanted:
                table = file.read_row_group(number, columns=[document_table.SOURCE, document_table.TEXT])
                yield from zip(
                    *(table[column].to_pylist() for column in (document_table.SOURCE, document_table.TEXT)), strict=True
                )
    except (pa.ArrowException, KeyError, OSError) as error:
        raise InspectError(
            f"{found.location / name} cannot be read ({first_line(error)}): make the corpus again"
        ) from None


def _sources(found: Artifact) -> Section:
    sources = fact(found, "sources")
    documents, num_bytes = int(fact(found, "documents")), int(fact(found, "bytes"))
    ordered = sorted(sources.items(), key=lambda item: -item[1]["bytes"])
    rows = [
        (
            label,
            told["licence"] or "–",
            f"{told['documents']:,}",
            file_size(told["bytes"]),
            share(told["bytes"], num_bytes),
            "–" if told["weight"] is None else f"{told['weight']:g}",
        )
        for label, told in ordered[:_MOST]
    ]
    if others := ordered[_MOST:]:
        rest = sum(told["bytes"] for _, told in others)
        number = sum(told["documents"] for _, told in others)
        rows.append((f"{len(others)} others", "", f"{number:,}", file_size(rest), share(rest, num_bytes), ""))
    note = (
        f"{documents:,} documents, {file_size(num_bytes)} of text, of {plural(len(fact(found, 'files')), 'file')} read."
    )
    head = ("source", "licence", "documents", "text", "share", "weight")
    return Section("SOURCES", [Table(head, rows, texts=2)], note)


def _cleaning(found: Artifact) -> Section:
    """What was read, and what became of it."""
    read, kept, dropped = int(fact(found, "read")), int(fact(found, "documents")), fact(found, "dropped")
    ordered = dict(sorted(dropped.items(), key=lambda item: -item[1]))
    values = {"kept": kept, **ordered}
    shown = {name: f"{number:,}  {share(number, read)}" for name, number in values.items()}
    blocks: list[Block] = [
        Bars(f"What became of {read:,} documents", "documents", values, shown),
        Pairs(_duplicates(found)),
    ]
    if examples := fact(found, "examples"):
        rows = [(one["reason"], f"{one['file']}: {one['where']}", one["text"]) for one in examples]
        blocks.append(Table(("not usable", "where", "begins"), rows, texts=3))
    return Section("CLEANING", blocks)


def _duplicates(found: Artifact) -> list[tuple[str, str]]:
    duplicates, recipe = fact(found, "duplicates"), found.recipe
    near = f"{duplicates['near']:,}" if recipe["near_duplicates"] else "not looked for: no table [near_duplicates]"
    entries = [("exact duplicates", f"{duplicates['exact']:,}"), ("near duplicates", near)]
    if not recipe["decontamination"]:
        return [*entries, ("evaluation texts", "not looked for: no table [decontamination]")]
    overlap: Mapping[str, int] = duplicates["overlap"]
    tasks = ", ".join(f"{number:,} with {task}" for task, number in overlap.items()) or "none"
    return [*entries, ("evaluation texts", tasks)]


def _remarks(found: Artifact, text: TextStats) -> list[str]:
    facts, remarks = found.facts, []
    read, sources = int(fact(found, "read")), fact(found, "sources")
    dropped: Mapping[str, int] = fact(found, "dropped")
    if (lost := read - int(facts["documents"])) > _DROPPED * read:
        most = max(dropped, key=lambda reason: dropped[reason])
        remarks.append(f"{share(lost, read)} of the documents read were left out, most of them as {most}")
    largest = max(sources, key=lambda label: sources[label]["bytes"])
    if len(sources) > 1 and (part := sources[largest]["bytes"]) > _ONE_SOURCE * facts["bytes"]:
        remarks.append(f"{share(part, facts['bytes'])} of the text is of one source, {largest}")
    if text.repeated:
        remarks.append(f"{text.repeated:,} documents are there twice: this is no corpus that cluster.corpus made")
    if text.median < _SHORT:
        remarks.append(f"half of the documents have no more than {text.median:,} characters: are they whole documents?")
    if (letters := text.classes().get("letters", 0.0)) < _LETTERS:
        remarks.append(f"only {share(letters, 1)} of the characters are letters: tables, code or markup?")
    for label, line, number in text.repeated_lines[:1]:
        if number > max(_FEW, _BOILERPLATE * (documents := len(text.lengths[label]))):
            remarks.append(f"a line stands in {number:,} of {documents:,} documents of {label}: {line[:80]!r}")
    return remarks
