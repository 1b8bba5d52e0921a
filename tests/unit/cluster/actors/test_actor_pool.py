"""The actor pool: every unit is done once, repeated if its actor dies, and drawn only when needed."""

import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pool_workers as workers
import pytest
import ray
from ray_clusters import free_ports
from waiting import wait_until

from cluster.actors.actor_pool import MAX_DEATHS, Placement, Unit, map_unordered
from cluster.artifacts.errors import StageError

pytestmark = pytest.mark.usefixtures("ray_of_three_cpus")


def _units(count: int) -> list[Unit]:
    return [Unit(f"unit {number}", number, size=1) for number in range(count)]


def _run(folder: Path, kind: Any, units: Any, actors: Any = 2) -> dict[int, dict[str, Any]]:
    found = map_unordered("test", partial(kind, folder), units, Placement(actors=actors))
    return {unit.payload: result for unit, result in found}


def _attempts(folder: Path) -> dict[int, int]:
    return {int(log.stem): len(log.read_text().splitlines()) for log in folder.glob("*.log")}


@pytest.mark.parametrize("actors", [1, 2, "auto", 5])
def test_every_unit_is_done_once_on_any_number_of_actors(tmp_path: Path, actors: Any) -> None:
    found = _run(tmp_path, workers.Doubler, _units(12), actors)
    assert {number: result["number"] for number, result in found.items()} == {n: 2 * n for n in range(12)}
    assert _attempts(tmp_path) == dict.fromkeys(range(12), 1)


def test_actors_work_at_the_same_time(tmp_path: Path) -> None:
    found = _run(tmp_path, workers.Together, _units(6))
    assert len({result["pid"] for result in found.values()}) == 2


def test_a_unit_whose_worker_died_is_done_by_another(tmp_path: Path) -> None:
    (tmp_path / "4.deadly").write_text("2")
    found = _run(tmp_path, workers.Mortal, _units(8))
    assert {number: result["number"] for number, result in found.items()} == {n: 2 * n for n in range(8)}
    assert found[4]["deaths"] == 2
    assert _attempts(tmp_path) == {**dict.fromkeys(range(8), 1), 4: 3}


def test_a_unit_that_kills_every_worker_is_named(tmp_path: Path) -> None:
    (tmp_path / "1.deadly").write_text("99")
    with pytest.raises(StageError, match=f"unit 1: workers died on it {MAX_DEATHS} times"):
        _run(tmp_path, workers.Mortal, _units(3))
    assert _attempts(tmp_path)[1] == MAX_DEATHS


def test_refusals_of_a_worker_end_the_work_and_bugs_keep_their_type(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="three is refused"):
        _run(tmp_path, workers.Refusing, _units(4))
    with pytest.raises(RuntimeError, match="a bug"):
        _run(tmp_path, workers.Refusing, [Unit("bug", 4), Unit("fine", 5)])


def test_the_pool_gives_up_on_workers_that_never_start(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"test: no worker could be started .*cannot be unpickled"):
        _run(tmp_path, workers.Unpicklable(), _units(3))


def test_units_are_drawn_as_they_are_needed_and_results_come_before_the_next_is(tmp_path: Path) -> None:
    drawn: list[int] = []
    results: list[int] = []

    def units() -> Iterator[Unit]:
        for unit in _units(1_000):
            if sum(results) >= 30:
                return
            drawn.append(unit.payload)
            yield unit

    for _, result in map_unordered("test", partial(workers.Doubler, tmp_path), units(), Placement(actors=2)):
        results.append(result["number"])
    assert sorted(results) == [2 * number for number in drawn]
    assert 6 <= len(drawn) <= 6 + 4  # 0 + 2 + 4 + 6 + 8 + 10, and units drawn or running meanwhile


def test_actors_without_a_cpu_are_demand_for_an_autoscaler(tmp_path: Path) -> None:
    found = map_unordered("test", partial(workers.Doubler, tmp_path), _units(40), Placement(actors=5))
    next(found)
    status = [sys.executable, "-m", "ray.scripts.scripts", "status", "--address"]

    def ray_status() -> str:
        return subprocess.run([*status, ray.get_runtime_context().gcs_address], capture_output=True, text=True).stdout

    wait_until(lambda: "{'CPU': 1.0}: 2+ pending tasks/actors" in ray_status())
    assert len(list(found)) == 39


def test_metrics_are_served_while_the_work_lasts(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    for task in ("first", "second"):  # the same port again
        found = map_unordered(
            task, partial(workers.Doubler, tmp_path), _units(4), Placement(actors=2, metrics_port=port)
        )
        next(found)
        next(found)
        lines = _scraped(port)
        assert lines[f'stillhouse_units_total{{task="{task}"}}'] >= 2
        assert lines[f'stillhouse_unit_bytes_total{{task="{task}"}}'] >= 2
        assert lines[f'stillhouse_actors{{task="{task}"}}'] in (1, 2)
        list(found)
    with pytest.raises(OSError, match="refused"):
        _scraped(port)


def _scraped(port: int) -> dict[str, float]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    pairs = (line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("stillhouse_"))
    return {name: float(value) for name, value in pairs}


def test_actors_are_gone_when_the_work_is_done_or_left(tmp_path: Path) -> None:
    left = map_unordered("test", partial(workers.Doubler, tmp_path), _units(10), Placement(actors=2))
    next(left)
    left.close()
    _run(tmp_path, workers.Doubler, _units(3))
    with pytest.raises(StageError):
        _run(tmp_path, workers.Refusing, _units(4))
    wait_until(lambda: ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"])
