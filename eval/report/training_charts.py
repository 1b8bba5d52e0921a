"""Charts of training: a loss curve per metric, and the scores of checkpoints per task."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from eval.report.svg import COLOURS, DASHES, Line, Plot, curves

POINTS = 240
LONG = 40
_OWN = (COLOURS[0], *COLOURS[2:])
"""Colours of runs; the second one is the teacher's."""

Curve: TypeAlias = list[tuple[float, float]]
Runs: TypeAlias = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Panel:
    """A metric of ``metrics.jsonl``, drawn for all runs; ``teacher`` is the key of the teacher's value."""

    kind: str
    key: str
    title: str
    percent: bool = False
    teacher: str = ""


PANELS = (
    Panel("train", "soft", "Training: soft-target loss, nats"),
    Panel("train", "masked", "Training: masked-word loss, nats"),
    Panel("train", "cosine", "Training: cosine loss"),
    Panel("validation", "masked", "Held-out: masked-word loss, nats", teacher="teacher_masked"),
    Panel("validation", "accuracy", "Held-out: accuracy on hidden words, %", percent=True, teacher="teacher_accuracy"),
    Panel("validation", "agreement", "Held-out: agreement with the teacher, %", percent=True),
)


def draw(runs: Runs, scores: Mapping[str, Mapping[str, float]]) -> list[Plot]:
    """A chart for every logged metric, and for every task that checkpoints were probed on.

    ``scores`` are those of the finished models by task, drawn as lines.
    """
    plots: list[Plot] = []
    for panel in PANELS:
        found = {run["name"]: _curve(run[panel.kind], panel) for run in runs if not _is_absent(run, panel)}
        if any(found.values()):
            plots.append(_losses(panel, found, _level(runs, panel)))
    tasks = sorted({probe["task"] for run in runs for probe in run["probes"]})
    return [*plots, *(_probes(task, runs, scores.get(task, {})) for task in tasks)]


def _is_absent(run: Mapping[str, Any], panel: Panel) -> bool:
    """Whether a run has no such loss: its weight is 0, so that the log holds zeros, or measurements of no use."""
    if panel.kind == "train":
        return bool(run["recipe"].get("loss", {}).get(panel.key, 1.0) == 0.0)
    return panel.key == "agreement" and not any(line.get(panel.key) for line in run["validation"])


def _curve(lines: Sequence[Mapping[str, Any]], panel: Panel) -> Curve:
    """A run's points; for a long run, means over equal numbers of steps."""
    scale = 100.0 if panel.percent else 1.0
    points = [(line["step"], line[panel.key] * scale) for line in lines if line.get(panel.key) is not None]
    width = -(-len(points) // POINTS) or 1
    parts = [points[start : start + width] for start in range(0, len(points), width)]
    return [(statistics.fmean(x for x, _ in part), statistics.fmean(y for _, y in part)) for part in parts]


def _level(runs: Runs, panel: Panel) -> float | None:
    """The teacher's value on the held-out rows."""
    key = panel.teacher
    found = [line[key] for run in runs for line in run["validation"] if line.get(key) is not None]
    return found[-1] * (100.0 if panel.percent else 1.0) if found else None


def _losses(panel: Panel, runs: Mapping[str, Curve], level: float | None) -> Plot:
    """A metric of all runs, and the teacher's."""
    lines = [
        Line(name, points, _OWN[number % len(_OWN)], DASHES[number % len(DASHES)])
        for number, (name, points) in enumerate(runs.items())
        if points
    ]
    values = [y for line in lines for _, y in line.points]
    if level is not None:
        lines.append(Line("teacher", (), COLOURS[1], DASHES[2], level=level))
        values.append(level)
    if panel.percent:
        # A share is read against the whole.
        low, high = 0.0, min(100.0, 1.2 * max(values)) or 1.0
    else:
        low, high = _limits(values, [line.points for line in lines if line.points])
    return Plot(f"{panel.kind}-{panel.key}", panel.title, "curves", curves(panel.title, lines, low, high))


def _limits(values: Sequence[float], drawn: Sequence[Sequence[tuple[float, float]]]) -> tuple[float, float]:
    """Limits of a loss; those of long curves leave out the high start, which makes the rest look flat."""
    low, high = min(values), max(values)
    if min(len(points) for points in drawn) >= LONG:
        high = max(sorted(value for _, value in points)[int(0.97 * len(points))] for points in drawn)
    pad = 0.06 * (high - low) or 0.5
    return low - pad, high + pad


def _probes(task: str, runs: Runs, scores: Mapping[str, float]) -> Plot:
    """A task's score, with its range over the seeds, at every probed checkpoint."""
    known = [probe for run in runs for probe in run["probes"] if probe["task"] == task]
    title = f"Probe: {task}, {known[0]['metric']}, %"
    lines = []
    for number, run in enumerate(runs):
        points = [probe for probe in run["probes"] if probe["task"] == task]
        if points:
            line = [(probe["step"], probe["score"]) for probe in points]
            band = [(probe["low"], probe["high"]) for probe in points]
            lines.append(Line(run["name"], line, _OWN[number % len(_OWN)], band=band))
    for name, score in sorted(scores.items(), reverse=True):
        lines.append(Line(name, (), COLOURS[1], DASHES[2], level=score))
    high = max([probe["high"] for probe in known] + [*scores.values()])
    low = min([probe["low"] for probe in known] + [0.0])
    return Plot(f"probe-{task}", title, "probes", curves(title, lines, low, min(100.0, 1.15 * high) or 1.0))
