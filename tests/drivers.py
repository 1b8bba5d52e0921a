"""Stages in processes of their own, watched while they work, for the tests that kill what they run on."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from clusters import await_that


class Driver:
    """A process that runs a command of Python on the cluster of its environment, and the log of what it says."""

    def __init__(self, arguments: list[str], log: Path, environment: dict[str, str]) -> None:
        self._log = log
        with log.open("a") as errors:
            self.process = subprocess.Popen([sys.executable, *arguments], env=environment, stdout=errors, stderr=errors)

    def await_that(self, holds: Callable[[], bool]) -> None:
        try:
            await_that(holds, self.process)
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.said()}") from None

    def said(self) -> str:
        return self._log.read_text()


class StageDriver(Driver):
    """A stage of the command line that cuts its work into units; ``work`` is where it notes which are done."""

    def __init__(self, arguments: list[str], out: Path, work: str, environment: dict[str, str]) -> None:
        self._work = out.with_name(f".{out.name}.partial") / work
        super().__init__(["-m", *arguments, "--out", str(out)], out.with_name("driver.log"), environment)

    def done(self) -> dict[str, int]:
        """Finished units, and when each was."""
        return {path.name: path.stat().st_mtime_ns for path in self._work.glob("[0-9]*.json")}

    def finish(self) -> str:
        self.process.wait(timeout=400)
        assert self.process.returncode == 0, self.said()
        return self.said()
