"""Failed attempts to train: which failures restart the run, and which error the user sees."""

import json
from pathlib import Path

import pytest
from ray.exceptions import RayActorError
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError, WorkerHealthCheckFailedError
from ray.train.v2.api.exceptions import ControllerError, PreemptionError, WorkerGroupError
from ray.train.v2.api.preemption import PreemptionInfo

from distill.checkpointing.run_folder import Run
from distill.launch.elastic import LaunchError
from distill.launch.failure_policy import FailureTracker

DEAD = WorkerHealthCheckFailedError("A worker health check failed.", RayActorError())


@pytest.fixture
def failures(tmp_path: Path) -> FailureTracker:
    (tmp_path / "run").mkdir()
    return FailureTracker("student", 2, Run(tmp_path / "run"), tmp_path / "student.log")


def record(failures: FailureTracker, step: int) -> None:
    with failures.run.metrics.open("a") as lines:
        lines.write(json.dumps({"kind": "train", "step": step, "total": 1.0}) + "\n")


def test_deaths_at_other_steps_are_forgiven_as_often_as_the_recipe_says(failures: FailureTracker) -> None:
    for step in (10, 20):
        record(failures, step)
        assert failures.add(WorkerGroupError("", {0: DEAD})) == "death"
    record(failures, 30)
    with pytest.raises(
        LaunchError, match=r"workers of student died 3 times \(placement.restarts\): worker 0: The actor"
    ):
        assert failures.add(WorkerGroupError("", {0: DEAD})) == "death"


def test_two_deaths_at_the_same_step_end_the_run(failures: FailureTracker) -> None:
    record(failures, 10)
    failures.add(WorkerGroupError("", {0: DEAD}))
    with pytest.raises(LaunchError, match=r"died twice at the same step, the one after 10; .*student.log"):
        failures.add(WorkerGroupError("the whole story", {1: ZeroDivisionError("by zero")}))
    assert "the whole story" in failures.log.read_text()


def test_a_bug_is_distinguished_from_its_echo_in_other_workers(failures: FailureTracker) -> None:
    echo = RuntimeError("Connection reset by peer")
    failures.add(WorkerGroupError("", {0: echo, 1: ZeroDivisionError("by zero")}))
    with pytest.raises(LaunchError, match="worker 1: ZeroDivisionError: by zero"):
        failures.add(WorkerGroupError("", {0: echo, 1: ZeroDivisionError("by zero")}))


def test_an_error_that_the_user_must_fix_ends_the_run_at_once(failures: FailureTracker) -> None:
    with pytest.raises(LaunchError, match=r"^write 3$"):
        failures.add(WorkerGroupError("", {0: ValueError("write 3"), 1: RuntimeError("peer is gone")}))


@pytest.mark.parametrize("dead", [DEAD, RuntimeError("peer is gone")])
def test_a_lost_connection_is_not_an_error_of_the_user(failures: FailureTracker, dead: Exception) -> None:
    """The error is an OSError, like that of a full disk, which the user must fix."""
    failures.add(WorkerGroupError("", {0: ConnectionResetError("peer is gone"), 1: dead}))
    assert failures.count == 1


def test_a_drained_node_does_not_count_as_a_death(failures: FailureTracker) -> None:
    preemption = PreemptionInfo(deadline_ms=None, preempted_node_to_ranks={"a": [1]})
    for _ in range(9):
        assert failures.add(PreemptionError(preemption, drain_timed_out=True)) == "drain"
    dead = RayActorError()
    dead._preempted = True
    failures.add(WorkerGroupError("", {0: RuntimeError("peer is gone"), 1: WorkerHealthCheckFailedError("", dead)}))
    assert failures.count == 0


def test_a_start_that_failed_is_tried_again_and_an_impossible_one_is_not(failures: FailureTracker) -> None:
    for _ in range(2):
        failures.add(ControllerError(WorkerGroupStartupTimeoutError(num_workers=2)))
    with pytest.raises(LaunchError, match="workers of student died 3 times"):
        failures.add(ControllerError(WorkerGroupStartupTimeoutError(num_workers=2)))
    with pytest.raises(LaunchError, match=r"student could not be started: .*no such bucket"):
        failures.add(ControllerError(RuntimeError("no such bucket")))
