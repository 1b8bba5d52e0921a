"""Wait for a condition instead of a number of seconds."""

import subprocess
import time
from collections.abc import Callable
from typing import TypeVar

Value = TypeVar("Value")


def wait_until(
    holds: Callable[[], Value],
    process: "subprocess.Popen[bytes] | subprocess.Popen[str] | None" = None,
    seconds: float = 600,
    what: str = "the condition",
) -> Value:
    """Poll ``holds()`` until its value is true; returns the value.

    Fails if ``process`` ends first, and after ``seconds``, which only limit a hanging test.
    """
    deadline = time.monotonic() + seconds
    while not (found := holds()):
        assert process is None or process.poll() is None, f"the process ended before {what}"
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.02)
    return found
