"""Readers: the documents of one span of a source, in order, a batch at a time.

A reader holds no more than a batch of documents, whatever the size of its file. A document that is no text is a
``Fault`` among the others; what makes a whole file unreadable (no such column, a file that was
cut) is refused by name: a corpus that silently lacks a part of its text is worse than none.
"""

import contextlib
import html
import itertools
import json
import re
from collections.abc import Iterator
from typing import Any, TypeAlias

import pyarrow as pa

from cluster.artifacts.errors import StageError
from cluster.readers import columnar_files, docstrings, hub_datasets, source_recipes
from cluster.readers.bad_documents import Document, Fault, excerpt
from cluster.readers.source_recipes import CODECS, AnyFiles, AnySource
from cluster.readers.splits import Span
from cluster.storage import filesystem
from cluster.telemetry.error_text import first_line

BATCH = 512
"""Documents of line files handed on together."""

_PAGE = re.compile(rb'<doc id="[^"]*" url="[^"]*" title="(.*)">\r?')


_PAGE_END = b"</doc>"


def read(source: AnySource, span: Span) -> Iterator[tuple[str, list[Document]]]:
    """Label and documents of a span, uncleaned.

    Raises:
        StageError: something there cannot be read at all.
    """
    if isinstance(source, source_recipes.InstalledDocs):
        found = docstrings.documents(source.packages)
        for package, pairs in itertools.groupby(found, key=lambda pair: pair[0]):
            yield package, [document for _, document in pairs]
        return
    label = source_recipes.label(source)
    batches = _hub(source, span) if isinstance(source, source_recipes.Hub) else _file(source, span)
    yield from ((label, batch) for batch in batches)


def _hub(source: source_recipes.Hub, span: Span) -> Iterator[list[Document]]:
    first = 1
    for table in hub_datasets.tables(source, span.place, span.stamp, span.start):
        columnar_files.check_column(source.column, table.schema, f"dataset {source.dataset}, split {source.split}")
        for chunk in table[source.column].chunks:
            yield columnar_files.strings(chunk, first)
            first += len(chunk)


def _file(source: AnyFiles, span: Span) -> Iterator[list[Document]]:
    if isinstance(source, source_recipes.Parquet):
        return columnar_files.parquet(span, source.column)
    if isinstance(source, source_recipes.Arrow):
        return columnar_files.arrow(span, source.column)
    if isinstance(source, source_recipes.JsonLines):
        return _batches(_json_lines(span, source.column))
    if isinstance(source, source_recipes.WikiExtractor):
        return _batches(_wiki(span))
    return _batches({"file": _whole, "line": _lines, "paragraph": _paragraphs}[source.documents](span))


def _batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    while batch := list(itertools.islice(documents, BATCH)):
        yield batch


def _end(span: Span) -> int | None:
    """Where a span of lines ends; a compressed file is read whole."""
    return None if span.place.endswith(tuple(CODECS)) else span.end


def _json_lines(span: Span, column: str) -> Iterator[Document]:
    with opened(span.place) as stream:
        decoder = Decoder(span.start)
        for line in of_range(stream, span.start, _end(span)):
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
    with opened(span.place) as stream:
        data = head(stream)
    if len(data) > MAX_BYTES:
        yield Fault("oversize", "the file", excerpt(data))
        return
    try:
        yield data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = data.count(b"\n", 0, error.start) + 1
        yield Fault("not UTF-8", f"line {number}", excerpt(data[data.rfind(b"\n", 0, error.start) + 1 :]))


def _lines(span: Span) -> Iterator[Document]:
    with opened(span.place) as stream:
        decoder = Decoder(span.start)
        for line in of_range(stream, span.start, _end(span)):
            text = decoder.text(line)
            if isinstance(text, Fault) or (text and not text.isspace()):
                yield text


def _paragraphs(span: Span) -> Iterator[Document]:
    """Paragraphs that follow a blank line in the span, or the beginning of the file; the last may go on behind it."""
    end = _end(span)
    with opened(span.place) as stream:
        gathered = _Gathered(span.start)
        ours = span.start == 0
        for line in of_range(stream, span.start, None):
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
    with opened(span.place) as stream:
        is_json = stream.read(1) == b"{"
    for page in _json_lines(span, "text") if is_json else _pages(span):
        if isinstance(page, Fault):
            yield page
        elif page and not page.isspace():
            yield html.unescape(page)


