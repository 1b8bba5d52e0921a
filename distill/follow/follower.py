"""The process of a follower: it reads the metrics of a run, and hands them to a tracker until the run ends.

It may fail or hang without harm. It tries again while the run lasts, and says so once, in one line.
"""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import TextIO

import filelock

from cluster.artifacts.errors import StageError
from distill.follow.followed_run import FollowedRun, Point, State, Tail, short
from distill.follow.trackers import TRACKERS, Tracker, TrackerName

POLL_SECONDS = 1.0
MOST_WAIT_SECONDS = 30.0
"""Longest pause before a tracker that failed is tried again."""
BATCH = 500
WARNED = 3
"""Exit code of a follower that has not drawn everything and has said why."""


class Follower:
    """Draws one run in one tracker."""

    def __init__(self, run: FollowedRun, name: TrackerName) -> None:
        self._run, self._name = run, name
        self._state = State.read(run.file(name, "json"))
        self._tail = Tail(run.metrics)
        self._waiting: list[Point] = []
        self._tracker: Tracker | None = None

    @property
    def finished(self) -> bool:
        """Whether the run has made its last step, and all of it is drawn."""
        return self._tail.finished and not self._waiting

    @property
    def step(self) -> int:
        return self._state.drawn.get("train", 0)

    def draw(self) -> int:
        """Hand over what is new; returns the number of lines. An error leaves the rest for the next call."""
        self._waiting += self._tail.read()
        if self._tracker is None:
            self._tracker = TRACKERS[self._name].open(self._run, self._state)
        # A run that fell back to an earlier checkpoint makes steps again that are drawn already.
        self._waiting = [point for point in self._waiting if self._state.is_new(point)]
        count = len(self._waiting)
        while self._waiting:
            batch, rest = self._waiting[:BATCH], self._waiting[BATCH:]
            try:
                self._tracker.draw(batch)
            except Exception:
                # It may have taken a part: opened again, it says what it has.
                self._tracker = None
                raise
            self._state.add(batch)
            self._waiting = rest
        return count

    def close(self) -> None:
        """End the curve."""
        if self._tracker is not None:
            self._tracker.close(self.finished)


@contextlib.contextmanager
def only_follower(run: FollowedRun, name: TrackerName, seconds: float) -> Iterator[None]:
    """Keep other followers of this run and tracker out; waits for one that draws its last lines.

    Raises:
        StageError: another follower stays.
    """
    lock = filelock.FileLock(run.file(name, "lock"))
    try:
        lock.acquire(timeout=seconds)
    except filelock.Timeout:
        raise StageError(f"another process draws {run.path} in {name} right now: wait until it ends") from None
    try:
        yield
    finally:
        lock.release()


def accompany(run: FollowedRun, name: TrackerName, drain_seconds: float) -> int:
    """Follow a run until standard input ends, with the run or its process; returns the exit code."""
    os.nice(10)
    people = _redirect(run, name)
    ended, warning = threading.Event(), FollowerWarning(run, name, people)
    threading.Thread(target=_await_end, args=(ended, drain_seconds, warning), daemon=True).start()
    wait = POLL_SECONDS
    try:
        with only_follower(run, name, drain_seconds):
            # Only now: the follower of an earlier attempt may have drawn its last lines meanwhile.
            follower = Follower(run, name)
            while True:
                last = ended.is_set()
                try:
                    follower.draw()
                    wait = POLL_SECONDS
                    if last:
                        follower.close()
                        return 0
                except Exception as error:  # whatever a tracker's library raises: the run goes on
                    warning.say(short(error))
                    wait = min(2 * wait, MOST_WAIT_SECONDS)
                    if last:
                        return WARNED
                ended.wait(wait)
    except StageError as error:
        warning.say(short(error))
        return WARNED


class FollowerWarning:
    """The one line about a tracker that fails."""

    def __init__(self, run: FollowedRun, name: TrackerName, people: TextIO) -> None:
        self._run, self._name, self._people = run, name, people
        self.said = False

    def say(self, what: str) -> None:
        if not self.said:
            self.said = True
            print(warning_line(self._run, self._name, what), file=self._people, flush=True)


def warning_line(run: FollowedRun, name: TrackerName, what: str) -> str:
    return f"warning: {name}: {what}: the run goes on; stillhouse follow {run.path} --to {name} draws what is missing"


def _await_end(ended: threading.Event, drain_seconds: float, warning: FollowerWarning) -> None:
    """Wait for the end of standard input, then leave the tracker some time for the last lines."""
    sys.stdin.buffer.read()
    ended.set()
    time.sleep(drain_seconds)
    warning.say(f"it did not take the last lines within {drain_seconds:g} s")
    os._exit(WARNED)


def _redirect(run: FollowedRun, name: TrackerName) -> TextIO:
    """Send what libraries print to the follower's log; returns the stream that people read."""
    people = os.fdopen(os.dup(2), "w", encoding="utf-8")
    log = os.open(run.file(name, "log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    return people
