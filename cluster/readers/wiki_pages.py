"""Reads the pages that WikiExtractor and cirrus-extract write, as ``<doc>`` text or with ``--json``.

The text of a page begins with its title, which is left out. Between a page's ``<doc …>`` and ``</doc>`` everything is
text, and outside of them nothing is.
"""

import html
import re
from collections.abc import Iterator

from cluster.readers import byte_streams, json_lines, text_lines
from cluster.readers.bad_documents import BadDocument, Document
from cluster.readers.splits import SourceSpan
from cluster.readers.text_lines import DocumentBuilder, Line

NO_TEXT = "page without text"
"""Reason of a page, such as a redirect, that is dropped and is not bad."""

# Forks differ in the attributes (url, title, revid, language, revision), and none escapes the quotes in a title.
_PAGE_START = re.compile(rb"<doc\s+[\w:.-]+\s*=.*>\s*")
_BEGINNINGS = (b"<doc", text_lines.BOM + b"<doc")
_PAGE_END = b"</doc>"
_BORDERS = (*_BEGINNINGS, _PAGE_END)


def documents(span: SourceSpan) -> Iterator[Document]:
    """The pages of a span, without their titles and HTML escapes."""
    start = byte_streams.text_head(span.place).removeprefix(text_lines.BOM).lstrip()
    for page in _json_pages(span) if start.startswith((b"{", b"[{")) else _Pages(span).read():
        if isinstance(page, BadDocument):
            yield page
        elif text_lines.is_blank(page):
            yield BadDocument(NO_TEXT, "a page", "")
        else:
            yield html.unescape(page)


def _json_pages(span: SourceSpan) -> Iterator[Document]:
    for record in json_lines.records(span):
        if isinstance(record, BadDocument):
            yield record
        elif isinstance(text := record.text("text"), str):
            yield _without_title(text, str(record.value.get("title") or ""))
        else:
            yield text


class _Pages:
    """The pages whose first line is in a span.

    In the middle of a file, the first lines belong to a page that the span before reads, or lie outside of pages: the
    next ``</doc>`` or ``<doc>`` tells which.
    """

    def __init__(self, span: SourceSpan) -> None:
        self._span, self._end = span, text_lines.end_of(span)
        self._builder = DocumentBuilder(span.start)
        self._page: Line | None = None
        """First line of the page that is being read."""
        self._outside: BadDocument | None = None
        """The first of the last lines outside of pages."""
        self._known = span.start == 0

    def read(self) -> Iterator[Document]:
        for line in text_lines.of_span(self._span, past_end=True):
            text = self._builder.decode(line)
            if self._page is not None and not line[1].startswith(_BORDERS):
                self._builder.add(text)
                continue
            is_start = line[1].startswith(_BEGINNINGS) and _PAGE_START.fullmatch(line[1].removeprefix(text_lines.BOM))
            if (is_start or self._page is None) and self._end is not None and line[0] >= self._end:
                break
            if is_start or line[1].rstrip() == _PAGE_END:
                yield from self._border(line if is_start else None)
            elif self._page is not None:
                self._builder.add(text)
            elif self._outside is None and not text_lines.is_blank(text):
                self._outside = self._builder.bad("outside of <doc>", line)
        yield from self._left()

    def _border(self, page: Line | None) -> Iterator[Document]:
        """What ends at the first line of a page, or at the last one of one."""
        if self._page is not None and page is None:
            yield self._text(self._page)
        elif self._page is not None:
            yield self._unfinished()
        elif self._outside is not None and (self._known or page is not None):
            yield self._outside
        self._page, self._outside, self._known = page, None, True

    def _left(self) -> Iterator[Document]:
        """What the file, or the span, ends in."""
        if self._page is not None:
            yield self._unfinished()
        elif self._outside is not None and self._known:
            yield self._outside

    def _text(self, page: Line) -> Document:
        document = self._builder.take() or ""
        if isinstance(document, BadDocument):
            return document
        return _without_title(document, _attributes(page))

    def _unfinished(self) -> BadDocument:
        assert self._page is not None
        self._builder.take()
        return BadDocument("unfinished", "a page without </doc>", _attributes(self._page)[:80])


def _attributes(page: Line) -> str:
    return page[1].removeprefix(text_lines.BOM).decode("utf-8", "replace").strip()


def _without_title(text: str, title: str) -> str:
    """The text without its first line if that is the title, given as it is or as an attribute."""
    first, _, rest = text.lstrip("\r\n").partition("\n")
    first = first.strip()
    given = {title.strip(), html.unescape(title).strip()}
    is_title = bool(first) and any(
        one in (first, html.unescape(first)) or f'title="{first}"' in one or f"title='{first}'" in one for one in given
    )
    return rest if is_title else text
