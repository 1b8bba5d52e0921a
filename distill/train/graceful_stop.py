"""Requests to stop, agreed upon by all workers: they end after the same step, with a checkpoint.

A request comes from anywhere in one process: the SIGTERM of torchrun, a batch system or an operator, or any thread
that calls :func:`request`. The loop asks once a step what all workers have agreed on, and nobody waits for a device.
"""

import enum
import functools
import signal
import threading
from types import FrameType
from typing import Any, Self

import torch
from torch import Tensor, distributed

from distill.engine.process_group import Workers


class Reason(enum.IntEnum):
    """Why to stop; when workers give several at once, the largest holds."""

    GROWING = 1
    LEAVING = 2
    TERMINATED = 3

    @property
    def words(self) -> str:
        return {1: "there is room for more workers", 2: "a node is about to leave", 3: "SIGTERM"}[self]


class StoppedError(ValueError):
    """Training was asked to stop, and did, with a checkpoint of its last step."""

    def __init__(self, reason: Reason, step: int) -> None:
        super().__init__(reason, step)
        self.reason, self.step = reason, step

    def __str__(self) -> str:
        return (
            f"stopped after step {self.step} ({self.reason.words}), checkpoint written: run the same command again to "
            "go on"
        )


_requested = 0


def request(reason: Reason) -> None:
    """Ask for a stop at the next step that all workers agree on; from any thread, once or often, before or during."""
    global _requested
    _requested = max(_requested, reason)


class Stopping:
    """Listens for SIGTERM and for requests; a context manager, used by every worker together.

    Outside the main thread, where Ray runs the training, there are only requests: SIGTERM is Ray's own there.
    """

    def __init__(self, workers: Workers) -> None:
        self._group = _group() if workers.world_size > 1 else None
        self._posted: tuple[Tensor, distributed.Work] | None = None
        self._before: Any = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, _terminated)
        return self

    def __exit__(self, *_: object) -> None:
        global _requested
        _requested = 0
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def agreed(self) -> Reason | None:
        """The reason to stop after this step, the same on every worker; called once a step by each.

        What one worker is asked now, all know one step later: this step's answer is the largest of what they posted
        in the step before, and has long arrived.
        """
        asked = torch.tensor(_requested, dtype=torch.int32)
        if self._group is None:
            return Reason(_requested) if _requested else None
        before, self._posted = self._posted, (asked, self._post(asked))
        if before is None:
            return None
        found, posted = before
        posted.wait()
        return Reason(int(found)) if found else None

    def _post(self, asked: Tensor) -> distributed.Work:
        posted = distributed.all_reduce(asked, distributed.ReduceOp.MAX, self._group, async_op=True)
        assert isinstance(posted, distributed.Work)
        return posted


@functools.cache
def _group() -> distributed.ProcessGroup:
    """A group of the processors, beside that of the devices; it lasts as long as the process, as the other one does."""
    group = distributed.new_group(backend="gloo")
    assert isinstance(group, distributed.ProcessGroup)
    return group


def _terminated(_signal: int, _frame: FrameType | None) -> None:
    request(Reason.TERMINATED)
