"""Kill workers, nodes and steps under Ray: each run ends with the uninterrupted curve or a clear error."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import paths
import psutil
import pytest
import ray_clusters
import tiny_pipeline
from driver_processes import DriverProcess
from ray_clusters import Cluster, training_workers
from train_processes import RECIPE, curve, train

from cluster.telemetry.metrics_log import read_metrics
from distill.checkpointing.run_folder import Run

pytestmark = pytest.mark.long

# Many rows per step in small micro-batches: steps are slow enough that nodes can leave and join between them.
VALUES: dict[str, Any] = {**RECIPE, "steps": 160, "rows_per_step": 32, "validation_rows": 8}
PLACEMENT: dict[str, Any] = {"rows_per_device": 2, "log_every": 1, "save_every": 10, "validate_every": 80}

NETWORKS = pytest.mark.parametrize(
    "isolated", [ray_clusters.namespaces_work()], ids=lambda yes: "apart" if yes else "loopback"
)
"""Whether every node has its own network; only root may create networks."""

DRIVER = """
import json, sys
from pathlib import Path
from cluster.actors import ray_cluster
from cluster.artifacts import errors
from distill.checkpointing.run_folder import Run
from distill.config import Distillation
from distill.launch import ray_train

module, values, folder, out = json.loads(sys.argv[1])
inputs = {role: Path(folder) / role for role in ("tokens", "teacher")}
with errors.errors_for_people(), ray_cluster.connect(2):
    ray_train.on_workers(ray_train.Call(module, values, inputs, Path(out)), Distillation.of(values), Run(Path(out)))
