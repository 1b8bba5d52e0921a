"""Reads the text in files with one JSON object per line."""

import json
import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from cluster.artifacts.errors import StageError
from cluster.readers import read_errors, text_lines
from cluster.readers.bad_documents import BadDocument, Document
from cluster.readers.splits import SourceSpan
from cluster.readers.text_lines import Line, LineDecoder

_ARRAY = re.compile(rb"\[\s*(?:\{|$)")


def documents(span: SourceSpan, column: str) -> Iterator[Document]:
    """The text in each line of a span."""
    for record in records(span):
        if isinstance(record, BadDocument):
            yield record
        else:
            yield record.text(column)


class Record:
    """One object of a file, and its place."""

    def __init__(self, value: dict[str, Any], line: Line, decoder: LineDecoder) -> None:
        self.value, self._line, self._decoder = value, line, decoder

    def text(self, column: str) -> Document:
        """The text of a member: of one with this name, or of ``outer.inner``. Ask before the next record is read."""
        found, text = _member(self.value, column)
        if isinstance(text, str):
            return text
        reason = "no column" if not found else "missing" if text is None else "no string"
        return self._decoder.bad(reason, self._line)


def records(span: SourceSpan) -> Iterator[Record | BadDocument]:
    """The objects of a span, and its bad lines; blank lines are skipped.

    Raises:
        StageError: the file holds arrays, or objects over several lines.
    """
    decoder = LineDecoder(span.start)
    first = span.start == 0
    for line in text_lines.of_span(span):
        text = decoder.text(line)
        if text_lines.is_blank(text):
            continue
        if first:
            _refuse_other_json(span.place, line[1])
            first = False
        if isinstance(text, BadDocument):
            yield text
            continue
        value, reason = _parsed(text)
        yield decoder.bad(reason, line) if reason else Record(value, line, decoder)


def _parsed(line: str) -> tuple[Any, str]:
    """The value in a line, and the reason it is bad or an empty string."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None, "not JSON"
    return value, "" if isinstance(value, dict) else "no object"


def _member(record: dict[str, Any], column: str) -> tuple[bool, Any]:
    """Whether an object has a member of this name, and its value; a name that really holds a dot comes first."""
    if column in record:
        return True, record[column]
    outer, dot, inner = column.partition(".")
    while dot:
        if isinstance(within := record.get(outer), dict):
            return _member(within, inner)
        if outer in record and within is None:
            return True, None
        more, dot, inner = inner.partition(".")
        outer = f"{outer}.{more}"
    return False, None


def _refuse_other_json(place: str, line: bytes) -> None:
    """Raise StageError if a file whose first line this is holds arrays of objects, or objects in many lines."""
    start = line.removeprefix(text_lines.BOM).strip()
    what, command = "", ""
    if _ARRAY.match(start):
        what, command = "arrays", "jq -c '.[]'"
    elif start == b"{":
        what, command = "over several lines", "jq -c ."
    if what:
        new = read_errors.quoted(f"{PurePosixPath(place).name.partition('.')[0]}-lines.jsonl")
        raise StageError(
            f"{place} holds JSON {what}, not one object per line: write it so, for example with "
            f"{command} {read_errors.quoted(place)} > {new}"
        )
