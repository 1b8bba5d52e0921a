"""Bad documents: records that should hold text and do not. Counted by reason, shown by example, refused when too many.

One broken line in a terabyte must not stop a run; a file in another encoding must. Documents that the filters of a
recipe drop (too short, another language) are not bad; they are counted separately.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from cluster.artifacts.errors import StageError

ADVICE = {
    "not UTF-8": "convert the file, for example with iconv -f latin1 -t utf-8",
    "not JSON": "repair or delete these lines",
    "no object": "write one JSON object per line",
    "no column": "set column to the name of the member that holds the text",
    "no string": "set column to one that holds strings",
    "unfinished": "check whether the file was cut: it ends inside a document",
    "outside of <doc>": "check whether WikiExtractor wrote these files: it writes pages from <doc …> to </doc>",
    "missing": "set column to one that is filled",
    "empty": "check whether column names the right one",
    "oversize": "cut the documents; for plain text, set documents to 'paragraph' or 'line'",
    "long": "cut the documents, or raise cleaning.max_characters",
}
"""Reason a document is bad, and the advice for it."""

EXAMPLES = 5
"""Examples kept per split, and shown in messages."""

ALWAYS_TOLERATED = 10
"""Number of bad documents that never stops a run: of a hundred documents, one is already one per cent."""

EXCERPT_CHARACTERS = 40


@dataclass(frozen=True)
class BadDocument:
    """A document that could not be read as text."""

    reason: str
    where: str
    """Its position in its file."""
    text: str
    """Its first characters."""


Document: TypeAlias = str | BadDocument


def excerpt(document: bytes | str) -> str:
    """The first characters of a document as one printable line."""
    start = document[:EXCERPT_CHARACTERS]
    if isinstance(start, str):
        return start if start.isprintable() else ascii(start)[1:-1]
    return start.decode("utf-8", "backslashreplace").strip()


def check_bad_share(read: int, bad: Mapping[str, int], share: float, examples: list[dict[str, Any]]) -> None:
    """Raise StageError, with examples, if more than ``share`` of the documents read so far are bad."""
    count = sum(bad.values())
    if count <= max(ALWAYS_TOLERATED, share * read):
        return
    commonest = max(sorted(bad), key=lambda reason: bad[reason])
    raise StageError(
        f"{count:,} of the first {read:,} documents are bad ({format_counts(bad)}), more than max_bad_share = {share}"
        f"{format_examples(examples)}: {ADVICE[commonest]}, or raise max_bad_share"
    )


def format_counts(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in sorted(reasons.items())) or "nothing"


def format_examples(examples: list[dict[str, Any]]) -> str:
    """Examples as the continuation of a sentence; empty without examples."""
    lines = [f"{one['place']}: {one['where']}: {one['reason']}: {one['text']!r}" for one in examples[:EXAMPLES]]
    return f", for example {'; '.join(lines)}" if lines else ""
