"""Reads the documents of one span of a source, in order, one batch at a time.

Memory holds one batch, whatever the size of the file. A document that cannot be read becomes a ``BadDocument``; a file
that cannot be read (damaged, no such column) raises StageError, because a corpus must not silently lack text.

Spans of line files are byte ranges: a span has the lines, paragraphs or pages that begin in it, and reads past its end
to finish the last one. Compressed files are always one span.
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
from cluster.readers.bad_documents import BadDocument, Document, excerpt
from cluster.readers.source_recipes import CODECS, AnySource
from cluster.readers.splits import SourceSpan
from cluster.storage import filesystem
from cluster.telemetry.error_text import first_line

BATCH = 512
"""Documents of line files per batch."""
BLOCK = 2**20
"""Bytes read at once."""
MAX_BYTES = 2**25
"""Longest line, and largest file that is one document."""

Line: TypeAlias = tuple[int, bytes]
"""Offset of a line in the decompressed file, and its bytes without the line end, cut to :data:`MAX_BYTES` + 1."""

_BOM = b"\xef\xbb\xbf"
_PAGE_START = re.compile(rb'<doc id="[^"]*" url="[^"]*" title="(.*)">\r?')
_PAGE_END = b"</doc>"


def read(source: AnySource, span: SourceSpan) -> Iterator[tuple[str, list[Document]]]:
    """Label and documents of a span, before cleaning.

    Raises:
        StageError: a file or data set cannot be read.
    """
    if isinstance(source, source_recipes.InstalledDocs):
        found = docstrings.documents(source.packages)
        for package, pairs in itertools.groupby(found, key=lambda pair: pair[0]):
            yield package, [document for _, document in pairs]
        return
    yield from ((span.label, batch) for batch in _batches(source, span))


def _batches(source: source_recipes.AnyFiles | source_recipes.Hub, span: SourceSpan) -> Iterator[list[Document]]:
    if isinstance(source, source_recipes.Hub):
        yield from _hub(source, span)
    elif isinstance(source, source_recipes.Parquet):
        yield from columnar_files.parquet(span, source.column)
    elif isinstance(source, source_recipes.Arrow):
        yield from columnar_files.arrow(span, source.column)
    else:
        if isinstance(source, source_recipes.JsonLines):
            documents = _json_lines(span, source.column)
        elif isinstance(source, source_recipes.WikiExtractor):
            documents = _wiki(span)
        else:
            documents = {"file": _whole, "line": _lines, "paragraph": _paragraphs}[source.documents](span)
        while batch := list(itertools.islice(documents, BATCH)):
            yield batch


def _hub(source: source_recipes.Hub, span: SourceSpan) -> Iterator[list[Document]]:
    first_row = 1
    for table in hub_datasets.tables(source, span.place, span.stamp, span.start):
        columnar_files.check_column(source.column, table.schema, f"dataset {source.dataset}, split {source.split}")
        for chunk in table[source.column].chunks:
            yield columnar_files.strings(chunk, first_row)
            first_row += len(chunk)


def _json_lines(span: SourceSpan, column: str) -> Iterator[Document]:
    with open_text(span.place) as stream:
        decoder = _Decoder(span.start)
        for line in lines_in_range(stream, span.start, _end(span)):
            text = decoder.text(line)
            if isinstance(text, BadDocument):
                yield text
            elif text and not text.isspace():
                found, reason = _member(text, column)
                yield decoder.bad(reason, line) if reason else found


def _member(line: str, column: str) -> tuple[str, str]:
    """The text in a line of JSON, and the reason it is bad or an empty string."""
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


def _whole(span: SourceSpan) -> Iterator[Document]:
    data = b""
    with open_text(span.place) as stream:
        # A compressed stream returns fewer bytes than requested.
        while len(data) <= MAX_BYTES and (block := stream.read(BLOCK)):
            data += block
    if len(data) > MAX_BYTES:
        yield BadDocument("oversize", "the file", excerpt(data))
        return
    try:
        yield data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = data.count(b"\n", 0, error.start) + 1
        yield BadDocument("not UTF-8", f"line {number}", excerpt(data[data.rfind(b"\n", 0, error.start) + 1 :]))


def _lines(span: SourceSpan) -> Iterator[Document]:
    with open_text(span.place) as stream:
        decoder = _Decoder(span.start)
        for line in lines_in_range(stream, span.start, _end(span)):
            text = decoder.text(line)
            if isinstance(text, BadDocument) or (text and not text.isspace()):
                yield text


def _paragraphs(span: SourceSpan) -> Iterator[Document]:
    """Paragraphs that follow a blank line in the span, or the start of the file."""
    end = _end(span)
    with open_text(span.place) as stream:
        builder = _DocumentBuilder(span.start)
        in_span = span.start == 0
        for line in lines_in_range(stream, span.start, None):
            text = builder.decode(line)
            if isinstance(text, str) and (not text or text.isspace()):
                yield from builder.take()
                if end is not None and line[0] >= end:
                    return
                in_span = True
            elif in_span:
                builder.add(text)
        yield from builder.take()


def _wiki(span: SourceSpan) -> Iterator[Document]:
    """Pages that have text; WikiExtractor escapes HTML characters."""
    with open_text(span.place) as stream:
        is_json = stream.read(1) == b"{"
    for page in _json_lines(span, "text") if is_json else _pages(span):
        if isinstance(page, BadDocument):
            yield page
        elif page and not page.isspace():
            yield html.unescape(page)


def _pages(span: SourceSpan) -> Iterator[Document]:
    """Pages whose first line is in the span, without their titles."""
    end = _end(span)
    with open_text(span.place) as stream:
        builder, in_page, title = _DocumentBuilder(span.start), False, ""
        for line in lines_in_range(stream, span.start, None):
            text = builder.decode(line)
            if in_page and line[1].rstrip() == _PAGE_END:
                yield from builder.take(title)
                in_page = False
            elif in_page:
                builder.add(text)
            elif end is not None and line[0] >= end:
                return
            elif header := _PAGE_START.fullmatch(line[1]):
                title, in_page = header[1].decode("utf-8", "replace"), True
        if in_page:
            yield BadDocument("unfinished", "the last page", title)


@contextlib.contextmanager
def open_text(place: str) -> Iterator[Any]:
    """A file as a stream of decompressed bytes.

    Raises:
        StageError: the file is damaged or has become unreadable, also while it is read.
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


