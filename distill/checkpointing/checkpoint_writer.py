"""Asynchronous checkpoint writer, and the choice of the checkpoint to resume from.

Gathering a state pauses the training while it is copied to main memory; hashing and writing it do not. At most one
state waits to be written, so a run needs memory for one state besides the one in training.

When a checkpoint cannot be written, usually because the disk is full, training continues: older checkpoints stay, the
writer logs a warning, and the next save tries again. The run stops after three failures in a row, and when the last
checkpoint of the run fails.
"""

import concurrent.futures
import contextlib
import errno
import shutil
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from cluster.artifacts.artifact import digest
from cluster.telemetry import metrics, progress
from cluster.telemetry.formatting import file_size
from distill.checkpointing.checkpoint import Checkpoint, CheckpointError, sweep
from distill.checkpointing.run_folder import CHECKPOINTS, Run, RunError
from distill.config import Placement
from distill.engine.deepspeed_engine import TrainingState
from distill.engine.process_group import Workers

_TRIES = 3

# NFS caches directories for 60 seconds at most.
_VISIBLE_SECONDS, _POLL_SECONDS = 90.0, 0.5

_ADVICE = {
    errno.ENOSPC: ("the disk is full", ": free some space"),
    errno.EDQUOT: ("your disk quota is used up", ": free some space"),
    errno.EIO: ("the disk fails", ": look at the disk, or copy the run folder to another one"),
    errno.EFBIG: ("files may not be that large here", ": raise the limit (ulimit -f), or choose another file system"),
}


class CheckpointWriter:
    """Writes the checkpoints of a run, one at a time, in a thread of the first worker."""

    def __init__(self, run: Run, placement: Placement) -> None:
        self._run, self._placement = run, placement
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[str | None] | None = None
        self._failed = 0
        self._reason: str | None = None

    def start(self, state: TrainingState, step: int, **facts: Any) -> None:
        """Start writing a checkpoint. Call :meth:`wait` first."""
        assert self._writing is None
        self._writing = self._thread.submit(self._write, state, step, facts)

    def wait(self) -> None:
        """Wait for the checkpoint being written; logs its failure."""
        if self._writing is not None:
            concurrent.futures.wait([self._writing])
            self._settle()

    def fatal_failure(self) -> str | None:
        """Why training must stop, as far as known now, or None. Never waits."""
        if self._writing is not None and self._writing.done():
            self._settle()
        return self._reason

    def has(self, step: int) -> bool:
        """Whether the newest checkpoint on disk is of this step (for step 0: whether there is none). May wait."""
        self.wait()
        found = self._run.newest()
        return (found.step if found else 0) == step

    def last(self) -> str | None:
        """Wait for the checkpoint being written; returns its failure, or None."""
        if self._writing is None:
            return None
        failure, self._writing = self._writing.result(), None
        return failure

    def close(self) -> None:
        """Wait until the thread has finished."""
        self._thread.shutdown()
        if (failure := self.last()) is not None:
            progress.say(f"warning: {failure}")

    def _settle(self) -> None:
        if (failure := self.last()) is None:
            self._failed = 0
            return
        self._failed += 1
        if self._failed == _TRIES:
            self._reason = f"{failure} (the last {_TRIES} checkpoints failed)"
        else:
            progress.say(f"warning: {failure}; training continues, and the next checkpoint tries again")

    def _write(self, state: TrainingState, step: int, facts: dict[str, Any]) -> str | None:
        """Runs in the thread; returns the failure as a line, or None. An exception would keep the state in memory."""
        started, name = time.monotonic(), metrics.run_name(self._run.path)
        try:
            made = self._run.save(state, step, self._placement, **facts)
        except OSError as error:
            metrics.FAILED_CHECKPOINTS.labels(name).inc()
            return self._failure(error, state, step)
        metrics.CHECKPOINT_TIME.labels(name).set(time.time())
        metrics.CHECKPOINT_SECONDS.labels(name, "written").set(time.monotonic() - started)
        metrics.CHECKPOINT_BYTES.labels(name).set(sum(file.stat().st_size for file in made.path.iterdir()))
        return None

    def _failure(self, error: OSError, state: TrainingState, step: int) -> str:
        folder = self._run.path
        what, advice = _ADVICE.get(error.errno or 0, (error.strerror or str(error), ""))
        needed = sum(tensor.nbytes for tensor in (*state.weights.values(), *state.moments.values()))
        found = self._run.newest()
        newest = f"the newest is of step {found.step}" if found else "there is none yet"
        return (
            f"checkpoint of step {step} was not written to {folder}, {what} ({file_size(needed)} needed, "
            f"{file_size(shutil.disk_usage(folder).free)} free; {newest}){advice}"
        )


def newest_agreed(run: Run, workers: Workers) -> Checkpoint | None:
    """The checkpoint to resume from: the newest intact one that the first worker finds. Collective.

    On shared storage a worker may see an older state of the folder for a while; it waits until it sees the files that
    the first worker verified.

    Raises:
        RunError: all checkpoints are damaged, or a worker does not see the checkpoint in time.
    """
    found, refusal = None, None
    if workers.is_main_process:
        sweep(run.path / CHECKPOINTS)
        try:
            found = run.newest_intact()
        except RunError as error:
            refusal = str(error)
    step, identity, refusal = from_first((found and found.step, found and digest(found.facts), refusal), workers)
    if refusal is not None:
        raise RunError(refusal)
    return None if step is None else wait_until_visible(run, step, identity, workers)


def from_first(value: Any, workers: Workers) -> Any:
    """The first worker's ``value``, on every worker. Collective."""
    values = [value]
    torch.distributed.broadcast_object_list(values, src=0, device=workers.device)
    return values[0]


def wait_until_visible(run: Run, step: int, identity: str, workers: Workers) -> Checkpoint:
    """Wait until this worker sees the checkpoint of ``step`` whose facts have the digest ``identity``.

    Raises:
        RunError: 90 seconds have passed.
    """
    deadline = time.monotonic() + _VISIBLE_SECONDS
    while True:
        with contextlib.suppress(RunError, CheckpointError):
            found = run.checkpoint(step)
            if digest(found.facts) == identity:
                return found
        if time.monotonic() > deadline:
            raise RunError(
                f"worker {workers.rank} does not see the checkpoint of step {step} that the first worker sees in "
                f"{run.path}: choose an --out on storage that all nodes share"
            )
        time.sleep(_POLL_SECONDS)
