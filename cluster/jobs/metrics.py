"""What Prometheus sees of the queue: its line, how jobs fare, and the numbers they brought."""

import contextlib
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any, get_args

from cluster.artifacts import commit
from cluster.jobs.failures import Cause
from cluster.jobs.job import GOOD, State
from cluster.jobs.queue_state import Entry, Event, QueueState
from cluster.storage import filesystem
from cluster.telemetry import metrics

_MOST_RESULTS = 500
"""Artifacts that a queue which starts looks at: the newest ones."""
_PERCENTILES = (50, 90, 99)


class Series:
    """Keeps the series of the queue, from the events of its book."""

    def __init__(self, book: QueueState) -> None:
        self._kinds: set[str] = set()
        self._declare(book)
        done = sorted((entry for entry in book.entries.values() if entry.state in GOOD), key=lambda e: e.ended or 0.0)
        for entry in done[-_MOST_RESULTS:]:
            _show_results(entry)

    def count(self, entry: Entry | None, event: Event) -> None:
        """Count what has just happened, to the job ``entry`` where it happened to one."""
        if entry is None:
            return
        kind = _kind(entry)
        match event["event"]:
            case "started":
                metrics.JOB_ATTEMPTS.labels(kind).inc()
                if entry.attempts == 1:
                    metrics.JOB_WAIT.labels(kind).observe(max(0.0, event["at"] - entry.at))
            case "stopped":
                metrics.JOB_RETRIES.labels(kind, event["cause"]).inc()
            case "ended":
                metrics.JOBS_ENDED.labels(kind, entry.state).inc()
                metrics.JOB_SECONDS.labels(kind).observe(entry.seconds)
                if entry.state in GOOD:
                    _show_results(entry)

    def show(self, book: QueueState) -> None:
        """Show the line as it is now."""
        self._declare(book)
        now = time.time()
        states = Counter((_kind(entry), entry.state) for entry in book.open.values())
        since: dict[str, float] = {}
        for entry in book.open.values():
            if entry.state == "waiting":
                since[_kind(entry)] = min(entry.at, since.get(_kind(entry), now))
        for kind in self._kinds:
            metrics.JOBS_WAITING.labels(kind).set(states[kind, "waiting"])
            metrics.JOBS_RUNNING.labels(kind).set(states[kind, "running"])
            metrics.OLDEST_JOB.labels(kind).set(now - since.get(kind, now))
        metrics.QUEUE_DRAINING.set(book.draining)
        metrics.QUEUE_TIME.set(now)

    def _declare(self, book: QueueState) -> None:
        """A counter that is born with its first event looks to Prometheus as if nothing had happened."""
        for kind in {metrics.bounded("kind", kind) for kind in sorted(book.kinds)} - self._kinds:
            self._kinds.add(kind)
            metrics.JOB_ATTEMPTS.labels(kind)
            for state in {*get_args(State)} - {"waiting", "running"}:
                metrics.JOBS_ENDED.labels(kind, state)
            for cause in get_args(Cause):
                metrics.JOB_RETRIES.labels(kind, cause)


def _kind(entry: Entry) -> str:
    return metrics.bounded("kind", entry.request.job.kind)


def _show_results(entry: Entry) -> None:
    """Show what the artifact of a job that is done says; one that is gone again, or damaged, says nothing."""
    place = entry.request.job.out
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        show_artifact(place, filesystem.read_json(place / commit.MANIFEST))


def show_artifact(place: PurePath, manifest: Any) -> None:
    """Show scores, times and sizes of an artifact: ``…/finetune/<model>/<task>``, ``…/exports/<model>/<format>``."""
    facts, files = manifest["facts"], manifest["files"]
    match manifest["kind"]:
        case "finetune":
            model = metrics.bounded("model", place.parent.name)
            score = facts["score"] / 100  # first, so that one that is damaged leaves no 0 behind
            metrics.SCORE.labels(model, metrics.bounded("task", facts["task"])).set(score)
            _show_bytes(model, "safetensors", (files[name]["bytes"] for name in files if name.endswith(".safetensors")))
        case "export":
            model = metrics.bounded("model", place.parent.name)
            _show_bytes(model, metrics.bounded("weights", facts["format"]), (facts["bytes"],))
        case "benchmark" if not facts.get("proxy"):
            _show_times(facts["rows"])


def _show_times(rows: Sequence[Mapping[str, Any]]) -> None:
    """Those on the fewest threads: the series has no label that would keep others apart."""
    fewest = min((row["threads"] for row in rows), default=0)
    for row in (row for row in rows if row["threads"] == fewest):
        names = [metrics.bounded(label, row[label]) for label in ("model", "runtime")]
        # Texts of many lengths are told by what they are.
        tokens = metrics.bounded("tokens", str(row["workload"] if row["length"] is None else row["length"]))
        for percentile in _PERCENTILES:
            seconds = row[f"p{percentile}_ms"] / 1e3
            metrics.LATENCY.labels(*names, tokens, str(percentile)).set(seconds)


def _show_bytes(model: str, weights: str, sizes: Iterable[int]) -> None:
    if total := sum(sizes):
        metrics.MODEL_BYTES.labels(model, weights).set(total)
