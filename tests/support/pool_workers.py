"""Workers for the tests of the actor pool, in a module that actors can import."""

import os
import signal
import time
from pathlib import Path
from typing import Any

from cluster.actors.actor_pool import Attempt
from cluster.artifacts.errors import StageError


class Doubler:
    """Double a number and append every attempt to the unit's log file."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def work(self, payload: int, attempt: Attempt) -> dict[str, Any]:
        with (self._folder / f"{payload}.log").open("a") as log:
            log.write(f"{os.getpid()} {attempt.deaths}\n")
        return {"number": 2 * payload, "pid": os.getpid(), "deaths": attempt.deaths}


class Mortal(Doubler):
    """Die at each number that has a ``.deadly`` file, as many times as the file says."""

    def work(self, payload: int, attempt: Attempt) -> dict[str, Any]:
        found = super().work(payload, attempt)
        deadly = self._folder / f"{payload}.deadly"
        if deadly.exists() and attempt.deaths < int(deadly.read_text()):
            os.kill(os.getpid(), signal.SIGKILL)
        return found


class Refusing(Doubler):
    def work(self, payload: int, attempt: Attempt) -> dict[str, Any]:
        if payload == 3:
            raise StageError("three is refused: leave it out")
        if payload == 4:
            raise RuntimeError("a bug")
        return super().work(payload, attempt)


class Together(Doubler):
    """Wait until two workers run at the same time."""

    def work(self, payload: int, attempt: Attempt) -> dict[str, Any]:
        found = super().work(payload, attempt)
        while len({line.split()[0] for log in self._folder.glob("*.log") for line in log.read_text().splitlines()}) < 2:
            time.sleep(0.02)
        return found


class Unpicklable:
    """Can be pickled, but not unpickled in an actor."""

    def __call__(self, folder: Path) -> Doubler:
        return Doubler(folder)

    def __setstate__(self, state: object) -> None:
        raise RuntimeError("cannot be unpickled")

    def __getstate__(self) -> dict[str, int]:
        return {"one": 1}
