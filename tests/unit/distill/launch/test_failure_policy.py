"""When an attempt to train failed: what is tried again, what is not, and what people are told."""

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
def deaths(tmp_path: Path) -> FailureTracker:
    (tmp_path / "run").mkdir()
    return FailureTracker("student", 2, Run(tmp_path / "run"), tmp_path / "student.log")


def record(deaths: FailureTracker, step: int) -> None:
    with deaths.run.metrics.open("a") as lines:
        lines.write(json.dumps({"kind": "train", "step": step, "total": 1.0}) + "\n")


def test_deaths_at_other_steps_are_forgiven_as_often_as_the_recipe_says(deaths: FailureTracker) -> None:
    for step in (10, 20):
        record(deaths, step)
        assert deaths.add(WorkerGroupError("", {0: DEAD})) == "death"
    record(deaths, 30)
    with pytest.raises(LaunchError, match=r"died 3 times \(placement.restarts\): worker 0: The actor"):
        assert deaths.add(WorkerGroupError("", {0: DEAD})) == "death"


def test_two_deaths_at_the_same_step_are_enough(deaths: FailureTracker) -> None:
    record(deaths, 10)
    deaths.add(WorkerGroupError("", {0: DEAD}))
    with pytest.raises(LaunchError, match=r"died twice .* after 10; .*student.log"):
        deaths.add(WorkerGroupError("the whole story", {1: ZeroDivisionError("by zero")}))
    assert "the whole story" in deaths.log.read_text()


def test_a_bug_is_told_from_its_echo_in_the_others(deaths: FailureTracker) -> None:
    echo = RuntimeError("Connection reset by peer")
    deaths.add(WorkerGroupError("", {0: echo, 1: ZeroDivisionError("by zero")}))
    with pytest.raises(LaunchError, match="worker 1: ZeroDivisionError: by zero"):
        deaths.add(WorkerGroupError("", {0: echo, 1: ZeroDivisionError("by zero")}))


def test_what_people_must_mend_is_told_at_once(deaths: FailureTracker) -> None:
    with pytest.raises(LaunchError, match=r"^write 3$"):
        deaths.add(WorkerGroupError("", {0: ValueError("write 3"), 1: RuntimeError("peer is gone")}))


@pytest.mark.parametrize("dead", [DEAD, RuntimeError("peer is gone")])
def test_a_lost_connection_is_nobodys_to_mend(deaths: FailureTracker, dead: Exception) -> None:
    """It is an OSError, and those of a disk that is full are for people."""
    deaths.add(WorkerGroupError("", {0: ConnectionResetError("peer is gone"), 1: dead}))
    assert deaths.count == 1


def test_a_node_that_said_it_would_leave_is_no_death(deaths: FailureTracker) -> None:
    told = PreemptionInfo(deadline_ms=None, preempted_node_to_ranks={"a": [1]})
    for _ in range(9):
        assert deaths.add(PreemptionError(told, drain_timed_out=True)) == "drain"
    dead = RayActorError()
    dead._preempted = True
    deaths.add(WorkerGroupError("", {0: RuntimeError("peer is gone"), 1: WorkerHealthCheckFailedError("", dead)}))
    assert deaths.count == 0


def test_a_start_that_failed_is_tried_again_and_an_impossible_one_is_not(deaths: FailureTracker) -> None:
    for _ in range(2):
        deaths.add(ControllerError(WorkerGroupStartupTimeoutError(num_workers=2)))
    with pytest.raises(LaunchError, match="workers of student died 3 times"):
        deaths.add(ControllerError(WorkerGroupStartupTimeoutError(num_workers=2)))
    with pytest.raises(LaunchError, match=r"student could not be started: .*no such bucket"):
        deaths.add(ControllerError(RuntimeError("no such bucket")))
