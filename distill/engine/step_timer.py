"""Where the time of a step goes, as the device sees it, without waiting for the device.

On a GPU the borders between parts are events in its queue: a part takes as long as the GPU was at it or stood still
during it. So ``data`` is what the GPU missed for want of data, not what the CPU did about data meanwhile.
"""

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import torch

PARTS = ("data", "teacher", "student_forward", "backward", "optimizer", "communication")


class StepTimer:
    """Seconds by part since the last reading."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._marks: list[tuple[str, Any]] = []
        """What begins, and when; an empty name for what belongs to no step."""
        self._part = ""

    def begin(self, part: str) -> None:
        """From now on time belongs to ``part``; to none when it is empty."""
        self._part = part
        if not self._cuda:
            self._marks.append((part, time.perf_counter()))
            return
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        self._marks.append((part, event))

    @contextlib.contextmanager
    def within(self, part: str) -> Iterator[None]:
        """Inside the block, within a step, time belongs to ``part``."""
        if not (before := self._part):
            yield
            return
        self.begin(part)
        try:
            yield
        finally:
            self.begin(before)

    def during(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """``call``, whose time belongs to ``part``."""

        @functools.wraps(call)
        def timed(*given: Any, **named: Any) -> Any:
            with self.within(part):
                return call(*given, **named)

        return timed

    def read(self) -> dict[str, float]:
        """Seconds by part since the last reading; to be called when the device has done what it was given."""
        seconds = dict.fromkeys(PARTS, 0.0)
        for (part, start), (_, end) in pairwise(self._marks):
            if part:
                seconds[part] += start.elapsed_time(end) / 1e3 if self._cuda else end - start
        del self._marks[:-1]
        return seconds
