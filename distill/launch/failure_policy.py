"""Decides whether a failed attempt to train is repeated.

A dead worker or node is worth another attempt; an error that the user must fix is not, nor are two deaths at one step.
"""

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from ray.exceptions import RayActorError
from ray.train.v2._internal.exceptions import (
    WorkerGroupStartupFailedError,
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
)
from ray.train.v2.api.exceptions import ControllerError, PreemptionError, TrainingFailedError, WorkerGroupError

from cluster.artifacts import errors
from cluster.telemetry import metrics_log
from cluster.telemetry.error_text import last_line
from cluster.telemetry.progress import say
from distill.checkpointing.run_folder import Run
from distill.launch.elastic import LaunchError

_LOST_AT_START = (WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError)
"""A worker or its node died while Ray placed the workers."""


@dataclass
class FailureTracker:
    """Counts the failures of a run, decides whether to restart, and writes whole errors to a log."""

    name: str
    restarts: int
    run: Run
    log: Path
    count: int = 0
    reached: int | None = None
    """Step at the previous death."""

    def add(self, error: TrainingFailedError) -> str:
        """Record a failure; returns the cause of the restart, ``drain`` or ``death``.

        Raises:
            LaunchError: a restart would not help.
        """
        with self.log.open("a", encoding="utf-8") as log:
            log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {error}\n")
        group = error.worker_failures if isinstance(error, WorkerGroupError) else {}
        causes = {rank: _cause(failure) for rank, failure in group.items()}
        if (line := _refusal(causes.values())) is not None:
            raise LaunchError(line)
        preempted = any(isinstance(cause, RayActorError) and cause.preempted for cause in causes.values())
        if preempted or isinstance(error, PreemptionError):
            say(f"{self.name}: a node left before its checkpoint was written; starting again from the newest one")
            return "drain"
        reason = f"{_reason(causes) if causes else last_line(str(error))} (see {self.log})"
        if isinstance(error, ControllerError) and not isinstance(error.controller_failure, _LOST_AT_START):
            raise LaunchError(f"{self.name} could not be started: {reason}")
        self.count += 1
        before, self.reached = self.reached, last_step(self.run)
        if isinstance(error, WorkerGroupError) and before == self.reached:
            raise LaunchError(
                f"{self.name}: workers died twice at the same step, the one after {before}; starting again would not "
                f"help: {reason}"
            )
        if self.count > self.restarts:
            raise LaunchError(f"workers of {self.name} died {self.count} times (placement.restarts): {reason}")
        say(f"{self.name}: a worker died; starting again from the newest checkpoint: {reason}")
        return "death"


def last_step(run: Run) -> int:
    """The last step that was logged or saved."""
    newest = run.newest()
    recorded = [int(line["step"]) for line in metrics_log.read_metrics(run.metrics)]
    return max([newest.step if newest else 0, *recorded[-1:]])


def _refusal(causes: Collection[BaseException]) -> str | None:
    """The error line for the user, if a worker raised one and no worker died.

    When a worker dies, the others fail too, with errors that its silence causes; the user cannot fix those.
    """
    if any(isinstance(cause, RayActorError) for cause in causes):
        return None
    lines = [errors.explain(cause) for cause in causes if not isinstance(cause, ConnectionError)]
    return next((line for line in lines if line is not None), None)


def _cause(failure: BaseException) -> BaseException:
    """Unwrap Ray Train's exceptions to the one of the stage, or to the one that reports the dead worker."""
    if isinstance(failure, WorkerHealthCheckFailedError):
        failure = failure.health_check_failure
    inner: BaseException = getattr(failure, "_base_exc", failure)
    return inner


def _reason(causes: Mapping[int, BaseException]) -> str:
    """One line about the first dead worker, or else the first exception that does not mention a peer."""

    def suspicion(rank: int) -> tuple[bool, bool, int]:
        return not isinstance(causes[rank], RayActorError), "peer" in str(causes[rank]), rank

    cause = causes[rank := min(causes, key=suspicion)]
    if isinstance(cause, RayActorError):
        # The rest of the message lists guesses.
        return f"worker {rank}: {last_line(str(cause).partition(' Some common causes')[0])}"
    return f"worker {rank}: {type(cause).__name__}: {last_line(str(cause))}"
