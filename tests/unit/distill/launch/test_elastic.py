"""The number of workers: ranges, divisors of the rows, and clusters without room."""

from typing import Any

import pytest

from cluster.artifacts.recipe import RecipeError
from distill.config import Training
from distill.launch.elastic import LaunchError, WorkerSlots


def training(workers: Any, **placement: Any) -> Training:
    return Training.of({"steps": 1, "rows_per_step": 12, "placement": {"workers": workers, **placement}})


@pytest.mark.parametrize(("room", "count"), [(1, None), (2, 2), (3, 3), (5, 4), (7, 6), (64, 6)])
def test_the_largest_number_that_divides_the_rows(room: int, count: int | None) -> None:
    assert WorkerSlots(training({"min": 2, "max": 8}), gpu=False, fixed=None).fitting(room) == count


@pytest.mark.parametrize(("room", "count"), [(3, None), (4, 4), (64, 4)])
def test_a_fixed_number_is_that_or_nothing(room: int, count: int | None) -> None:
    assert WorkerSlots(training(4), gpu=False, fixed=4).fitting(room) == count


def test_a_range_without_a_divisor_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"rows_per_step 12 .* from 7 to 11"):
        training({"min": 7, "max": 11})


def test_workers_are_limited_by_the_room_of_the_cluster(ray_of_three_cpus: None) -> None:
    assert WorkerSlots.of(training("auto")).fixed == 1
    assert WorkerSlots.of(training({"min": 1, "max": 6})).await_workers(None) == 3
    assert WorkerSlots.of(training({"min": 1, "max": 6}, threads=2)).await_workers(None) == 1
    assert WorkerSlots.of(training(2)).resources == {"CPU": 1}


def test_a_run_waits_for_lost_workers_and_then_continues_without(ray_of_three_cpus: None) -> None:
    assert WorkerSlots.of(training({"min": 1, "max": 6}, replace_seconds=0.1)).await_workers(6) == 3
    fixed = WorkerSlots.of(training(6, replace_seconds=0.1))
    with pytest.raises(LaunchError, match=r"asks for 6 workers, the cluster has room for 3 .* for 0.1 s"):
        fixed.await_workers(6)


def test_too_small_a_cluster_is_refused_at_once(ray_of_three_cpus: None) -> None:
    with pytest.raises(LaunchError, match="asks for at least 4 workers, the cluster has room for 3"):
        WorkerSlots.of(training({"min": 4, "max": 6})).await_workers(None)


@pytest.mark.parametrize(
    ("placed", "helps", "does_not"),
    [
        ({"workers": "auto", "threads": 8}, "placement.threads", "placement.workers"),
        ({"workers": 9}, "placement.workers", "placement.device"),
        ({"workers": 9}, "larger cluster", "placement.threads"),
    ],
)
def test_a_refusal_names_only_what_helps_on_this_cluster(
    ray_of_three_cpus: None, placed: dict[str, Any], helps: str, does_not: str
) -> None:
    with pytest.raises(LaunchError) as refused:
        WorkerSlots.of(training(**placed)).await_workers(None)
    assert helps in str(refused.value)
    assert does_not not in str(refused.value)
