"""When an attempt to train failed: whether to start again, or to say what stands in the way.

A worker or node that dies is worth another attempt; what a person must mend is not, nor is a step that died twice.
"""

import time
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
from cluster.telemetry.progress import say
from distill.checkpointing.run_folder import Run
from distill.launch.elastic import LaunchError

_LOST_AT_START = (WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError)
"""A worker or its node went while the workers were being placed."""


@dataclass
class FailureTracker:
    """Decides whether to start again after an attempt failed, and keeps the whole errors in a log."""

    name: str
    restarts: int
    run: Run
    log: Path
    count: int = 0
    reached: int | None = None
    """Step last recorded at the last death."""

    def add(self, error: TrainingFailedError) -> str:
        """Why to start again: a node was drained (``drain``), or a worker or its node died (``death``).

        Raises:
            LaunchError: that would not help.
        """
        with self.log.open("a", encoding="utf-8") as log:
            log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {error}\n")
        if isinstance(error, WorkerGroupError) and (line := _refusal(error)) is not None:
            raise LaunchError(line)
        if _preempted(error):
            say(f"{self.name}: a node left before its checkpoint was written; starting again from the newest one")
            return "drain"
        if isinstance(error, ControllerError) and not isinstance(error.controller_failure, _LOST_AT_START):
            raise LaunchError(f"{self.name} could not be started: {_reason(error)} (see {self.log})")
        self.count += 1
        before, self.reached = self.reached, last_step(self.run)
        reason = f"{_reason(error)} (see {self.log})"
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
    """The last step that was recorded or saved."""
    newest = run.newest()
    recorded = [int(line["step"]) for line in metrics_log.read_metrics(run.metrics)]
    return max([newest.step if newest else 0, *recorded[-1:]])


def _refusal(error: WorkerGroupError) -> str | None:
    """The line meant for people, when a worker stopped with one and none died.

    When one dies, the others fail as well, with whatever its silence breaks in them: that is nobody's to mend.
    """
    causes = [_cause(failure) for failure in error.worker_failures.values()]
    if any(isinstance(cause, RayActorError) for cause in causes):
        return None
    lines = [errors.explain(cause) for cause in causes if not isinstance(cause, ConnectionError)]
    return next((line for line in lines if line is not None), None)


def _preempted(error: TrainingFailedError) -> bool:
    """Whether a node took its workers with it after it had been told to leave."""
    if isinstance(error, WorkerGroupError):
        causes = [_cause(failure) for failure in error.worker_failures.values()]
        return any(isinstance(cause, RayActorError) and cause.preempted for cause in causes)
    return isinstance(error, PreemptionError)


def _cause(failure: BaseException) -> BaseException:
    """What is behind Ray Train's wrappers: the exception of the stage, or how the worker was found dead."""
    if isinstance(failure, WorkerHealthCheckFailedError):
        failure = failure.health_check_failure
    inner: BaseException = getattr(failure, "_base_exc", failure)
    return inner


def _reason(error: TrainingFailedError) -> str:
    """One line: the first worker that died; where none did, the exception that is most likely not another's echo."""
    if not isinstance(error, WorkerGroupError):
        return _last_line(str(error))
    causes = {rank: _cause(failure) for rank, failure in error.worker_failures.items()}
    rank = min(
        causes, key=lambda rank: (not isinstance(causes[rank], RayActorError), "peer" in str(causes[rank]), rank)
    )
    if isinstance(causes[rank], RayActorError):
        # Ray goes on with guesses.
        return f"worker {rank}: {_last_line(str(causes[rank]).partition(' Some common causes')[0])}"
    return f"worker {rank}: {type(causes[rank]).__name__}: {_last_line(str(causes[rank]))}"


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no reason given")
