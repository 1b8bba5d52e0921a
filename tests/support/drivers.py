"""Stages in processes of their own, watched while they work, for the tests that kill what they run on."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


class RefusedError(Exception):
    """What the job queue said to people."""


class Asker:
    """Somebody at the job queue of the cluster of an environment, in a process of his own (:mod:`asker`)."""

    def __init__(self, log: Path, environment: dict[str, str]) -> None:
        self._log = log
        with log.open("a") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "asker"],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def say(self, method: str, *arguments: Any) -> None:
        """Ask for something without waiting for the answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([method, *arguments]) + "\n")
        self.process.stdin.flush()

    def hear(self) -> Any:
        """The next answer.

        Raises:
            RefusedError: the queue refused.
        """
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the process ended: {self._log.read_text()}"
        answer = json.loads(line)
        if "error" in answer:
            raise RefusedError(answer["error"])
        return answer["answer"]

    def ask(self, method: str, *arguments: Any) -> Any:
        self.say(method, *arguments)
        return self.hear()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()
