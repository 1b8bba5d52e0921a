"""Throughput of the data path on one core: from a memory-mapped tokens artifact to masked batches."""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import random_documents
import torch
from benchmark_runner import Row, Spread, quick

from cluster.tokens.rows import open_tokens
from distill.config import Training
from distill.data.batches import Batches, Masker

_VOCABULARY = 30_522
_TOKENS = 200_000 if quick() else 4_000_000
"""In the artifact."""
_MICRO = 16_384
"""Tokens of a micro-batch."""
_NEED = 0.6e6
"""Tokens per second that a node of eight GPUs trains on (V100; its processes each read their own share)."""


def rows() -> Iterator[Row]:
    torch.set_num_threads(1)
    drawn = random_documents.draw(_TOKENS, _VOCABULARY)
    short, long = (_speed(drawn, seq_len) for seq_len in (128, 512))
    yield Row(
        "batches_tokens_per_second",
        short.median,
        "tokens/s",
        f"one core: gathered from a memory-mapped artifact of {_TOKENS:,} tokens in its epoch's order and masked, rows "
        f"of 128, micro-batches of {_MICRO:,} tokens: {short}; rows of 512: {long}; a node of eight GPUs needs "
        f"{_NEED:,.0f} in all, {short.median * 8 / _NEED:.0f} times less than its eight processes give",
    )


def _speed(drawn: list[random_documents.I64], seq_len: int) -> Spread:
    """Tokens per second of some passes over the artifact, after a pass that loads it into memory."""
    training = Training(epochs=1, rows_per_step=_MICRO // seq_len)
    with tempfile.TemporaryDirectory() as folder:
        path = random_documents.tokens_artifact(
            Path(folder) / "tokens", random_documents.packed(drawn, seq_len), _VOCABULARY
        )
        tokens = open_tokens(path)
        batches = Batches(tokens.train, Masker(tokens, training), training)
        steps = len(tokens.train) // training.rows_per_step
        passes = [_pass(batches, steps, training.rows_per_step) for _ in range(4)]
    return Spread(tuple(steps * training.rows_per_step * seq_len / seconds for seconds in passes[1:]))


def _pass(batches: Batches, steps: int, count: int) -> float:
    started = time.perf_counter()
    for step in range(steps):
        batches.take(step, 0, count)
    return time.perf_counter() - started
