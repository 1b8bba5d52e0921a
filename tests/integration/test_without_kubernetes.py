"""The service without Kubernetes: nodes started by hand, a token, a remote submission, and a node that leaves."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray_clusters
import tiny
import tiny_pipeline
from metrics_endpoint import scraped
from ray_clusters import RAY, Cluster, Node, training_workers
from waiting import wait_until

from cluster.artifacts import artifact
from cluster.jobs.job import GOOD
from cluster.telemetry.metrics_log import read_metrics
from distill.checkpointing.run_folder import Run
from distill.train.run_metrics import CAUSES

pytestmark = pytest.mark.long

STEPS, SAVE_EVERY = 160, 10
ARTIFACTS = {
    "corpus": "corpus",
    "tokens": "tokens",
    "teacher": "teacher",
    "students/student": "student",
    "report": "report",
}


def pipeline(folder: Path, metrics_port: int) -> dict[str, Any]:
    """A pipeline from text to report with an unchanged teacher and one training of many slow steps."""
    placement = {"workers": 1, "rows_per_device": 2, "log_every": 1, "save_every": SAVE_EVERY, "validate_every": STEPS}
    train = {"steps": STEPS, "rows_per_step": 32, "validation_rows": 8}
    return tiny_pipeline.values(folder) | {
        "teacher": {"source": str(tiny.bert_teacher(folder / "bert", layers=4))},
        "tokens": {"seq_len": 32, "heldout": 0.2, "placement": {"actors": 1}},
        "train": {**train, "placement": {**placement, "metrics_port": metrics_port}},
    }


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A head without resources, and two nodes with room for one training worker each."""
    folder, isolated = tmp_path_factory.mktemp("cluster"), ray_clusters.namespaces_work()
    with ray_clusters.running_cluster(folder, nodes=2, isolated=isolated, dashboard=True) as started:
        yield started


class Person:
    """A user outside the cluster, who has the address of its dashboard and some environment variables."""

    def __init__(self, cluster: Cluster, **known: str) -> None:
        self._environment = tiny_pipeline.environment(
            RAY_ADDRESS=cluster.environment["RAY_API_SERVER_ADDRESS"], **known
        )

    @classmethod
    def admitted(cls, cluster: Cluster) -> "Person":
        token = Path(cluster.environment["RAY_AUTH_TOKEN_PATH"]).read_text()
        return cls(cluster, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token)

    def starts(self, *arguments: str, log: Path) -> "subprocess.Popen[bytes]":
        """Start ``ray job …``, which writes to the log."""
        with log.open("wb") as said:
            return subprocess.Popen([RAY, "job", *arguments], env=self._environment, stdout=said, stderr=said)

    def asks(self, *arguments: str) -> tuple[int, str]:
        """Run ``ray job …``; returns its exit status and output."""
        command = [RAY, "job", *arguments]
        done = subprocess.run(command, env=self._environment, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr


class Submission:
    """A command submitted with ``ray job submit``."""

    def __init__(self, person: Person, name: str, command: list[str], log: Path) -> None:
        self._person, self._name, self._log = person, name, log
        self._follows = person.starts("submit", "--submission-id", name, "--", *command, log=log)

    def await_that(self, holds: Callable[[], bool]) -> None:
        wait_until(lambda: holds() or self.is_over())
        assert holds(), self._log.read_text()

    def is_over(self) -> bool:
        # On a busy machine Ray may stop following the log before the end; the exit status is then meaningless.
        return self._follows.poll() is not None and "RUNNING" not in self.status()

    def status(self) -> str:
        return self._person.asks("status", self._name)[1]

    def said(self) -> str:
        return self._person.asks("logs", self._name)[1]


def hosts(cluster: Cluster) -> Node:
    """The node of the training worker."""
    return next(node for node in cluster.nodes[1:] if training_workers(node.processes()))


def restarts(cluster: Cluster, port: int) -> dict[str, str]:
    """Restarts of the student's run by cause, from the worker's endpoint; empty while there is no endpoint."""
    try:
        lines = scraped(port, hosts(cluster).address)
    except (OSError, StopIteration):
        return {}
    shown = {cause: f'stillhouse_restarts_total{{cause="{cause}",run="out/student"}}' for cause in CAUSES}
    return {cause: lines[name] for cause, name in shown.items() if name in lines}


@pytest.mark.parametrize(
    ("known", "refusal"),
    [
        ({}, "Authentication required"),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "f" * 64}, "Authentication failed"),
    ],
    ids=["no-token", "another-token"],
)
def test_without_the_token_nothing_is_submitted(
    cluster: Cluster, tmp_path: Path, known: dict[str, str], refusal: str
) -> None:
    code, said = Person(cluster, **known).asks("submit", "--", "touch", str(tmp_path / "done"))
    assert code != 0
    assert refusal in said, said
    code, listed = Person.admitted(cluster).asks("list")
    assert code == 0, listed
    assert str(tmp_path) not in listed
    assert not (tmp_path / "done").exists()


@pytest.mark.rare
def test_a_submitted_run_outlives_its_node(cluster: Cluster, tmp_path: Path) -> None:
    (port,) = ray_clusters.free_ports(1)
    recipe, out = tiny_pipeline.write(tmp_path / "pipeline.toml", pipeline(tmp_path, port)), tmp_path / "out"
    launch = [sys.executable, "-m", "distill.launch", str(recipe), "--out", str(out)]
    submission = Submission(Person.admitted(cluster), "tried", launch, tmp_path / "submission.log")
    run = Run(out / "runs" / "student")
    submission.await_that(lambda: run.newest() is not None)
    assert restarts(cluster, port) == {"death": "0.0", "drain": "0.0", "growth": "0.0"}
    leaving, before = hosts(cluster), read_metrics(run.metrics)
    leaving.drain()
    submission.await_that(lambda: restarts(cluster, port).get("drain") == "1.0")
    assert hosts(cluster) is not leaving
    submission.await_that(submission.is_over)
    assert "succeeded" in submission.status(), submission.said()
    assert "a node is about to leave; stopped at step" in submission.said()
    after = read_metrics(run.metrics)
    # No step takes equally long twice: these steps were not repeated.
    assert after[: len(before)] == before
    assert [line["step"] for line in after if line["kind"] == "train"] == [*range(1, STEPS + 1)]
    for place, kind in ARTIFACTS.items():
        artifact.verify(out / place, kind)
    assert {job["state"] for job in json.loads((out / "jobs.json").read_text())} <= set(GOOD)