def _pages(span: Span) -> Iterator[Document]:
    """Pages whose first line lies in the span, without their titles."""
    end = _end(span)
    with opened(span.place) as stream:
        gathered, begun, title = _Gathered(span.start), False, ""
        for line in of_range(stream, span.start, None):
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


Line: TypeAlias = tuple[int, bytes]
"""Where a line begins in its file, decompressed, and its bytes without the end of line. One that is longer than
:data:`MAX_BYTES` is cut to a byte more."""


class _Gathered:
    """Lines that are one document together."""

    def __init__(self, start: int) -> None:
        self._decoder = Decoder(start)
        self._texts: list[str] = []
        self._size = 0
        self._fault: Fault | None = None

    def decode(self, line: Line) -> Document:
        text = self._decoder.text(line)
        if self._size > MAX_BYTES and self._fault is None:
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


BLOCK = 2**20

MAX_BYTES = 2**25
"""Longest line, and largest file that is one document."""

_BOM = b"\xef\xbb\xbf"


@contextlib.contextmanager
def opened(place: str) -> Iterator[Any]:
    """A file as a stream of decompressed bytes.

    Raises:
        StageError: the file is damaged, or cannot be read any more.
    """
    location = filesystem.location(place)
    codec = CODECS.get(location.suffix)
    try:
        with filesystem.open_read(location) as raw:
            yield pa.CompressedInputStream(pa.PythonFile(raw, "r"), codec) if codec else raw
    except (OSError, pa.ArrowException) as error:
        raise StageError(
            f"{place} cannot be read ({first_line(error)}): it is cut or damaged, fetch it again"
        ) from None


def of_range(stream: Any, start: int, end: int | None) -> Iterator[Line]:
    """The lines that begin in ``[start, end)`` of a stream; all of them, from the beginning, where it has no end."""
    rest, offset = b"", start
    if start:
        # The byte before says whether a line begins exactly here.
        stream.seek(start - 1)
        rest, offset = _after_newline(stream, start - 1, end)
    while end is None or offset < end:
        block = stream.read(BLOCK)
        found = (rest + block).split(b"\n")
        rest = found.pop()
        for line in found:
            if end is not None and offset >= end:
                return
            yield offset, line[: MAX_BYTES + 1]
            offset += len(line) + 1
        if not block:
            break
        if len(rest) > MAX_BYTES and (end is None or offset < end):
            yield offset, rest[: MAX_BYTES + 1]
            rest, offset = _after_newline(stream, offset + len(rest), end)
    if rest and (end is None or offset < end):
        yield offset, rest


def head(stream: Any) -> bytes:
    """All of a stream, or a little more than :data:`MAX_BYTES` of it."""
    data = b""
    while len(data) <= MAX_BYTES and (block := stream.read(BLOCK)):  # a compressed stream gives less than it is asked
        data += block
    return data


def _after_newline(stream: Any, offset: int, end: int | None) -> tuple[bytes, int]:
    """What was read behind the next end of line, and where that is in the stream; beyond ``end`` none is looked for."""
    while (end is None or offset < end) and (block := stream.read(BLOCK)):
        if (found := block.find(b"\n")) >= 0:
            return block[found + 1 :], offset + found + 1
        offset += len(block)
    return b"", offset


class Decoder:
    """Lines as text, or what is wrong with them; knows their numbers where it has seen a file from its beginning."""

    def __init__(self, start: int) -> None:
        self._number = 0
        self._from_start = not start

    def text(self, line: Line) -> str | Fault:
        self._number += 1
        offset, data = line
        if not offset:
            data = data.removeprefix(_BOM)
        if len(data) > MAX_BYTES:
            return self.fault("oversize", line)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            return self.fault("not UTF-8", line)

    def fault(self, reason: str, line: Line) -> Fault:
        """What is wrong with the line decoded last."""
        where = f"line {self._number}" if self._from_start else f"the line at byte {line[0]}"
        return Fault(reason, where, excerpt(line[1]))
