"""Writing checkpoints behind the training's back, and finding the one to go on from.

Gathering a state stops the training, for as long as copying it to main memory takes; hashing it and writing it
through to the disk do not. At most one state waits to be written, so a run needs memory for one more than it trains.

A checkpoint that cannot be written (a full disk, above all) does not stop a run that may be days from its start: what
was there stays, people are told, and the next save tries again. The run stops when three in a row have failed, and
when the last one has, because then work would be lost by going on.
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
from distill.checkpointing.checkpoint import Checkpoint, CheckpointError, sweep
from distill.checkpointing.run_folder import CHECKPOINTS, Run, RunError
from distill.config import Placement
from distill.engine.deepspeed_engine import State
from distill.engine.process_group import Workers


def record_checkpoint(name: str, seconds: float, num_bytes: int) -> None:
    """A checkpoint of the run ``name`` is complete."""
    metrics.CHECKPOINT_TIME.labels(name).set(time.time())
    metrics.CHECKPOINT_SECONDS.labels(name, "written").set(seconds)
    metrics.CHECKPOINT_BYTES.labels(name).set(num_bytes)


_TRIES = 3

# Directories are looked at again by NFS after 60 seconds at most.
_SEEN_SECONDS, _LOOK_SECONDS = 90.0, 0.5

_MENDED = {
    errno.ENOSPC: ("the disk is full", ": free some space"),
    errno.EDQUOT: ("your disk quota is used up", ": free some space"),
    errno.EIO: ("the disk fails", ": look at the disk, or copy the run folder to another one"),
    errno.EFBIG: ("files may not be that large here", ": raise the limit (ulimit -f), or choose another file system"),
}


class Saver:
    """Writes the checkpoints of a run, one at a time, in a thread of the first worker."""

    def __init__(self, run: Run, placement: Placement) -> None:
        self._run, self._placement = run, placement
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[str | None] | None = None
        self._failed = 0
        self._reason: str | None = None

    def start(self, state: State, step: int, **facts: Any) -> None:
        """Begin to write a checkpoint; the one before must have been waited for."""
        assert self._writing is None
        self._writing = self._thread.submit(self._write, state, step, facts)

    def wait(self) -> None:
        """Until the checkpoint being written is, or has failed; a failure is said."""
        if self._writing is not None:
            concurrent.futures.wait([self._writing])
            self._settle()

    def reason_to_stop(self) -> str | None:
        """Why training must not go on, as far as known: never waits."""
        if self._writing is not None and self._writing.done():
            self._settle()
        return self._reason

    def has(self, step: int) -> bool:
        """Whether the newest checkpoint on the disk is of this step; of step 0 there never is one. May wait."""
        self.wait()
        found = self._run.newest()
        return (found.step if found else 0) == step

    def last(self) -> str | None:
        """Wait for the last checkpoint of all; what went wrong with it, or None."""
        if self._writing is None:
            return None
        failure, self._writing = self._writing.result(), None
        return failure

    def close(self) -> None:
        """Let what is being written be written."""
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
            progress.say(f"warning: {failure}; training goes on, and the next checkpoint tries again")

    def _write(self, state: State, step: int, facts: dict[str, Any]) -> str | None:
        """In the thread: None, or the line that says what went wrong. An exception would keep the state alive."""
        started = time.monotonic()
        try:
            made = self._run.save(state, step, self._placement, **facts)
        except OSError as error:
            metrics.FAILED_CHECKPOINTS.labels(metrics.run_name(self._run.path)).inc()
            return self._line(error, state, step)
        num_bytes = sum(file.stat().st_size for file in made.path.iterdir())
        record_checkpoint(metrics.run_name(self._run.path), time.monotonic() - started, num_bytes)
        return None

    def _line(self, error: OSError, state: State, step: int) -> str:
        place = self._run.path
        what, advice = _MENDED.get(error.errno or 0, (error.strerror or str(error), ""))
        needed = sum(tensor.nbytes for tensor in (*state.weights.values(), *state.moments.values()))
        found = self._run.newest()
        newest = f"the newest is of step {found.step}" if found else "there is none yet"
        return (
            f"checkpoint of step {step} was not written to {place}, {what} ({needed / 1e6:,.1f} MB needed, "
            f"{shutil.disk_usage(place).free / 1e6:,.1f} MB free; {newest}){advice}"
        )


def agreed(run: Run, workers: Workers) -> Checkpoint | None:
    """The checkpoint to go on from: the newest sound one the first worker finds, seen alike by every worker.

    Collective. On shared storage a worker may see an older state of a folder for a while; it waits until it sees the
    very files that the first worker verified.

    Raises:
        RunError: all checkpoints are damaged, or a worker does not see what the first one does.
    """
    found, refusal = None, None
    if workers.leads:
        sweep(run.path / CHECKPOINTS)
        try:
            found = run.sound()
        except RunError as error:
            refusal = str(error)
    step, identity, refusal = from_first((found and found.step, found and digest(found.facts), refusal), workers)
    if refusal is not None:
        raise RunError(refusal)
    return None if step is None else seen(run, step, identity, workers)


def from_first(value: Any, workers: Workers) -> Any:
    """What the first worker says, on every worker."""
    told = [value]
    torch.distributed.broadcast_object_list(told, src=0, device=workers.device)
    return told[0]


def seen(run: Run, step: int, identity: str, workers: Workers) -> Checkpoint:
    """The checkpoint of a step whose facts have this digest, as soon as this worker sees it.

    Raises:
        RunError: it never does.
    """
    deadline = time.monotonic() + _SEEN_SECONDS
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
        time.sleep(_LOOK_SECONDS)
