"""Which documents are held out for validation: those whose text has a small hash."""

import hashlib
from collections.abc import Iterable

from cluster.artifacts.errors import StageError

SHARE = 0.01
"""Share of the documents of a large corpus."""
LARGE = 10_000
"""Documents from which on :data:`SHARE` of them is enough to validate on."""
ROWS, LEAST_ROWS = 64, 2
"""Rows to hold out of a small corpus, and rows that even the smallest must fill."""
MOST = 0.2
"""Share of the text of a small corpus that is enough, even if it fills fewer than :data:`ROWS` rows."""
CHARACTERS = 6
"""Characters of a token, rather too many: English prose has four to five."""


def is_heldout(text: str, share: float) -> bool:
    """Whether a document is held out. Its text decides, so order and corpus do not matter."""
    return _hash(text) < share * 2**64


def automatic_share(texts: Iterable[str], documents: int, seq_len: int) -> float:
    """The share for :func:`is_heldout`: 1 % of a large corpus, and more of a small one, so that it fills some rows.

    Reads the texts of a small corpus, of which it keeps hash and length.

    Raises:
        StageError: there is only one document.
    """
    if documents >= LARGE:
        return SHARE
    sizes = sorted((_hash(text), len(text)) for text in texts)
    if len(sizes) < 2:
        raise StageError(
            "the corpus has one document, and validation needs others than training: give more files, or write "
            'documents = "paragraph" in a source of kind text'
        )
    row = CHARACTERS * seq_len
    wanted = min(ROWS * row, max(MOST * sum(size for _, size in sizes), LEAST_ROWS * row))
    taken = count = 0
    while count < len(sizes) // 2 and (taken < wanted or count < SHARE * len(sizes)):
        taken += sizes[count][1]
        count += 1
    return (sizes[count - 1][0] + sizes[count][0]) / 2**65


def _hash(text: str) -> int:
    """64 bits that depend on the text alone."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
