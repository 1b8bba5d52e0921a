"""Processes that connect to a Ray cluster (Ray calls them drivers), for the tests that kill the cluster's parts."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from waiting import wait_until


class DriverProcess:
    """A process that runs a Python command on the cluster that ``environment`` names, and its log."""

    def __init__(self, arguments: list[str], log: Path, environment: dict[str, str]) -> None:
        self._log = log
        with log.open("a") as errors:
            self.process = subprocess.Popen([sys.executable, *arguments], env=environment, stdout=errors, stderr=errors)

    def await_that(self, holds: Callable[[], bool]) -> None:
        try:
            wait_until(holds, self.process)
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.said()}") from None

    def said(self) -> str:
        return self._log.read_text()


class StageProcess(DriverProcess):
    """A stage of the command line that splits its work into units; the folder ``work`` lists the finished ones."""

    def __init__(self, arguments: list[str], out: Path, work: str, environment: dict[str, str]) -> None:
        self._work = out.with_name(f".{out.name}.partial") / work
        super().__init__(["-m", *arguments, "--out", str(out)], out.with_name("driver.log"), environment)

    def done(self) -> dict[str, int]:
        """Finished units and the modification time of each."""
        return {path.name: path.stat().st_mtime_ns for path in self._work.glob("[0-9]*.json")}

    def finish(self) -> str:
        self.process.wait(timeout=400)
        assert self.process.returncode == 0, self.said()
        return self.said()


class RefusedError(Exception):
    """The job queue refused a request; the message is the queue's."""


class JobQueueClient:
    """A process that talks to the job queue of the cluster that ``environment`` names (:mod:`job_queue_client`)."""

    def __init__(self, log: Path, environment: dict[str, str]) -> None:
        self._log = log
        with log.open("a") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "job_queue_client"],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def send(self, method: str, *arguments: Any) -> None:
        """Send a request without waiting for the answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([method, *arguments]) + "\n")
        self.process.stdin.flush()

    def receive(self) -> Any:
        """The next answer.

        Raises:
            RefusedError: the queue refused the request.
        """
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the process ended: {self._log.read_text()}"
        answer = json.loads(line)
        if "error" in answer:
            raise RefusedError(answer["error"])
        return answer["answer"]

    def request(self, method: str, *arguments: Any) -> Any:
        self.send(method, *arguments)
        return self.receive()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()
