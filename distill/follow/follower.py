"""The process of a follower: it reads the metrics of a run, and hands them to a tracker until the run ends.

It may fail or hang without harm. It tries again while the run lasts, and says so once, in one line.
"""

import contextlib
import os
import shlex
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


class TrackerError(StageError):
    """What a tracker's library raised, in one line."""


class Follower:
    """Draws one run in one tracker."""

    def __init__(self, run: FollowedRun, name: TrackerName) -> None:
        self._run, self._name = run, name
        self._state = State.read(run.file(name, "json"), run.identity())
        self._tail = Tail(run.metrics)
        self._waiting: list[Point] = []
        self._tracker: Tracker | None = None

    @property
    def finished(self) -> bool:
        """Whether the run has ended after its last step, and all of it is drawn."""
        return self._tail.finished and not self._waiting

    @property
    def step(self) -> int:
        return self._state.drawn.get("train", 0)

    def draw(self) -> int:
        """Hand over what is new; returns the number of lines. An error leaves the rest for the next call.

        Raises:
            StageError: the run is not there any more, or a line of it is damaged.
            TrackerError: the tracker does not take the lines.
        """
        self._run.check()
        if self._run.identity() != self._state.run:
            raise StageError(f"{self._run.path} holds another run now: run the same command again to draw that one")
        self._waiting += self._tail.read()
        if self._tracker is None:
            self._tracker = self._opened()
        # A run that fell back to an earlier checkpoint makes steps again that are drawn already.
        self._waiting = [point for point in self._waiting if self._state.is_new(point)]
        count = len(self._waiting)
        while self._waiting:
            batch, rest = self._waiting[:BATCH], self._waiting[BATCH:]
            try:
                with _tracker_errors():
                    self._tracker.draw(batch)
            except TrackerError:
                # It may have taken a part: opened again, it says what it has.
                self._tracker = None
                raise
            self._state.add(batch)
            self._waiting = rest
        return count

    def _opened(self) -> Tracker:
        try:
            with _tracker_errors():
                return TRACKERS[self._name].open(self._run, self._state)
        finally:
            # Also of a tracker that failed: it may have begun a curve, which the next attempt continues.
            self._state.write()

    def close(self) -> None:
        """End the curve.

        Raises:
            TrackerError: the tracker cannot end it.
        """
        if self._tracker is not None:
            with _tracker_errors():
                self._tracker.close(self.finished)


@contextlib.contextmanager
def _tracker_errors() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever a tracker's library raises
        raise TrackerError(short(error)) from error


@contextlib.contextmanager
def only_follower(run: FollowedRun, name: TrackerName, seconds: float) -> Iterator[None]:
    """Keep other followers of this run and tracker out; waits for one that draws its last lines.

    Raises:
        StageError: another follower stays.
    """
    run.make_folder()
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
    people = os.fdopen(os.dup(2), "w", encoding="utf-8")
    try:
        _redirect(run, name)
    except OSError as error:
        FollowerWarning(run, name, people).say(short(error))
        return WARNED
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
    except (ValueError, OSError) as error:
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
    command = f"stillhouse follow {shlex.quote(str(run.path))} --to {name}"
    return f"warning: {name}: {what}: the run goes on; {command} draws what is missing"


def _await_end(ended: threading.Event, drain_seconds: float, warning: FollowerWarning) -> None:
    """Wait for the end of standard input, then leave the tracker some time for the last lines."""
    sys.stdin.buffer.read()
    ended.set()
    time.sleep(drain_seconds)
    warning.say(f"it did not take the last lines within {drain_seconds:g} s")
    os._exit(WARNED)


def _redirect(run: FollowedRun, name: TrackerName) -> None:
    """Send what libraries print to the follower's log."""
    run.make_folder()
    log = os.open(run.file(name, "log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
