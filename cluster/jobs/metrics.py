"""Prometheus metrics of the queue: waiting and running jobs, their outcomes, and the results in their artifacts."""

import contextlib
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any, get_args

from cluster.artifacts import commit
from cluster.jobs.failures import Cause
from cluster.jobs.job import GOOD, OPEN, State
from cluster.jobs.queue_state import Entry, Event, QueueState
from cluster.storage import filesystem
from cluster.telemetry import metrics

_MOST_RESULTS = 500
"""Newest artifacts whose results a queue exports again when it starts."""


class QueueMetrics:
    """Updates the metrics from the events of the queue."""

    def __init__(self, state: QueueState) -> None:
        self._kinds: set[str] = set()
        self._declare(state)
        done = sorted((entry for entry in state.entries.values() if entry.state in GOOD), key=lambda e: e.ended or 0.0)
        for entry in done[-_MOST_RESULTS:]:
            _export_results(entry)

    def record(self, entry: Entry | None, event: Event) -> None:
        """Count an event; ``entry`` is the job it happened to, if any."""
        if entry is None:
            return
        kind = _kind(entry)
        match event["event"]:
            case "started":
                metrics.JOB_ATTEMPTS.labels(kind).inc()
                if entry.attempts == 1:
                    metrics.JOB_WAIT.labels(kind).observe(max(0.0, event["at"] - entry.submitted))
            case "stopped":
                metrics.JOB_RETRIES.labels(kind, event["cause"]).inc()
            case "ended":
                metrics.JOBS_ENDED.labels(kind, entry.state).inc()
                metrics.JOB_SECONDS.labels(kind).observe(entry.seconds)
                if entry.state in GOOD:
                    _export_results(entry)

    def update(self, state: QueueState) -> None:
        """Set the gauges to the present state."""
        self._declare(state)
        now = time.time()
        states = Counter((_kind(entry), entry.state) for entry in state.open.values())
        oldest: dict[str, float] = {}
        for entry in state.open.values():
            if entry.state == "waiting":
                oldest[_kind(entry)] = min(entry.submitted, oldest.get(_kind(entry), now))
        for kind in self._kinds:
            metrics.JOBS_WAITING.labels(kind).set(states[kind, "waiting"])
            metrics.JOBS_RUNNING.labels(kind).set(states[kind, "running"])
            metrics.OLDEST_JOB.labels(kind).set(now - oldest.get(kind, now))
        metrics.QUEUE_DRAINING.set(state.draining)
        metrics.QUEUE_TIME.set(now)

    def _declare(self, state: QueueState) -> None:
        """Create the counters of new kinds at 0: Prometheus sees no increase in one that starts at 1."""
        for kind in {metrics.bounded("kind", kind) for kind in sorted(state.kinds)} - self._kinds:
            self._kinds.add(kind)
            metrics.JOB_ATTEMPTS.labels(kind)
            for ending in {*get_args(State)} - {*OPEN}:
                metrics.JOBS_ENDED.labels(kind, ending)
            for cause in get_args(Cause):
                metrics.JOB_RETRIES.labels(kind, cause)


def _kind(entry: Entry) -> str:
    return metrics.bounded("kind", entry.request.job.kind)


def _export_results(entry: Entry) -> None:
    """Export the results of a finished job; skip an artifact that is gone or damaged."""
    place = entry.request.job.out
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        export_artifact(place, filesystem.read_json(place / commit.MANIFEST))


def export_artifact(place: PurePath, manifest: Any) -> None:
    """Export the results in ``…/finetune/<model>/<task>``, ``…/exports/<model>/<format>`` and benchmarks."""
    facts, files = manifest["facts"], manifest["files"]
    match manifest["kind"]:
        case "finetune":
            model = metrics.bounded("model", place.parent.name)
            score = facts["score"] / 100  # before labels(), so that a damaged score leaves no 0 in the metric
            metrics.SCORE.labels(model, metrics.bounded("task", facts["task"])).set(score)
            _export_bytes(
                model, "safetensors", (files[name]["bytes"] for name in files if name.endswith(".safetensors"))
            )
        case "export":
            model = metrics.bounded("model", place.parent.name)
            _export_bytes(model, metrics.bounded("weights", facts["format"]), (facts["bytes"],))
        case "benchmark" if not facts.get("proxy"):
            _export_times(facts["rows"])


def _export_times(rows: Sequence[Mapping[str, Any]]) -> None:
    """Only the rows with the fewest threads: the metric has no label for threads."""
    fewest = min((row["threads"] for row in rows), default=0)
    for row in (row for row in rows if row["threads"] == fewest):
        names = [metrics.bounded(label, row[label]) for label in ("model", "runtime")]
        # Workloads with texts of several lengths have no length; their name stands in.
        tokens = metrics.bounded("tokens", str(row["workload"] if row["length"] is None else row["length"]))
        for percentile in metrics.PERCENTILES:
            seconds = row[f"p{percentile}_ms"] / 1e3
            metrics.LATENCY.labels(*names, tokens, str(percentile)).set(seconds)


def _export_bytes(model: str, weights: str, sizes: Iterable[int]) -> None:
    if total := sum(sizes):
        metrics.MODEL_BYTES.labels(model, weights).set(total)
