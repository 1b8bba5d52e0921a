"""A real Prometheus counts restarts of training workers that die under Ray, by cause."""

import json
from pathlib import Path
from typing import Any

import prometheus_servers as servers
import psutil
import pytest
import tiny_pipeline
import tokens_artifact
from driver_processes import DriverProcess
from prometheus_servers import free_port
from ray_clusters import training_workers

from cluster.artifacts import commit
from distill.checkpointing.run_folder import Run
from distill.train.teacher import RUN
from k8s.monitoring.source import generate
from k8s.monitoring.source.picture_data import Source

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(bool(servers.MISSING), reason=servers.WHY),
]

DRIVER = """
import json, sys
from pathlib import Path
from cluster.actors import ray_cluster
from cluster.artifacts import commit, errors
from distill.checkpointing.run_folder import Run
from distill.launch import ray_train
from distill.train.teacher import RUN, Teacher

values, tokens, out = json.loads(sys.argv[1])
call = ray_train.Call("distill.teacher", values, {"tokens": Path(tokens)}, Path(out))
with errors.errors_for_people(), ray_cluster.connect(2):
    ray_train.on_workers(call, Teacher.of(values, "teacher").train, Run(commit.staging(call.out) / RUN))
"""
NAME = "service/teacher"
LOST = f'stillhouse_restarts_total{{run="{NAME}", cause="death"}}'


def teacher(port: int) -> dict[str, Any]:
    """A teacher trained from scratch, with many slow steps, so that Prometheus scrapes the restarts."""
    placement = {"workers": 2, "rows_per_device": 2, "log_every": 1, "save_every": 10, "validate_every": 10_000}
    return {
        "architecture": {"layers": 2, "hidden": 32, "heads": 2, "feed_forward": 64, "positions": 64},
        "train": {
            "steps": 10_000,
            "rows_per_step": 32,
            "validation_rows": 8,
            "loss": {"soft": 0.0, "cosine": 0.0},
            "placement": {**placement, "metrics_port": port},
        },
    }


@pytest.mark.rare
def test_prometheus_counts_restarts_of_workers_by_cause(tmp_path: Path) -> None:
    """Train a teacher: the run is in the partial artifact, and the first worker has the endpoint."""
    tokens_artifact.make(tmp_path)
    port, out = free_port(), tmp_path / "service" / "teacher"
    out.parent.mkdir()
    run = Run(commit.staging(out) / RUN)
    with servers.prometheus(tmp_path, {"here": [port]}, generate.FOLDER / "rules") as source:
        call = json.dumps([teacher(port), str(tmp_path / "tokens"), str(out)])
        driver = DriverProcess(["-c", DRIVER, call], tmp_path / "driver.log", tiny_pipeline.environment())
        driver.await_that(lambda: run.newest() is not None and value(source, LOST) == 0)
        found = training_workers(psutil.Process(driver.process.pid).children(recursive=True))
        assert len(found) == 2
        found[0].kill()
        driver.await_that(lambda: value(source, LOST) == 1)
        # The queries of dashboards and alerts, and the steps of the same run by the same label.
        driver.await_that(lambda: value(source, f'run:stillhouse_restarts:sum{{run="{NAME}"}}') == 1)
        driver.await_that(lambda: value(source, f'increase(run:stillhouse_restarts:sum{{run="{NAME}"}}[10m]) > 0') > 0)
        driver.await_that(lambda: value(source, f'stillhouse_step{{run="{NAME}"}}') > 10)
        assert value(source, f'sum(stillhouse_restarts_total{{run="{NAME}", cause!="death"}})') == 0
        driver.process.terminate()
        driver.process.wait(timeout=300)
    assert driver.process.returncode == 130, driver.said()


def value(source: Source, expr: str) -> float:
    """Current value of an expression; -1 if it has none."""
    found = source.get("query", {"query": expr})["result"]
    return float(found[0]["value"][1]) if found else -1.0
