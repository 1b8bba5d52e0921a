"""The ledger of a job queue, and the scores of a run's checkpoints."""

import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from cluster.artifacts.artifact import Artifact
from cluster.inspect.findings import Block, Curves, Findings, Pairs, Section, Table
from cluster.jobs import ledger
from cluster.telemetry.formatting import NOTHING, duration, plural

_ENDED = ("failed", "cancelled")


def is_queue(folder: Path) -> bool:
    return any(folder.glob("segment-*.jsonl"))


def inspect(folder: Path) -> Findings:
    """Jobs of a queue by state; failed ones first, with their errors.

    Raises:
        StageError: the ledger is damaged.
    """
    # Only this view needs it, and with it comes Ray.
    from cluster.jobs.queue_state import Entry, QueueState

    def order(entry: Entry) -> tuple[bool, bool, float]:
        return entry.state not in _ENDED, entry.state not in ("running", "waiting"), entry.submitted

    jobs = sorted(QueueState(ledger.read(folder)).entries.values(), key=order)
    states = Counter(entry.state for entry in jobs)
    rows = [
        (
            entry.request.job.name, entry.request.job.stage, entry.state, str(entry.attempts), _taken(entry),
        )
        for entry in jobs
    ]  # fmt: skip
    failed = [(entry.request.job.name, entry.error or "no error recorded") for entry in jobs if entry.state in _ENDED]
    blocks: list[Block] = [Table(("job", "stage", "state", "attempts", "time"), rows, texts=3)] if rows else []
    sections = [Section("JOBS", blocks, "" if rows else "No job was submitted.")]
    if failed:
        sections.insert(0, Section("FAILED", [Pairs(failed)]))
    logs = [("logs", str(folder / "logs")), ("last event", _last(folder))]
    sections.append(Section("LEDGER", [Pairs(logs)]))
    told = ", ".join(f"{number} {state}" for state, number in states.items())
    remarks = [f"{plural(len(failed), 'job')} failed or was cancelled"] if failed else []
    headline = f"{plural(len(jobs), 'job')}: {told}" if jobs else "no jobs"
    return Findings("queue", str(folder), headline, remarks, sections)


def _taken(entry: Any) -> str:
    return duration(entry.seconds) if entry.ended else NOTHING


def _last(folder: Path) -> str:
    newest = max(path.stat().st_mtime for path in folder.glob("segment-*.jsonl"))
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(newest))


def probes(found: Artifact, num_samples: int) -> Findings:
    """Scores of a run's checkpoints, by task."""
    points = found.facts["points"]
    rows = [
        (
            point["task"], point["metric"], f"{point['step']:,}", f"{point['score']:.1f}",
            f"{point['low']:.1f}–{point['high']:.1f}", str(point["seeds"]),
        )
        for point in points
    ]  # fmt: skip
    blocks: list[Block] = [Table(("task", "metric", "step", "score", "range", "seeds"), rows, texts=2)] if rows else []
    for task in dict.fromkeys(point["task"] for point in points):
        line = np.array(
            [(point["step"], point["score"]) for point in points if point["task"] == task], dtype=np.float64
        )
        if len(line) > 1:
            blocks.append(Curves(f"Score of the checkpoints: {task}", "step", {task: (line[:, 0], line[:, 1])}))
    return Findings(sections=[Section("SCORES", blocks, "" if rows else "No checkpoint was scored.")])
