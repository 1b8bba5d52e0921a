"""Random reads of rows from thousands of files, and bytes that each order of an epoch reads from a cold disk."""

import os
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from benchmark_runner import Row, Spread, not_measured, quick
from tokens_artifact import write_rows

from cluster.tokens.rows import Rows
from distill.data.batches import BLOCK_BYTES, WINDOW_BLOCKS, shuffled, shuffled_in_blocks

_VOCABULARY = 30_522
_SEQ_LEN = 128
_FILES = 40 if quick() else 2_000
_ROWS_PER_FILE = 500
_COLD_BYTES = 2**22 if quick() else 2**29
_COLD_FILES = 16
_STEP = 4_096
"""Rows of an optimizer step."""


def rows() -> Iterator[Row]:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        yield _gathered(_files(Path(folder), _FILES, _ROWS_PER_FILE, batches=2))
    with tempfile.TemporaryDirectory() as folder:
        yield from _cold(_files(Path(folder), _COLD_FILES, _COLD_BYTES // (2 * _SEQ_LEN * _COLD_FILES), batches=8))


def _files(folder: Path, count: int, num_rows: int, batches: int) -> list[Path]:
    """Row files of random ids."""
    drawn = np.random.default_rng(0)
    paths = [folder / f"train-{number:05}.arrow" for number in range(count)]
    for path in paths:
        table = drawn.integers(0, _VOCABULARY, (num_rows, _SEQ_LEN), dtype=np.uint16)
        write_rows(path, np.array_split(table, batches), seq_len=_SEQ_LEN, vocab_size=_VOCABULARY)
    return paths


def _gathered(paths: list[Path]) -> Row:
    before = _descriptors()
    started = time.perf_counter()
    found = Rows(paths)
    opening = time.perf_counter() - started
    micro, step = (_speed(found, count) for count in (128, _STEP))
    return Row(
        "gather_tokens_per_second",
        step.median,
        "tokens/s",
        f"one core, int64 out: rows of {_SEQ_LEN} drawn at random from {len(paths):,} files with two record batches "
        f"each, {_STEP:,} rows at a time: {step}; 128 rows at a time: {micro}; opening the files took {opening:.2f} s "
        f"and left {_descriptors() - before} file descriptors open",
    )


def _speed(found: Rows, count: int) -> Spread:
    """Tokens per second of some passes over all rows, after a pass that loads them into memory."""
    drawn = np.random.default_rng(1).integers(0, len(found), (len(found) // count, count))
    seconds = []
    for _ in range(4):
        started = time.perf_counter()
        for indices in drawn:
            found.take(indices)
        seconds.append(time.perf_counter() - started)
    return Spread(tuple(drawn.size * _SEQ_LEN / taken for taken in seconds[1:]))


def _cold(paths: list[Path]) -> Iterator[Row]:
    """An eighth of an epoch in each order, from files that are not in the page cache."""
    by_rows, by_blocks = (_disk_read(paths, order) for order in ("rows", "blocks"))
    name, unit = "cold_read_rows_vs_blocks", "x"
    if not by_blocks.bytes_read:
        yield not_measured(name, unit, "this disk's reads are not counted")
        return
    yield Row(
        name,
        by_rows.bytes_read / by_blocks.bytes_read,
        unit,
        f'bytes read from a cold disk by order = "rows" / "blocks", for the first {by_rows.bytes_used / 2**20:.0f} MiB '
        f"of an epoch of {_COLD_BYTES / 2**20:.0f} MiB (blocks of {BLOCK_BYTES // 2**20} MiB, mixed within "
        f"{WINDOW_BLOCKS}), {_read_ahead(paths[0])}: rows {by_rows}; blocks {by_blocks}; nothing is read twice here, "
        "as it is where the corpus does not fit into memory",
    )


class _Reading:
    """Measurements of part of an epoch."""

    def __init__(self, bytes_used: int, bytes_read: int, faults: int, seconds: float) -> None:
        self.bytes_used, self.bytes_read, self.faults, self.seconds = bytes_used, bytes_read, faults, seconds

    def __str__(self) -> str:
        share = self.bytes_read / self.bytes_used
        return f"{share:.2f} bytes read for each one used, {self.faults:,} major page faults, {self.seconds:.2f} s"


def _disk_read(paths: list[Path], order: Literal["rows", "blocks"]) -> _Reading:
    for path in paths:
        _forget(path)
    found = Rows(paths)
    block = BLOCK_BYTES // found.row_bytes
    used = len(found) // 8
    before, faults, started = _bytes_read(), _major_faults(), time.perf_counter()
    for first in range(0, used, _STEP):
        places = np.arange(first, min(first + _STEP, used))
        found.take(
            shuffled(places, len(found), 1, 0)
            if order == "rows"
            else shuffled_in_blocks(places, len(found), block, 1, 0)
        )
    seconds = time.perf_counter() - started
    return _Reading(used * found.row_bytes, _bytes_read() - before, _major_faults() - faults, seconds)


def _forget(path: Path) -> None:
    """Drop a file from the page cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _bytes_read() -> int:
    """Bytes that this process has read from the disk."""
    lines = Path("/proc/self/io").read_text(encoding="utf-8").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("read_bytes:")))


def _read_ahead(path: Path) -> str:
    device = path.stat().st_dev
    found = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
    return f"read-ahead {found.read_text(encoding='utf-8').strip()} KiB" if found.exists() else "read-ahead unknown"


def _major_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_majflt


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))
