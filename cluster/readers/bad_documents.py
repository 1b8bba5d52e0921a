"""Documents that cannot be used: counted by reason with a few examples, and refused when they are too many.

A single broken line in a terabyte is no reason to stop; a file in another encoding is. Bad are documents that were
meant as text and are none. What the filters of a recipe turn away (short, another language …) is not: that is their
work, and it is counted as well.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from cluster.artifacts.errors import StageError

ADVICE = {
    "not UTF-8": "convert the file, for example with iconv -t utf-8",
    "not JSON": "mend or delete such lines",
    "no object": "write one JSON object a line",
    "no column": "set column to the name of the member that holds the text",
    "no string": "set column to one that holds strings",
    "unfinished": "see whether the file was cut: it ends inside a document",
    "missing": "set column to one that is filled",
    "empty": "see whether column names the right one",
    "oversize": "cut the documents; of plain text, set documents to 'paragraph' or 'line'",
    "long": "cut the documents, or raise cleaning.max_characters",
}
"""Reasons for which a document is bad, and what to do about them."""

EXAMPLES = 5
"""Kept of each piece of a corpus, and shown."""

FEW = 10
"""So many bad documents never stop a run, whatever their share: of a hundred documents one is one per cent."""

EXCERPT = 40
"""Characters shown of a document."""


@dataclass(frozen=True)
class Fault:
    """A document that could not be read as text."""

    reason: str
    where: str
    """Its place in its file."""
    text: str
    """How it begins."""


Document: TypeAlias = str | Fault
"""What a reader gives: a text, or what is wrong with it."""


def excerpt(document: bytes | str) -> str:
    """How a document begins, whatever is in it, in one line."""
    if isinstance(document, str):
        return ascii(document[:EXCERPT])[1:-1] if not document[:EXCERPT].isprintable() else document[:EXCERPT]
    return document[:EXCERPT].decode("utf-8", "backslashreplace").strip()


def check(read: int, bad: Mapping[str, int], share: float, examples: list[dict[str, Any]]) -> None:
    """Raise StageError where more than ``share`` of the documents read so far are bad, with examples."""
    count = sum(bad.values())
    if count <= max(FEW, share * read):
        return
    commonest = max(sorted(bad), key=lambda reason: bad[reason])
    raise StageError(
        f"{count:,} of the first {read:,} documents are bad ({counted(bad)}), more than max_bad_share = {share}"
        f"{shown(examples)}: {ADVICE[commonest]}, or raise max_bad_share"
    )


def counted(reasons: Mapping[str, int]) -> str:
    """Counts by reason, in words."""
    return ", ".join(f"{count:,} {reason}" for reason, count in sorted(reasons.items())) or "nothing"


def shown(examples: list[dict[str, Any]]) -> str:
    """Examples as part of a line, or nothing."""
    lines = [f"{one['place']}: {one['where']}: {one['reason']}: {one['text']!r}" for one in examples[:EXAMPLES]]
    return f", for example {'; '.join(lines)}" if lines else ""
