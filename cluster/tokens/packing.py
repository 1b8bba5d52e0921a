"""Packs documents of token ids into full rows.

Documents, each with [SEP] after it, form one stream; a row is [CLS] and the next ``seq_len - 1`` tokens of the stream.
Documents continue in the next row: there is no padding, and only the tail of the stream is dropped.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import numpy as np

from cluster.tokens.rows import Tokens, token_type


@dataclass(frozen=True)
class Packing:
    """Length of the rows, and the ids of the tokenizer."""

    seq_len: int
    vocab_size: int
    cls_id: int
    sep_id: int
    special_ids: tuple[int, ...]


class RowPacker:
    """Packs documents into rows incrementally; buffers only the unfinished row."""

    def __init__(self, packing: Packing) -> None:
        self._packing = packing
        self._dtype = token_type(packing.vocab_size)
        self._separator = self._dtype(packing.sep_id).tobytes()
        self._special = np.zeros(packing.vocab_size, dtype=bool)
        self._special[list(packing.special_ids)] = True
        self._rest = b""
        self.special_rows = 0
        """Rows dropped because more than half of their tokens are special."""

    @property
    def tail_tokens(self) -> int:
        """Tokens of the unfinished row."""
        return len(self._rest) // np.dtype(self._dtype).itemsize

    def add(self, documents: Iterable[bytes]) -> Tokens:
        """Add documents of token ids; returns the rows ``[rows, seq_len]`` that they complete.

        Drops rows of which more than half is special tokens ([UNK] is one): training needs words to mask.
        """
        parts = [self._rest]
        for document in documents:
            parts += (document, self._separator)
        stream = np.frombuffer(b"".join(parts), dtype=self._dtype)
        width = self._packing.seq_len - 1
        num_rows = len(stream) // width
        self._rest = stream[num_rows * width :].tobytes()
        rows = np.full((num_rows, self._packing.seq_len), self._packing.cls_id, dtype=self._dtype)
        rows[:, 1:] = stream[: num_rows * width].reshape(num_rows, width)
        trainable = 2 * np.count_nonzero(self._special[rows], axis=1) <= self._packing.seq_len
        self.special_rows += int(num_rows - trainable.sum())
        return cast(Tokens, rows if trainable.all() else rows[trainable])
