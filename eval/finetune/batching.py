"""Encoded rows without padding, and batches of them.

The rows of a data set follow one another in three arrays on the device. A batch is gathered there, padded to its
longest row, and has an attention mask only where rows differ in length.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cluster.artifacts.errors import StageError

Rows: TypeAlias = npt.NDArray[np.int64]
Inputs: TypeAlias = dict[str, Tensor]

# Rows are sorted by length within this many batches, which saves padding and still mixes the examples.
WINDOW_BATCHES = 50


@dataclass(frozen=True)
class Features:
    """Row ``r`` is ``ids[starts[r] : starts[r] + lengths[r]]``."""

    ids: Tensor
    """``[tokens]``, int32."""
    types: Tensor | None
    """``[tokens]``, int8: token types; None for models without."""
    starts: Tensor
    """``[rows]``, int64."""
    lengths: Rows
    """``[rows]``, in main memory, where batches are composed."""
    pad: int
    """Id of the padding token."""

    @classmethod
    def of(cls, ids: Sequence[Sequence[int]], types: Sequence[Sequence[int]] | None, pad: int) -> "Features":
        lengths = np.array([len(row) for row in ids], dtype=np.int64)
        starts = np.concatenate(([0], np.cumsum(lengths)[:-1])) if len(ids) else lengths
        return cls(
            _joined(ids, np.int32),
            None if types is None else _joined(types, np.int8),
            torch.from_numpy(starts),
            lengths,
            pad,
        )

    def __len__(self) -> int:
        return len(self.lengths)

    def to(self, device: torch.device) -> "Features":
        types = None if self.types is None else self.types.to(device)
        return dataclasses.replace(self, ids=self.ids.to(device), types=types, starts=self.starts.to(device))

    def rows(self, rows: Rows) -> "Features":
        """Some of the rows, in this order, sharing the tokens."""
        index = torch.from_numpy(rows).to(self.starts.device)
        return dataclasses.replace(self, starts=self.starts[index], lengths=self.lengths[rows])

    def batch(self, rows: Rows) -> Inputs:
        """Model inputs of these rows: ``input_ids`` ``[rows, longest]``, token types, attention mask where needed."""
        index, real = self.places(rows)
        inputs = {"input_ids": torch.where(real, self.ids[index], self.pad).long()}
        if self.types is not None:
            inputs["token_type_ids"] = torch.where(real, self.types[index], 0).long()
        if np.ptp(self.lengths[rows]) > 0:
            inputs["attention_mask"] = real.long()
        return inputs

    def places(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Index in ``ids`` of each position of a padded batch, and whether it is a token: both ``[rows, longest]``."""
        device = self.ids.device
        positions = torch.arange(int(self.lengths[rows].max()), device=device)
        real = positions < torch.from_numpy(self.lengths[rows]).to(device, non_blocking=True)[:, None]
        starts = self.starts[torch.from_numpy(rows).to(device, non_blocking=True)]
        return torch.where(real, starts[:, None] + positions, 0), real


def encode(tokenizer: Any, texts: Sequence[Sequence[str]], max_length: int) -> Features:
    """Encode examples of one or two texts; a pair that is too long loses tokens of its longer text first.

    Raises:
        StageError: the tokenizer has no padding token.
    """
    if tokenizer.pad_token_id is None:
        raise StageError(
            f"{tokenizer.name_or_path}: its tokenizer has no padding token: name it in tokenizer_config.json"
        )
    encoded = tokenizer(
        *map(list, texts), truncation="longest_first", max_length=max_length, return_attention_mask=False
    )
    return Features.of(encoded["input_ids"], encoded.get("token_type_ids"), tokenizer.pad_token_id)


def training_batches(lengths: npt.NDArray[Any], batch: int, seed: int, epoch: int) -> list[Rows]:
    """Row numbers of each batch of an epoch: a shuffle by (seed, epoch), sorted by length within windows of batches."""
    chance = np.random.default_rng((seed, epoch))
    order = chance.permutation(len(lengths))
    window = batch * WINDOW_BATCHES
    batches: list[Rows] = []
    for start in range(0, len(order), window):
        rows = order[start : start + window]
        rows = rows[np.argsort(lengths[rows], kind="stable")]
        batches.extend(rows[first : first + batch] for first in range(0, len(rows), batch))
    return [batches[index] for index in chance.permutation(len(batches))]


def scoring_batches(lengths: npt.NDArray[Any], batch: int) -> list[Rows]:
    """Row numbers of each batch, sorted by length to save padding; every row once."""
    order = np.argsort(lengths, kind="stable")
    return [order[first : first + batch] for first in range(0, len(order), batch)]


def _joined(rows: Sequence[Sequence[int]], kind: type[np.generic]) -> Tensor:
    return torch.from_numpy(np.fromiter(itertools.chain.from_iterable(rows), dtype=kind))
