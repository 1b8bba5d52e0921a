"""Guesses of masked words from word counts alone, without reading a row: the least that a model must beat."""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from cluster.tokens.rows import TokenSet
from distill.config import Masking


class WordCounts:
    """How likely each word is a masked word, according to the counts of the training rows.

    A word has a label as often as it occurs times its chance to be masked: ``count * max(count, 1) ** -smoothing``
    (:class:`distill.data.batches.Masker`). Words that never occur count as seen once, special tokens never have labels.
    """

    def __init__(self, tokens: TokenSet, masking: Masking, device: torch.device) -> None:
        chances = np.maximum(tokens.counts, 1).astype(np.float64) ** (1.0 - masking.smoothing)
        chances[list(tokens.special_ids)] = 0.0
        with np.errstate(divide="ignore"):
            nats = -np.log(chances / chances.sum())
        self._nats = torch.from_numpy(nats).to(device)
        self.top_word = int(chances.argmax())
        """The word to guess everywhere."""

    def nats(self, words: Int[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Cross entropy of words, each by itself, in nats (fp64)."""
        return self._nats[words]
