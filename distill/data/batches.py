"""Computes the masked batches of a step from ``(seed, epoch, row, position)``.

There is no sampler state to save: a resumed run needs only its step number, and any number of workers sees the same
rows with the same masks.

The order of an epoch is a pseudo-random permutation: a Feistel network over the next power of four, applied until the
result is below the number of rows. ``order = "blocks"``, for disks that seek, permutes blocks of consecutive rows, and
rows within windows of blocks. Masks come from counters hashed with SplitMix64's finaliser.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Int
from torch import Tensor

from cluster.corpus.word_ngrams import splitmix64
from cluster.tokens.rows import Rows, TokenSet
from distill.config import Training

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FEISTEL_ROUNDS = 6
_CHOICE, _SHOWN, _RANDOM, _OTHERS = np.uint64(1), np.uint64(2), np.uint64(3), np.uint64(4)
_TURN, _WINDOW, _DROPOUT = np.uint64(5), np.uint64(6), np.uint64(7)

BLOCK_BYTES = 2**21
"""Bytes of a block of consecutive rows, enough for a disk to stream it."""
WINDOW_BLOCKS = 32
"""Blocks in a window, whose rows are shuffled: 64 MiB of page cache."""

# Validation draws masks of an epoch that no training reaches: they never change and repeat no training mask.
VALIDATION_EPOCH = 2**31


@dataclass(frozen=True)
class Batch:
    """Masked rows, and the positions in the flattened rows that have a loss.

    ``positions`` starts with the masked words, whose ``labels`` are the original words; the other positions of the soft
    loss follow.
    """

    input_ids: Int[Tensor, "rows length"]
    positions: Int[Tensor, " positions"]
    labels: Int[Tensor, " labels"]

    def to(self, device: torch.device) -> "Batch":
        """Copy to ``device`` without waiting: a GPU copies from page-locked memory."""
        parts = (self.input_ids, self.positions, self.labels)
        if device.type == "cuda":
            parts = tuple(tensor.pin_memory() for tensor in parts)  # type: ignore[assignment]
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in parts))


def hashed(*parts: int | np.uint64 | U64) -> U64:
    """One hash of several counters, with NumPy broadcasting."""
    with np.errstate(over="ignore"):
        state = np.asarray(0, dtype=np.uint64)
        for part in parts:
            state = splitmix64(state * np.uint64(5) + np.asarray(part, dtype=np.uint64) * _GOLDEN + _GOLDEN)
        return state


def uniform(bits: U64) -> npt.NDArray[np.float64]:
    """Numbers strictly between 0 and 1, from the upper 53 bits."""
    return ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def shuffled(places: I64, size: int, seed: int, epoch: int) -> I64:
    """The rows at ``places`` in the order of an epoch, a permutation of ``range(size)``."""
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    low = np.uint64(2**half - 1)
    shift = np.uint64(half)
    found = places.astype(np.uint64)
    outside = np.ones(found.shape, dtype=bool)
    while outside.any():
        left, right = found[outside] >> shift, found[outside] & low
        for turn in range(_FEISTEL_ROUNDS):
            left, right = right, left ^ (hashed(seed, epoch, turn, right) & low)
        found[outside] = (left << shift) | right
        outside = found >= size
    return found.astype(np.int64)


def shuffled_in_blocks(places: I64, size: int, block: int, seed: int, epoch: int) -> I64:
    """The rows at ``places`` in an order by blocks, also a permutation of ``range(size)``.

    It shuffles blocks of ``block`` consecutive rows, and rows within windows of :data:`WINDOW_BLOCKS` blocks. Every
    epoch rotates the rows by another number, so blocks start elsewhere; the last block is shorter.
    """
    window = block * WINDOW_BLOCKS
    windows = places // window
    mixed = np.empty_like(places)
    for number in np.unique(windows).tolist():
        now = windows == number
        start = number * window
        own_seed = int(hashed(seed, _WINDOW, number))
        mixed[now] = start + shuffled(places[now] - start, min(window, size - start), own_seed, epoch)
    blocks, within = np.divmod(mixed, block)
    whole = blocks < size // block
    blocks[whole] = shuffled(blocks[whole], size // block, seed, epoch)
    turn = int(hashed(seed, _TURN, epoch) % np.uint64(size))
    return (blocks * block + within + turn) % size


class Masker:
    """Masks words of rows, the same ones for the same ``(seed, epoch, row)``.

    Every row gets exactly ``round(share * seq_len)`` labels, drawn without replacement with chances proportional to
    ``max(count, 1) ** -smoothing``, and never at special tokens (original code, ``distiller.py``:
    ``prepare_batch_mlm``); none where the loss takes clean inputs. Every row has as many other
    positions, so shapes never change.
    """

    def __init__(self, tokens: TokenSet, training: Training) -> None:
        self._masking, self._seed = training.masking, training.seed
        self._mask_id, self._vocab_size = tokens.mask_id, tokens.vocab_size
        self.labels_per_row = training.loss.labels(self._masking, tokens.seq_len)
        self._others_per_row = training.loss.other_positions(tokens.seq_len - self.labels_per_row)
        self._log_chance = -self._masking.smoothing * np.log(np.maximum(tokens.counts, 1).astype(np.float64))
        self._log_chance[list(tokens.special_ids)] = -np.inf

    def mask(self, input_ids: I64, rows: I64, epochs: I64) -> Batch:
        """Mask ``input_ids [rows, length]``, the rows ``rows`` in ``epochs``."""
        length = input_ids.shape[1]
        keys = hashed(self._seed, epochs.astype(np.uint64), rows.astype(np.uint64))[:, None]
        if self.labels_per_row == 0:
            return self._clean(input_ids, keys)
        places = np.arange(length, dtype=np.uint64)
        # Gumbel top-k: the k largest of log-chance plus Gumbel noise are k draws without replacement.
        noise = -np.log(-np.log(uniform(hashed(keys, _CHOICE, places))))
        scores = self._log_chance[input_ids] + noise
        chosen = np.sort(np.argpartition(-scores, self.labels_per_row - 1, axis=1)[:, : self.labels_per_row], axis=1)
        labels = np.take_along_axis(input_ids, chosen, axis=1)
        at = chosen.astype(np.uint64)
        draw = uniform(hashed(keys, _SHOWN, at))
        random = (hashed(keys, _RANDOM, at) % np.uint64(self._vocab_size)).astype(np.int64)
        hidden = self._masking.mask
        shown = np.where(draw < hidden, self._mask_id, np.where(draw < hidden + self._masking.random, random, labels))
        masked = input_ids.copy()
        np.put_along_axis(masked, chosen, shown, axis=1)
        starts = np.arange(len(input_ids))[:, None] * length
        others = self._others(chosen, keys, length)
        positions = np.concatenate([(chosen + starts).reshape(-1), (others + starts).reshape(-1)])
        return Batch(*(torch.from_numpy(array) for array in (masked, positions, labels.reshape(-1))))

    def _clean(self, input_ids: I64, keys: U64) -> Batch:
        """The rows as they are, with the positions of the soft loss."""
        rows, length = input_ids.shape
        starts = np.arange(rows)[:, None] * length
        positions = self._others(np.empty((rows, 0), dtype=np.int64), keys, length) + starts
        arrays = (input_ids.copy(), positions.reshape(-1), np.empty(0, dtype=np.int64))
        return Batch(*(torch.from_numpy(array) for array in arrays))

    def _others(self, chosen: I64, keys: U64, length: int) -> I64:
        """Unmasked positions of the soft loss ``[rows, others_per_row]``: all, or a sample."""
        free = np.ones((len(chosen), length), dtype=bool)
        np.put_along_axis(free, chosen, False, axis=1)
        if self._others_per_row == length - chosen.shape[1]:
            return np.nonzero(free)[1].reshape(len(chosen), -1)
        if self._others_per_row == 0:
            return np.empty((len(chosen), 0), dtype=np.int64)
        draw = uniform(hashed(keys, _OTHERS, np.arange(length, dtype=np.uint64)))
        draw[~free] = np.inf
        found = np.argpartition(draw, self._others_per_row - 1, axis=1)[:, : self._others_per_row]
        return np.sort(found, axis=1)


class Batches:
    """The training batches of a phase from ``first_step`` on, with epochs from ``first_epoch`` on. Stateless."""

    def __init__(
        self, rows: Rows, masker: Masker, training: Training, first_step: int = 0, first_epoch: int = 0
    ) -> None:
        self._rows, self._masker = rows, masker
        self._rows_per_step, self._seed = training.rows_per_step, training.seed
        self._block = max(1, BLOCK_BYTES // rows.row_bytes) if training.order == "blocks" else None
        self._first_step, self._first_epoch = first_step, first_epoch

    def rows(self, step: int, first: int, count: int) -> tuple[I64, I64]:
        """Numbers and epochs of the rows ``first`` to ``first + count`` of optimizer step ``step``."""
        seen = (step - self._first_step) * self._rows_per_step
        epochs, within = np.divmod(seen + np.arange(first, first + count, dtype=np.int64), len(self._rows))
        epochs += self._first_epoch
        rows = np.empty_like(within)
        for epoch in np.unique(epochs).tolist():
            now = epochs == epoch
            if self._block is None:
                rows[now] = shuffled(within[now], len(self._rows), self._seed, epoch)
            else:
                rows[now] = shuffled_in_blocks(within[now], len(self._rows), self._block, self._seed, epoch)
        return rows, epochs

    def dropout_seed(self, step: int, first: int) -> int:
        """Seed of the dropout in the micro-batch that starts at row ``first`` of optimizer step ``step``."""
        return int(hashed(self._seed, _DROPOUT, step, first) >> np.uint64(1))

    def take(self, step: int, first: int, count: int) -> Batch:
        """The masked rows ``first`` to ``first + count`` of optimizer step ``step``."""
        rows, epochs = self.rows(step, first, count)
        return self._masker.mask(self._rows.take(rows), rows, epochs)
