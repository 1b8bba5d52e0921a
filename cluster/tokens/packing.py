"""Documents of tokens to rows that are always full.

Every document is followed by [SEP], and all of them make one stream; a row is [CLS] and the next ``seq_len - 1``
tokens of the stream. Documents run on across rows, so nothing is padded and nothing is cut but the stream's tail.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import numpy as np

from cluster.tokens.rows import Tokens, token_type


@dataclass(frozen=True)
class Packing:
    """The form of the rows; the ids are the tokenizer's."""

    seq_len: int
    vocab_size: int
    cls_id: int
    sep_id: int
    special_ids: tuple[int, ...]


class RowPacker:
    """A stream of documents that becomes rows as it goes on: only what fills no row yet is held."""

    def __init__(self, packing: Packing) -> None:
        self._packing = packing
        self._dtype = token_type(packing.vocab_size)
        self._separator = self._dtype(packing.sep_id).tobytes()
        self._special = np.zeros(packing.vocab_size, dtype=bool)
        self._special[list(packing.special_ids)] = True
        self._left = b""
        self.special_rows = 0
        """Rows left out because more than half of each was special tokens."""

    @property
    def tail_tokens(self) -> int:
        """Tokens at the end that fill no row so far."""
        return len(self._left) // np.dtype(self._dtype).itemsize

    def add(self, documents: Iterable[bytes]) -> Tokens:
        """The rows ``[rows, seq_len]`` that are filled now, by these documents of token ids.

        Training needs words to mask, so a row of which more than half is special tokens ([UNK] is one) is left out.
        """
        parts = [self._left]
        for document in documents:
            parts += (document, self._separator)
        stream = np.frombuffer(b"".join(parts), dtype=self._dtype)
        width = self._packing.seq_len - 1
        num_rows = len(stream) // width
        self._left = stream[num_rows * width :].tobytes()
        rows = np.full((num_rows, self._packing.seq_len), self._packing.cls_id, dtype=self._dtype)
        rows[:, 1:] = stream[: num_rows * width].reshape(num_rows, width)
        trainable = 2 * np.count_nonzero(self._special[rows], axis=1) <= self._packing.seq_len
        self.special_rows += int(num_rows - trainable.sum())
        return cast(Tokens, rows if trainable.all() else rows[trainable])