"""


@pytest.fixture(scope="module")
def folder(training_folder: Path) -> Path:
    return training_folder


@pytest.fixture(scope="module")
def uninterrupted_curve(folder: Path) -> list[float]:
    """The curve of an uninterrupted run on one worker without Ray."""
    settings = ["steps=160", "rows_per_step=32", "validation_rows=8"]
    settings += [f"placement.{key}={value}" for key, value in PLACEMENT.items()]
    done = train(folder, folder / "whole", 1, *settings)
    assert done.returncode == 0, done.stderr
    return curve(folder / "whole")


class TrainingDriver(DriverProcess):
    """A process that trains on the cluster of its environment, and its run folder."""

    def __init__(self, folder: Path, out: Path, environment: dict[str, str], **placement: Any) -> None:
        self.run = Run(out)
        module = "faulty_training" if "FAULT" in environment else "distill.train"
        values = {**VALUES, "placement": {**PLACEMENT, **placement}}
        call = json.dumps([module, values, str(folder), str(out)])
        super().__init__(["-c", DRIVER, call], out.with_name("driver.log"), environment)

    def await_step(self, step: int, workers: int | None = None) -> None:
        """Wait for a checkpoint of this step or a later one, written by ``workers`` workers."""

        def written() -> bool:
            newest = self.run.newest()
            return newest is not None and newest.step >= step and workers in (None, newest.facts["world_size"])

        self.await_that(written)

    def await_metrics_after(self, step: int) -> float:
        """Seconds until a step beyond this one is recorded."""
        started = time.monotonic()
        self.await_that(lambda: last_step(self.run) > step)
        return time.monotonic() - started

    def finish(self) -> str:
        """Wait until the process ends; returns its output."""
        self.process.wait(timeout=300)
        return self.said()


def last_step(run: Run) -> int:
    lines = read_metrics(run.metrics)
    return lines[-1]["step"] if lines else 0


@pytest.mark.parametrize(
    "victim", [0, pytest.param(1, marks=pytest.mark.rare)], ids=["the-first-worker", "another-worker"]
)
def test_a_worker_that_is_killed(folder: Path, tmp_path: Path, uninterrupted_curve: list[float], victim: int) -> None:
    driver = TrainingDriver(folder, tmp_path / "run", tiny_pipeline.environment(), workers=2)
    driver.await_step(20)
    found = training_workers(psutil.Process(driver.process.pid).children(recursive=True))
    assert len(found) == 2
    found[victim].kill()
    before = last_step(driver.run)
    seconds = driver.await_metrics_after(before)
    print(f"worker {victim} killed after step {before}: going on {seconds:.1f} s later")
    output = driver.finish()
    assert driver.process.returncode == 0, output
    assert "a worker died; starting again from the newest checkpoint" in output
    assert curve(driver.run.path) == pytest.approx(uninterrupted_curve, rel=1e-6)


@pytest.mark.rare
@NETWORKS
def test_a_node_that_is_killed_and_replaced(
    folder: Path, tmp_path: Path, uninterrupted_curve: list[float], isolated: bool
) -> None:
    """Two workers on two nodes, then one, then two again."""
    with ray_clusters.running_cluster(tmp_path, nodes=2, isolated=isolated) as cluster:
        elastic = {"workers": {"min": 1, "max": 2}, "replace_seconds": 2.0}
        driver = TrainingDriver(folder, tmp_path / "run", cluster.environment, **elastic)
        driver.await_step(20, workers=2)
        cluster.nodes[2].kill()
        before = last_step(driver.run)
        seconds = driver.await_metrics_after(before)
        print(f"node killed after step {before}: going on {seconds:.1f} s later")
        driver.await_step(before, workers=1)
        cluster.add()
        started = time.monotonic()
        driver.await_step(before, workers=2)
        print(f"node came: first checkpoint of two workers {time.monotonic() - started:.1f} s later")
        output = driver.finish()
    assert driver.process.returncode == 0, output
    assert "room for 1 of 2 workers: continuing with 1" in output
    assert "there is room for more workers; stopped at step" in output
    assert curve(driver.run.path) == pytest.approx(uninterrupted_curve, rel=1e-6)


@pytest.mark.rare
@NETWORKS
def test_a_node_that_is_drained(folder: Path, tmp_path: Path, uninterrupted_curve: list[float], isolated: bool) -> None:
    """The run saves a checkpoint before the deadline although none was due, and another node resumes from it."""
    with ray_clusters.running_cluster(tmp_path, nodes=2, isolated=isolated) as cluster:
        # No checkpoint is due before the end, and no death is tolerated.
        driver = TrainingDriver(folder, tmp_path / "run", cluster.environment, workers=1, restarts=0, save_every=1000)
        driver.await_that(lambda: last_step(driver.run) >= 10)
        leaving = hosts(cluster)
        leaving.drain()
        started = time.monotonic()
        driver.await_step(10)
        seconds = time.monotonic() - started
        newest = driver.run.newest()
        assert newest is not None
        print(f"drained: checkpoint of step {newest.step} after {seconds:.1f} s")
        assert seconds < 30, "Ray's own deadline"
        assert newest.step < VALUES["steps"]
        print(f"going on elsewhere {driver.await_metrics_after(newest.step):.1f} s later")
        assert hosts(cluster) is not leaving
        output = driver.finish()
    assert driver.process.returncode == 0, output
    assert f"a node is about to leave; stopped at step {newest.step}, starting again from there" in output
    assert curve(driver.run.path) == pytest.approx(uninterrupted_curve, rel=1e-6)


@pytest.mark.rare
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["terminated", "interrupted"])
def test_a_driver_that_is_stopped_ends_with_a_checkpoint(
    number: signal.Signals, folder: Path, tmp_path: Path, uninterrupted_curve: list[float]
) -> None:
    # No checkpoint is due before the end.
    driver = TrainingDriver(folder, tmp_path / "run", tiny_pipeline.environment(), workers=2, save_every=1000)
    driver.await_that(lambda: last_step(driver.run) >= 10)
    driver.process.send_signal(number)
    output = driver.finish()
    assert driver.process.returncode == 130, output
    assert ("Ctrl-C again stops at once" in output) == (number == signal.SIGINT)
    newest = driver.run.newest()
    assert newest is not None
    assert 10 <= newest.step < VALUES["steps"]
    expected = [f"run: stopped at step {newest.step}, checkpoint written"]
    assert output.splitlines()[-2:] == [*expected, "interrupted: run the same command again to continue"]
    again = TrainingDriver(folder, tmp_path / "run", tiny_pipeline.environment(), workers=2, save_every=1000)
    output = again.finish()
    assert again.process.returncode == 0, output
    assert curve(driver.run.path) == pytest.approx(uninterrupted_curve, rel=1e-6)


def hosts(cluster: Cluster) -> ray_clusters.Node:
    """The node of the training worker."""
    return next(node for node in cluster.nodes[1:] if training_workers(node.processes()))


@pytest.mark.rare
@NETWORKS
def test_a_lost_node_without_a_replacement_ends_the_run(folder: Path, tmp_path: Path, isolated: bool) -> None:
    with ray_clusters.running_cluster(tmp_path, nodes=1, isolated=isolated) as cluster:
        driver = TrainingDriver(folder, tmp_path / "run", cluster.environment, workers=1, replace_seconds=2.0)
        driver.await_step(10)
        cluster.nodes[1].kill()
        output = driver.finish()
    assert driver.process.returncode == 1
    assert output.splitlines()[-1].startswith("error: placement asks for 1 workers, the cluster has room for 0"), output
    assert "run the same command again to continue" in output


@pytest.mark.rare
@pytest.mark.parametrize(
    ("fault", "line"),
    [
        ("kill", "worker 1: The actor is dead because its worker process has died"),
        ("raise", "worker 1: RuntimeError: a bug of step seven"),
    ],
)
def test_a_step_that_dies_twice_ends_the_run(folder: Path, tmp_path: Path, fault: str, line: str) -> None:
    path = os.pathsep.join([str(paths.SUPPORT), os.environ.get("PYTHONPATH", "")])
    environment = tiny_pipeline.environment(FAULT=fault, PYTHONPATH=path)
    driver = TrainingDriver(folder, tmp_path / "run", environment, workers=2, restarts=50)
    output = driver.finish()
    assert driver.process.returncode == 1
    assert output.count("starting again from the newest checkpoint") == 1, output
    last = output.splitlines()[-1]
    assert last.startswith("error: run: workers died twice at the same step, the one after ")
    assert line in last
    assert line.partition(": ")[2] in (tmp_path / ".ray" / "run.log").read_text()