def lines_in_range(stream: Any, start: int, end: int | None) -> Iterator[Line]:
    """The lines that begin in ``[start, end)``; without ``end``, all from ``start``."""
    rest, offset = b"", start
    if start:
        # The byte before shows whether a line begins exactly at the start.
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


def _after_newline(stream: Any, offset: int, end: int | None) -> tuple[bytes, int]:
    """Bytes already read after the next line end, and their offset; stops searching at ``end``."""
    while (end is None or offset < end) and (block := stream.read(BLOCK)):
        if (found := block.find(b"\n")) >= 0:
            return block[found + 1 :], offset + found + 1
        offset += len(block)
    return b"", offset


def _end(span: SourceSpan) -> int | None:
    """End of a span of lines; None for a compressed file, which is read whole."""
    return None if span.place.endswith(tuple(CODECS)) else span.end


class _Decoder:
    """Decodes lines, and counts them if the span starts at the beginning of the file."""

    def __init__(self, start: int) -> None:
        self._number = 0
        self._knows_number = start == 0

    def text(self, line: Line) -> Document:
        self._number += 1
        offset, data = line
        if not offset:
            data = data.removeprefix(_BOM)
        if len(data) > MAX_BYTES:
            return self.bad("oversize", line)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            return self.bad("not UTF-8", line)

    def bad(self, reason: str, line: Line) -> BadDocument:
        """The line decoded last, as a bad document."""
        where = f"line {self._number}" if self._knows_number else f"the line at byte {line[0]}"
        return BadDocument(reason, where, excerpt(line[1]))


class _DocumentBuilder:
    """Joins lines to one document; the first bad line makes the whole document bad."""

    def __init__(self, start: int) -> None:
        self._decoder = _Decoder(start)
        self._texts: list[str] = []
        self._size = 0
        self._bad: BadDocument | None = None

    def decode(self, line: Line) -> Document:
        text = self._decoder.text(line)
        if self._size > MAX_BYTES and self._bad is None:
            self._bad = self._decoder.bad("oversize", line)
        return text

    def add(self, text: Document) -> None:
        if isinstance(text, BadDocument):
            self._bad = self._bad or text
        elif self._bad is None:
            self._texts.append(text)
            self._size += len(text)

    def take(self, title: str = "") -> Iterator[Document]:
        """The document, if there is one, without its first line if that is the title; starts the next one."""
        if self._bad is not None:
            yield self._bad
        elif self._texts:
            yield "\n".join(self._texts[1:] if title and self._texts[0].strip() == title.strip() else self._texts)
        self._texts, self._size, self._bad = [], 0, None
