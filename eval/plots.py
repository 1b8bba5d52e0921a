"""Loss curves as SVG, one small picture a quantity, drawn so that they can be read at any width.

Text and axes are drawn in one ink and the ground in white; a page that has a dark side replaces the two
(:meth:`Plot.inline`).
"""

import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, GROUND = "#27303c", "#fefefe"
COLOURS = ("#2f7de1", "#e0710c", "#1a9c5b", "#a45ee5", "#d6478a", "#0f93a3", "#a37a12", "#7b8794")
STYLES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.3)), (0, (6, 2, 1, 2)))
POINTS = 240
LONG = 40

Curve: TypeAlias = list[tuple[float, float]]


@dataclass(frozen=True)
class Panel:
    """One quantity of ``metrics.jsonl``, drawn for all runs; ``teacher`` is where the teacher's own value is logged."""

    kind: str
    key: str
    title: str
    percent: bool = False
    teacher: str = ""


PANELS = (
    Panel("train", "soft", "Training: soft-target loss, nats"),
    Panel("train", "masked", "Training: masked-word loss, nats"),
    Panel("train", "cosine", "Training: cosine loss"),
    Panel("validation", "masked", "Held-out: masked-LM loss, nats", teacher="teacher_masked"),
    Panel("validation", "accuracy", "Held-out: masked-word accuracy, %", percent=True, teacher="teacher_accuracy"),
    Panel("validation", "agreement", "Held-out: agreement with the teacher, %", percent=True),
)


@dataclass(frozen=True)
class Plot:
    """One picture; ``name`` is its file's stem."""

    name: str
    title: str
    svg: str

    def inline(self) -> str:
        """The picture as an element of a page: its ink is the page's text colour, its ground the page's."""
        drawing = self.svg[self.svg.index("<svg ") :].replace(INK, "currentColor").replace(GROUND, "none")
        return drawing.replace("<svg ", f'<svg role="img" aria-label="{self.title}" ', 1)


def draw(runs: Sequence[Mapping[str, Any]]) -> list[Plot]:
    """A picture for every quantity that any run logged."""
    plots = []
    for panel in PANELS:
        curves = {run["name"]: _curve(run[panel.kind], panel) for run in runs}
        if any(curves.values()):
            svg = _svg(panel, curves, _level(runs, panel))
            plots.append(Plot(f"{panel.kind}-{panel.key}", panel.title, svg))
    return plots


def _curve(lines: Sequence[Mapping[str, Any]], panel: Panel) -> Curve:
    """A run's points; a long run is drawn as means over equal stretches of steps, which also calms it."""
    scale = 100.0 if panel.percent else 1.0
    points = [(line["step"], line[panel.key] * scale) for line in lines if line.get(panel.key) is not None]
    width = -(-len(points) // POINTS) or 1
    stretches = [points[start : start + width] for start in range(0, len(points), width)]
    return [(statistics.fmean(x for x, _ in part), statistics.fmean(y for _, y in part)) for part in stretches]


def _level(runs: Sequence[Mapping[str, Any]], panel: Panel) -> float | None:
    """The teacher's own value on the held-out rows."""
    key = panel.teacher
    found = [line[key] for run in runs for line in run["validation"] if line.get(key) is not None]
    return found[-1] * (100.0 if panel.percent else 1.0) if found else None


def _svg(panel: Panel, curves: Mapping[str, Curve], level: float | None) -> str:
    settings: dict[Any, Any] = {
        # Ids hashed with the title: several pictures in one page must not share a clip path.
        "svg.hashsalt": panel.title,
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "font.size": 9,
    }
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(4.2, 2.7), layout="constrained", facecolor=GROUND)
        axes = figure.add_subplot(facecolor=GROUND)
        for number, (name, points) in enumerate(curves.items()):
            if points:
                _line(axes, number, name, points)
        if level is not None:
            axes.axhline(level, color=INK, linewidth=1, linestyle=(0, (2, 2)), label="teacher")
        _dress(axes, panel.title)
        if not panel.percent:
            _spare_the_start(axes, [points for points in curves.values() if points])
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return buffer.getvalue()


def _line(axes: Axes, number: int, name: str, points: Curve) -> None:
    steps, values = zip(*points, strict=True)
    colour, style = COLOURS[number % len(COLOURS)], STYLES[number % len(STYLES)]
    marker = "o" if len(points) < 3 else ""
    axes.plot(steps, values, color=colour, linestyle=style, linewidth=1.6, marker=marker, label=name)


def _dress(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", color=INK, fontsize=10, fontweight="bold")
    axes.set_xlabel("step", color=INK)
    axes.tick_params(colors=INK, labelcolor=INK, length=3)
    axes.grid(color=INK, alpha=0.13, linewidth=0.6)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(INK)
        spine.set_alpha(0.5)
    axes.legend(frameon=False, labelcolor=INK, fontsize=8)


def _spare_the_start(axes: Axes, curves: Sequence[Curve]) -> None:
    """End the axis where most of a long loss curve lies: it starts so high that the rest would look flat."""
    if min(len(points) for points in curves) < LONG:
        return
    top = max(sorted(value for _, value in points)[int(0.97 * len(points))] for points in curves)
    bottom, highest = axes.get_ylim()
    axes.set_ylim(bottom, min(highest, top + 0.05 * (top - bottom)))
