"""Metrics of the queue: waiting jobs, wait times, retries, and results of jobs."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY
from toy_stage_jobs import make_corpus, toy_job

from cluster.artifacts import artifact, commit
from cluster.jobs.job import make_requests
from cluster.jobs.metrics import QueueMetrics, export_artifact
from cluster.jobs.queue_state import Event, QueueState
from cluster.storage.filesystem import read_json
from cluster.telemetry import metrics

HOUR = 3600.0


def value(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(name, labels)


class Told:
    """The state of a queue and its metrics, fed with the same events."""

    def __init__(self) -> None:
        self.state = QueueState()
        self.metrics = QueueMetrics(self.state)

    def __call__(self, event: str, at: float, **values: Any) -> None:
        told: Event = {"event": event, "at": at, **values}
        self.state.apply(told)
        self.metrics.record(self.state.entries.get(values.get("id", "")), told)


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def ids(told: Told, tmp_path: Path) -> list[str]:
    """Three jobs of one kind, submitted two hours, one hour and a minute ago."""
    corpus, now = make_corpus(tmp_path), time.time()
    requests = make_requests(
        [toy_job(corpus, name, kind=f"kind {tmp_path.name}") for name in ("first", "second", "third")]
    )
    for request, ago in zip(requests, (2 * HOUR, HOUR, 60.0), strict=True):
        told("submitted", now - ago, requests=[request.resolved()])
    return [request.id for request in requests]


def start(told: Told, job: str, at: float) -> None:
    told("started", at, id=job, worker="w", node="n", takes={})


def test_metrics_show_the_state_of_the_queue(told: Told, ids: list[str]) -> None:
    kind = told.state.entries[ids[0]].request.job.kind
    told.metrics.update(told.state)
    assert value("stillhouse_jobs_waiting", kind=kind) == 3
    assert value("stillhouse_oldest_job_age_seconds", kind=kind) == pytest.approx(2 * HOUR, abs=5)
    start(told, ids[0], time.time())
    told.metrics.update(told.state)
    assert value("stillhouse_jobs_waiting", kind=kind) == 2
    assert value("stillhouse_jobs_running", kind=kind) == 1
    assert value("stillhouse_oldest_job_age_seconds", kind=kind) == pytest.approx(HOUR, abs=5)
    assert value("stillhouse_queue_draining") == 0
    assert value("stillhouse_queue_turn_timestamp_seconds") == pytest.approx(time.time(), abs=5)
    told("drained", time.time(), on=True)
    told.metrics.update(told.state)
    assert value("stillhouse_queue_draining") == 1


def test_counters_exist_before_their_first_event(told: Told, ids: list[str]) -> None:
    """Prometheus sees no increase if a counter appears with its first event."""
    kind = told.state.entries[ids[0]].request.job.kind
    told.metrics.update(told.state)
    assert value("stillhouse_jobs_ended_total", kind=kind, state="failed") == 0
    assert value("stillhouse_job_retries_total", kind=kind, cause="node") == 0
    assert value("stillhouse_jobs_ended_total", kind=kind, state="running") is None


def test_waits_retries_and_endings_are_counted(told: Told, ids: list[str]) -> None:
    entry = told.state.entries[ids[0]]
    kind = entry.request.job.kind
    start(told, ids[0], entry.submitted + 30)
    told("stopped", entry.submitted + 40, id=ids[0], cause="node", why="lost", until=0.0)
    start(told, ids[0], entry.submitted + 7200)
    told("ended", entry.submitted + 7300, id=ids[0], state="failed", error="", failure="user", seconds=100.0)
    assert value("stillhouse_job_attempts_total", kind=kind) == 2
    assert value("stillhouse_job_retries_total", kind=kind, cause="node") == 1
    assert value("stillhouse_jobs_ended_total", kind=kind, state="failed") == 1
    assert value("stillhouse_job_wait_seconds_count", kind=kind) == 1, "only the first attempt ends a wait"
    assert value("stillhouse_job_wait_seconds_sum", kind=kind) == pytest.approx(30)
    assert value("stillhouse_job_seconds_sum", kind=kind) == 100


def test_kinds_above_the_limit_share_a_label(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_values", {})
    monkeypatch.setattr(metrics, "MOST_VALUES", 2)
    corpus, told = make_corpus(tmp_path), Told()
    jobs = make_requests([toy_job(corpus, f"job {number}", kind=f"invented {number}") for number in range(5)])
    told("submitted", time.time(), requests=[request.resolved() for request in jobs])
    told.metrics.update(told.state)
    shown = {labels["kind"] for labels in _labels("stillhouse_jobs_waiting") if "invented" in labels["kind"]}
    assert len(shown) == 2
    assert value("stillhouse_jobs_waiting", kind="other") == 3


def _labels(name: str) -> list[dict[str, str]]:
    return [sample.labels for family in REGISTRY.collect() for sample in family.samples if sample.name == name]


def finetuned(place: Path, score: float) -> None:
    with artifact.create(place, kind="finetune", inputs={}, recipe={}) as draft:
        (draft.path / "model.safetensors").write_bytes(bytes(1000))
        draft.facts.update(task="rte", score=score)


def test_a_restarted_queue_shows_earlier_results(tmp_path: Path) -> None:
    corpus, told = make_corpus(tmp_path), Told()
    place = tmp_path / "finetune" / "planted" / "rte"
    (request,) = make_requests([replace(toy_job(corpus, "finetune"), out=place)])
    finetuned(place, 61.5)
    told("submitted", time.time(), requests=[request.resolved()])
    start(told, request.id, time.time())
    told("ended", time.time(), id=request.id, state="done", error=None, failure=None, seconds=1.0)
    assert value("stillhouse_score_ratio", model="planted", task="rte") == pytest.approx(0.615)
    assert value("stillhouse_model_bytes", model="planted", weights="safetensors") == 1000
    metrics.SCORE.clear()
    QueueMetrics(told.state)
    assert value("stillhouse_score_ratio", model="planted", task="rte") == pytest.approx(0.615)


def test_a_deleted_result_is_ignored(told: Told, ids: list[str]) -> None:
    start(told, ids[0], time.time())
    told("ended", time.time(), id=ids[0], state="done", error=None, failure=None, seconds=1.0)
    QueueMetrics(told.state)


@pytest.mark.parametrize(
    "facts", [None, {"task": "rte", "score": None}, {"task": ["rte"], "score": 1.0}, {"task": "rte", "score": "high"}]
)
def test_a_damaged_result_is_ignored(tmp_path: Path, facts: Any) -> None:
    """A starting queue reads hundreds of results."""
    corpus, told = make_corpus(tmp_path), Told()
    place = tmp_path / "finetune" / "damaged" / "rte"
    (request,) = make_requests([replace(toy_job(corpus, "damaged"), out=place)])
    finetuned(place, 61.5)
    manifest = read_json(place / commit.MANIFEST) | {"facts": facts}
    (place / commit.MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    told("submitted", time.time(), requests=[request.resolved()])
    start(told, request.id, time.time())
    told("ended", time.time(), id=request.id, state="done", error=None, failure=None, seconds=1.0)
    QueueMetrics(told.state)
    assert value("stillhouse_score_ratio", model="damaged", task="rte") is None


def test_lengths_of_texts_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_values", {})
    monkeypatch.setattr(metrics, "MOST_VALUES", 2)
    row = {"model": "long", "runtime": "PyTorch", "threads": 1, "workload": "lengths"}
    times = {"p50_ms": 1.0, "p90_ms": 1.0, "p99_ms": 1.0}
    rows = [{**row, **times, "length": length} for length in range(8, 16)]
    export_artifact(tmp_path, {"kind": "benchmark", "facts": {"rows": rows}, "files": {}})
    assert {labels["tokens"] for labels in _labels("stillhouse_latency_seconds") if labels["model"] == "long"} == {
        "8",
        "9",
        "other",
    }


def test_times_and_sizes_come_from_the_artifacts(tmp_path: Path) -> None:
    row = {"model": "timed", "runtime": "ONNX Runtime", "threads": 1, "p50_ms": 10.0, "p90_ms": 11.0, "p99_ms": 12.5}
    rows = [
        row | {"length": 30, "workload": "lengths"},
        row | {"length": None, "workload": "pairs", "p99_ms": 14.0},
        row | {"length": 30, "workload": "lengths", "threads": 2, "p99_ms": 7.0},
    ]
    for name, proxy in (("latency", False), ("stand-in", True)):
        with artifact.create(tmp_path / name, kind="benchmark", inputs={}, recipe={}) as draft:
            draft.facts.update(rows=[each | {"p99_ms": 1.0} for each in rows] if proxy else rows, proxy=proxy)
    place = tmp_path / "exports" / "timed" / "int8"
    with artifact.create(place, kind="export", inputs={}, recipe={}) as draft:
        draft.facts.update(format="int8", bytes=67_000_000)
    for found in (tmp_path / "latency", tmp_path / "stand-in", place):
        export_artifact(found, read_json(found / commit.MANIFEST))
    for tokens, seconds in (("30", 0.0125), ("pairs", 0.014)):
        labels = {"model": "timed", "runtime": "ONNX Runtime", "tokens": tokens}
        assert value("stillhouse_latency_seconds", percentile="99", **labels) == pytest.approx(seconds)
    assert value("stillhouse_model_bytes", model="timed", weights="int8") == 67_000_000
