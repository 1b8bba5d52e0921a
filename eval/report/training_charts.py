"""Charts of training: a loss curve per metric, and the scores of checkpoints per task."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from matplotlib.axes import Axes

from eval.report.svg import COLOURS, INK, STYLES, Plot, canvas, legend

POINTS = 240
LONG = 40
FEW = 3

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
        curves = {run["name"]: _curve(run[panel.kind], panel) for run in runs}
        if any(curves.values()):
            # A long legend hides the curves, so only the first chart has it.
            names = len(runs) <= FEW or not plots
            plots.append(_losses(panel, curves, _level(runs, panel), names))
    tasks = sorted({probe["task"] for run in runs for probe in run["probes"]})
    return [*plots, *(_probes(task, runs, scores.get(task, {})) for task in tasks)]


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


def _losses(panel: Panel, curves: Mapping[str, Curve], level: float | None, names: bool) -> Plot:
    """A metric of all runs; ``names`` adds the legend."""
    with canvas(panel.title, across="step") as made:
        for number, (name, points) in enumerate(curves.items()):
            colour, style = COLOURS[number % len(COLOURS)], STYLES[number % len(STYLES)]
            steps, values = zip(*points, strict=True) if points else ((), ())
            marker = "o" if 0 < len(points) < 3 else ""
            made.axes.plot(steps, values, color=colour, linestyle=style, linewidth=1.6, marker=marker, label=name)
        if level is not None:
            made.axes.axhline(level, color=INK, linewidth=1, linestyle=(0, (2, 2)))
            made.axes.annotate(
                "teacher", (1, level), (0, 2), xycoords=("axes fraction", "data"), textcoords="offset points",
                ha="right", color=INK, fontsize=8,
            )  # fmt: skip
        if names:
            legend(made.axes)
        if not panel.percent:
            _cut_off_start(made.axes, [points for points in curves.values() if points])
        return Plot(f"{panel.kind}-{panel.key}", panel.title, "curves", made.svg())


def _cut_off_start(axes: Axes, curves: Sequence[Curve]) -> None:
    """Limit the axis of a long loss curve to most of its points: its high start makes the rest look flat."""
    if min(len(points) for points in curves) < LONG:
        return
    top = max(sorted(value for _, value in points)[int(0.97 * len(points))] for points in curves)
    bottom, highest = axes.get_ylim()
    axes.set_ylim(bottom, min(highest, top + 0.05 * (top - bottom)))


def _probes(task: str, runs: Runs, scores: Mapping[str, float]) -> Plot:
    """A task's score, with its range over the seeds, at every probed checkpoint."""
    known = [probe for run in runs for probe in run["probes"] if probe["task"] == task]
    title = f"Probe: {task}, {known[0]['metric']}, %"
    with canvas(title, across="step") as made:
        for number, run in enumerate(runs):
            points = [probe for probe in run["probes"] if probe["task"] == task]
            if not points:
                continue
            colour = COLOURS[number % len(COLOURS)]
            steps = [probe["step"] for probe in points]
            made.axes.plot(
                steps, [probe["score"] for probe in points], "o-", color=colour, markersize=4, label=run["name"]
            )
            low, high = ([probe[side] for probe in points] for side in ("low", "high"))
            made.axes.fill_between(steps, low, high, color=colour, alpha=0.16, linewidth=0)
        for (name, score), style in zip(sorted(scores.items(), reverse=True), STYLES[1:], strict=False):
            made.axes.axhline(score, color=INK, linewidth=1, linestyle=style, label=name)
        legend(made.axes)
        return Plot(f"probe-{task}", title, "probes", made.svg())
