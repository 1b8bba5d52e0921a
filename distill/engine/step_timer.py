"""Times the parts of a step on the device, without waiting for it.

On a GPU, events in its queue separate the parts. A part counts the time that the GPU worked on it or idled in it:
``data`` is how long the GPU waited for data, not how long the CPU prepared it.
"""

import contextlib
import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch

PARTS = ("data", "teacher", "student_forward", "backward", "optimizer", "communication")


class StepTimer:
    """Measures seconds by part of a step."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._marks: list[tuple[str, Any]] = []
        """Part and its start; the part is empty outside steps."""
        self._part = ""

    def begin(self, part: str) -> None:
        """Start ``part``; an empty name ends the step."""
        self._part = part
        if not self._cuda:
            self._marks.append((part, time.perf_counter()))
            return
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        self._marks.append((part, event))

    @contextlib.contextmanager
    def within(self, part: str) -> Iterator[None]:
        """Count the block, or the calls of the decorated function, as ``part``, within a step."""
        if not (before := self._part):
            yield
            return
        self.begin(part)
        try:
            yield
        finally:
            self.begin(before)

    def read(self) -> dict[str, float]:
        """Seconds by part since the last call. Call it only when the device has finished its queue."""
        seconds = dict.fromkeys(PARTS, 0.0)
        for (part, start), (_, end) in pairwise(self._marks):
            if part:
                seconds[part] += start.elapsed_time(end) / 1e3 if self._cuda else end - start
        del self._marks[:-1]
        return seconds
