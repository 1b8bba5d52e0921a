"""Documents of tokens to rows that are always full.

Every document is followed by [SEP], and all of them make one stream; a row is [CLS] and the next ``seq_len - 1``
tokens of the stream. Documents run on across rows, so nothing is padded and nothing is cut but the stream's tail.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cluster.rows import Tokens, token_type


@dataclass(frozen=True)
class Packed:
    """What became of a stream."""

    rows: Tokens
    """``[rows, seq_len]``"""
    tail_tokens: int
    """Tokens at the end that filled no row."""
    special_rows: int
    """Rows left out because more than half of each was special tokens."""


@dataclass(frozen=True)
class Packing:
    """The form of the rows; the ids are the tokenizer's."""

    seq_len: int
    vocab_size: int
    cls_id: int
    sep_id: int
    special_ids: tuple[int, ...]

    def pack(self, documents: Sequence[Tokens]) -> Packed:
        """Rows of a stream of documents, each ``[tokens]``.

        Training needs words to mask, so a row of which more than half is special tokens ([UNK] is one) is left out.
        """
        dtype = token_type(self.vocab_size)
        separator = np.array([self.sep_id], dtype=dtype)
        stream = np.concatenate([separator[:0], *(piece for document in documents for piece in (document, separator))])
        width = self.seq_len - 1
        num_rows, tail = divmod(len(stream), width)
        rows = np.full((num_rows, self.seq_len), self.cls_id, dtype=dtype)
        rows[:, 1:] = stream[: num_rows * width].reshape(num_rows, width)
        special = np.zeros(self.vocab_size, dtype=bool)
        special[list(self.special_ids)] = True
        trainable = 2 * special[rows].sum(axis=1) <= self.seq_len
        return Packed(rows[trainable], tail_tokens=tail, special_rows=int((~trainable).sum()))
