"""Stops training on all workers after the same step, with a checkpoint.

Any process may request a stop: by SIGTERM (from torchrun, a batch system or an operator) or by :func:`request` from any
thread. The loop asks once a step whether the workers agreed on a stop; this never waits for a device.
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


class StopReason(enum.IntEnum):
    """Why training stops. When workers give several reasons at once, the largest one wins."""

    GROWING = 1
    LEAVING = 2
    TERMINATED = 3

    @property
    def text(self) -> str:
        return {1: "there is room for more workers", 2: "a node is about to leave", 3: "SIGTERM"}[self]


class StoppedError(ValueError):
    """Training stopped on request, with a checkpoint of its last step."""

    def __init__(self, reason: StopReason, step: int) -> None:
        super().__init__(reason, step)
        self.reason, self.step = reason, step

    def __str__(self) -> str:
        return (
            f"stopped after step {self.step} ({self.reason.text}), checkpoint written: run the same command again to "
            "continue"
        )


_requested = 0


def request(reason: StopReason) -> None:
    """Request a stop. May be called from any thread, repeatedly, before or during training."""
    global _requested
    _requested = max(_requested, reason)


class GracefulStop:
    """Handles SIGTERM and stop requests; a context manager that every worker enters.

    Outside the main thread, where Ray runs the training, it leaves SIGTERM to Ray and handles requests only.
    """

    def __init__(self, workers: Workers) -> None:
        self._group = _cpu_group() if workers.world_size > 1 else None
        self._posted: tuple[Tensor, distributed.Work] | None = None
        self._previous_handler: Any = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._previous_handler = signal.signal(signal.SIGTERM, _on_sigterm)
        return self

    def __exit__(self, *_: object) -> None:
        global _requested
        _requested = 0
        if self._previous_handler is not None:
            signal.signal(signal.SIGTERM, self._previous_handler)

    def agreed(self) -> StopReason | None:
        """The reason to stop after this step, the same on every worker. Every worker calls this once a step.

        Each call starts a reduction of the workers' requests and returns the result of the previous step's, which has
        long arrived. A request therefore takes effect one step later.
        """
        requested = torch.tensor(_requested, dtype=torch.int32)
        if self._group is None:
            return StopReason(_requested) if _requested else None
        previous, self._posted = self._posted, (requested, self._post(requested))
        if previous is None:
            return None
        largest, work = previous
        work.wait()
        return StopReason(int(largest)) if largest else None

    def _post(self, requested: Tensor) -> distributed.Work:
        work = distributed.all_reduce(requested, distributed.ReduceOp.MAX, self._group, async_op=True)
        assert isinstance(work, distributed.Work)
        return work


@functools.cache
def _cpu_group() -> distributed.ProcessGroup:
    """A gloo group for CPU tensors. Like the device group it lasts as long as the process."""
    group = distributed.new_group(backend="gloo")
    assert isinstance(group, distributed.ProcessGroup)
    return group


def _on_sigterm(_signal: int, _frame: FrameType | None) -> None:
    request(StopReason.TERMINATED)
