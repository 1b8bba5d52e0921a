"""Starts the followers of a run beside it, and ends them with it.

A follower is a process of its own, whose standard input ends when the run ends, in whatever way. So it outlives neither
the run nor its process, and nothing it does can stop or slow the run.
"""

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from cluster.telemetry.progress import say
from distill.follow import follower
from distill.follow.followed_run import FollowedRun
from distill.follow.trackers import TrackerName

DRAIN_SECONDS = 20.0
"""Longest time for the last lines after a run."""
_GRACE_SECONDS = 5.0


@contextlib.contextmanager
def following(path: Path, names: Sequence[TrackerName], drain_seconds: float = DRAIN_SECONDS) -> Iterator[None]:
    """Inside the block, a follower for each tracker draws the run; the end waits a bounded time for its last lines."""
    run = FollowedRun(path)
    started: dict[TrackerName, subprocess.Popen[bytes]] = {}
    for name in names:
        command = [sys.executable, "-m", "distill.follow", str(path), "--to", name, "--accompany", str(drain_seconds)]
        try:
            # A session of its own: Ctrl-C stops the run, and the end of the run the follower.
            started[name] = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
        except OSError as error:
            say(follower.warning_line(run, name, str(error)))
    try:
        yield
    finally:
        for process in started.values():
            assert process.stdin is not None
            process.stdin.close()
        deadline = time.monotonic() + drain_seconds + _GRACE_SECONDS
        for name, process in started.items():
            _await(run, name, process, max(0.0, deadline - time.monotonic()))


def _await(run: FollowedRun, name: TrackerName, process: subprocess.Popen[bytes], seconds: float) -> None:
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        code = -1
    if code not in (0, follower.WARNED):
        say(follower.warning_line(run, name, f"its follower ended with {code}, see {run.file(name, 'log')}"))
