"""Readers: the documents of one span of a source, in order, a batch at a time.

A reader holds no more than a batch of documents, whatever the size of its file. A document that is no text is a
:class:`~cluster.faults.Fault` among the others; what makes a whole file unreadable (no such column, a file that was
cut) is refused by name: a corpus that silently lacks a part of its text is worse than none.
"""

import html
import itertools
import json
import re
from collections.abc import Iterator
from typing import Any

from cluster import columnar, hub, installed_docs, lines, sources
from cluster.faults import Document, Fault, excerpt
from cluster.pieces import Span
from cluster.sources import CODECS, AnyFiles, AnySource

BATCH = 512
"""Documents of line files handed on together."""

_PAGE = re.compile(rb'<doc id="[^"]*" url="[^"]*" title="(.*)">\r?')
_PAGE_END = b"</doc>"


def read(source: AnySource, span: Span) -> Iterator[tuple[str, list[Document]]]:
    """Label and documents of a span, uncleaned.

    Raises:
        StageError: something there cannot be read at all.
    """
    if isinstance(source, sources.InstalledDocs):
        found = installed_docs.documents(source.packages)
        for package, pairs in itertools.groupby(found, key=lambda pair: pair[0]):
            yield package, [document for _, document in pairs]
        return
    label = sources.label(source)
    batches = _hub(source, span) if isinstance(source, sources.Hub) else _file(source, span)
    yield from ((label, batch) for batch in batches)


def _hub(source: sources.Hub, span: Span) -> Iterator[list[Document]]:
    first = 1
    for table in hub.tables(source, span.place, span.stamp, span.start):
        columnar.check_column(source.column, table.schema, f"dataset {source.dataset}, split {source.split}")
        for chunk in table[source.column].chunks:
            yield columnar.strings(chunk, first)
            first += len(chunk)


def _file(source: AnyFiles, span: Span) -> Iterator[list[Document]]:
    if isinstance(source, sources.Parquet):
        return columnar.parquet(span, source.column)
    if isinstance(source, sources.Arrow):
        return columnar.arrow(span, source.column)
    if isinstance(source, sources.JsonLines):
        return _batches(_json_lines(span, source.column))
    if isinstance(source, sources.WikiExtractor):
        return _batches(_wiki(span))
    return _batches({"file": _whole, "line": _lines, "paragraph": _paragraphs}[source.documents](span))


def _batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    while batch := list(itertools.islice(documents, BATCH)):
        yield batch


def _end(span: Span) -> int | None:
    """Where a span of lines ends; a compressed file is read whole."""
    return None if span.place.endswith(tuple(CODECS)) else span.end


def _json_lines(span: Span, column: str) -> Iterator[Document]:
    with lines.opened(span.place) as stream:
        decoder = lines.Decoder(span.start)
        for line in lines.of_range(stream, span.start, _end(span)):
            text = decoder.text(line)
            if isinstance(text, Fault):
                yield text
            elif text and not text.isspace():
                found, reason = _member(text, column)
                yield decoder.fault(reason, line) if reason else found


def _member(line: str, column: str) -> tuple[str, str]:
    """The text in a line of JSON, and what is wrong with it where something is."""
    try:
        record: Any = json.loads(line)
    except (ValueError, RecursionError):
        return "", "not JSON"
    if not isinstance(record, dict):
        return "", "no object"
    if column not in record:
        return "", "no column"
    text = record[column]
    if isinstance(text, str):
        return text, ""
    return "", "missing" if text is None else "no string"


def _whole(span: Span) -> Iterator[Document]:
    with lines.opened(span.place) as stream:
        data = lines.head(stream)
    if len(data) > lines.MAX_BYTES:
        yield Fault("oversize", "the file", excerpt(data))
        return
    try:
        yield data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = data.count(b"\n", 0, error.start) + 1
        yield Fault("not UTF-8", f"line {number}", excerpt(data[data.rfind(b"\n", 0, error.start) + 1 :]))


def _lines(span: Span) -> Iterator[Document]:
    with lines.opened(span.place) as stream:
        decoder = lines.Decoder(span.start)
        for line in lines.of_range(stream, span.start, _end(span)):
            text = decoder.text(line)
            if isinstance(text, Fault) or (text and not text.isspace()):
                yield text


def _paragraphs(span: Span) -> Iterator[Document]:
    """Paragraphs that follow a blank line in the span, or the beginning of the file; the last may go on behind it."""
    end = _end(span)
    with lines.opened(span.place) as stream:
        gathered = _Gathered(span.start)
        ours = span.start == 0
        for line in lines.of_range(stream, span.start, None):
            text = gathered.decode(line)
            if isinstance(text, str) and (not text or text.isspace()):
                yield from gathered.take()
                if end is not None and line[0] >= end:
                    return
                ours = True
            elif ours:
                gathered.add(text)
        yield from gathered.take()


def _wiki(span: Span) -> Iterator[Document]:
    """Pages with text; WikiExtractor has escaped what HTML would take for its own."""
    with lines.opened(span.place) as stream:
        is_json = stream.read(1) == b"{"
    for page in _json_lines(span, "text") if is_json else _pages(span):
        if isinstance(page, Fault):
            yield page
        elif page and not page.isspace():
            yield html.unescape(page)


def _pages(span: Span) -> Iterator[Document]:
    """Pages whose first line lies in the span, without their titles."""
    end = _end(span)
    with lines.opened(span.place) as stream:
        gathered, begun, title = _Gathered(span.start), False, ""
        for line in lines.of_range(stream, span.start, None):
            text = gathered.decode(line)
            if begun and line[1].rstrip() == _PAGE_END:
                yield from gathered.take(title)
                begun = False
            elif begun:
                gathered.add(text)
            elif end is not None and line[0] >= end:
                return
            elif header := _PAGE.fullmatch(line[1]):
                title, begun = header[1].decode("utf-8", "replace"), True
        if begun:
            yield Fault("unfinished", "the last page", title)


class _Gathered:
    """Lines that are one document together."""

    def __init__(self, start: int) -> None:
        self._decoder = lines.Decoder(start)
        self._texts: list[str] = []
        self._size = 0
        self._fault: Fault | None = None

    def decode(self, line: lines.Line) -> Document:
        text = self._decoder.text(line)
        if self._size > lines.MAX_BYTES and self._fault is None:
            self._fault = self._decoder.fault("oversize", line)
        return text

    def add(self, text: Document) -> None:
        if isinstance(text, Fault):
            self._fault = self._fault or text
        elif self._fault is None:
            self._texts.append(text)
            self._size += len(text)

    def take(self, title: str = "") -> Iterator[Document]:
        """The document where there is one, less its first line where that is the title."""
        if self._fault is not None:
            yield self._fault
        elif self._texts:
            yield "\n".join(self._texts[1:] if title and self._texts[0].strip() == title.strip() else self._texts)
        self._texts, self._size, self._fault = [], 0, None
