"""Reads the lines of one span of a text file, decodes them, and joins them to documents.

Lines end at line feeds alone: texts contain other characters at which Python would split (U+2028, NEL, form feed).
"""

from collections.abc import Iterator
from typing import Any, TypeAlias

from cluster.artifacts.errors import StageError
from cluster.readers import byte_streams, read_errors
from cluster.readers.bad_documents import BadDocument, Document, excerpt
from cluster.readers.splits import SourceSpan

BLOCK = 2**20
"""Bytes read at once."""
MAX_BYTES = 2**25
"""Longest line, and largest file that is one document."""

Line: TypeAlias = tuple[int, bytes]
"""Offset of a line in the decompressed file, and its bytes without the line end, cut to :data:`MAX_BYTES` + 1."""

BOM = b"\xef\xbb\xbf"


def of_span(span: SourceSpan, past_end: bool = False) -> Iterator[Line]:
    """The lines that begin in a span; with ``past_end`` also those behind it, to the end of the file."""
    with byte_streams.open_text(span.place, span.start, cut=end_of(span) is not None) as stream:
        yield from _in_range(stream, span.place, span.start, None if past_end else end_of(span))


def end_of(span: SourceSpan) -> int | None:
    """End of a span; None at the end of the file, since that of a compressed one is not known before it is read."""
    return None if span.end >= span.size else span.end


def is_blank(text: Document) -> bool:
    return isinstance(text, str) and (not text or text.isspace())


def _in_range(stream: Any, place: str, start: int, end: int | None) -> Iterator[Line]:
    """The lines that begin in ``[start, end)``; without ``end``, all from ``start``."""
    rest, offset = b"", start
    if start:
        # The byte before shows whether a line begins exactly at the start.
        stream.seek(start - 1)
        rest, offset = _after_newline(stream, start - 1, end)
    while end is None or offset < end:
        block = stream.read(BLOCK)
        if not offset:
            _refuse_returns(place, block)
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


def _refuse_returns(place: str, block: bytes) -> None:
    """Raise StageError if the lines of a file that begins with this block end as on old systems."""
    if b"\r" in block.rstrip(b"\r") and b"\n" not in block:
        raise StageError(
            f"{place} ends its lines with carriage returns alone: write it anew, for example with "
            f"tr '\\r' '\\n' < {read_errors.quoted(place)} > NEW"
        )


def _after_newline(stream: Any, offset: int, end: int | None) -> tuple[bytes, int]:
    """Bytes already read after the next line end, and their offset; stops searching at ``end``."""
    while (end is None or offset < end) and (block := stream.read(BLOCK)):
        if (found := block.find(b"\n")) >= 0:
            return block[found + 1 :], offset + found + 1
        offset += len(block)
    return b"", offset


class LineDecoder:
    """Decodes lines, and counts them if the span starts at the beginning of the file."""

    def __init__(self, start: int) -> None:
        self._number = 0
        self._knows_number = start == 0

    def text(self, line: Line) -> Document:
        """The text of a line, without the byte order mark that begins a file, also one behind another in the file."""
        self._number += 1
        data = line[1].removeprefix(BOM)
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


class DocumentBuilder:
    """Joins lines to one document; the first bad line makes the whole document bad."""

    def __init__(self, start: int) -> None:
        self._decoder = LineDecoder(start)
        self._texts: list[str] = []
        self._size = 0
        self._bad: BadDocument | None = None

    def decode(self, line: Line) -> Document:
        text = self._decoder.text(line)
        if self._size > MAX_BYTES and self._bad is None:
            self._bad = self.bad("oversize", line)
        return text

    def bad(self, reason: str, line: Line) -> BadDocument:
        """The line decoded last, as a bad document."""
        return self._decoder.bad(reason, line)

    def add(self, text: Document) -> None:
        if isinstance(text, BadDocument):
            self._bad = self._bad or text
        elif self._bad is None:
            self._texts.append(text)
            self._size += len(text)

    def take(self) -> Document | None:
        """The document, if there is one; starts the next one."""
        document = self._bad or ("\n".join(self._texts) if self._texts else None)
        self._texts, self._size, self._bad = [], 0, None
        return document
