"""Quality against speed as a picture: teacher, student and every export of them, the area of a point its bytes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from eval import paper
from eval.cells import megabytes
from eval.drawing import COLOURS, INK, Canvas, Plot, canvas
from eval.records import STUDENT, TEACHER

Report = Mapping[str, Any]

WIDTH, HEIGHT = 8.4, 4.3
# Area of the largest point, in square points: it stays within the picture.
LARGEST = 1500.0
# Width of the axes in points, about: what is beside them is the key.
ACROSS = 290.0
# Numbers nearer to each other than this stand at several heights.
APART = 15.0
LEVELS = 4


@dataclass(frozen=True)
class Point:
    """One model in one form."""

    who: str
    how: str
    ms: float
    score: float
    bytes: int
    measured: bool
    """Whether the score is its own; else it is that of the model an export was made from."""

    @property
    def colour(self) -> str:
        return COLOURS[0] if self.who == STUDENT else COLOURS[1]


@dataclass(frozen=True)
class Scale:
    """Whose scores these are, and what the axis is called."""

    label: str
    models: Mapping[str, float]
    exports: Mapping[tuple[str, str], float]


def draw(report: Report, mean: Mapping[str, Any] | None) -> Plot | None:
    """Where a score and the time were measured; ``mean`` is the headline's, for models without a task in common."""
    timed = report["latency"]
    scale = None if timed is None else _scale(report, mean)
    if timed is None or scale is None:
        return None
    points = [point for row in timed["first"] if (point := _point(row, scale)) is not None]
    if not points:
        return None
    first = timed["first"][0]
    where = f"{first['where']}, {first['threads']} thread{'' if first['threads'] == 1 else 's'}"
    title = f"Score against latency: {where}; area: bytes"
    with canvas(title, WIDTH, HEIGHT, across="milliseconds a call (p50), logarithmic") as made:
        _draw(made, sorted(points, key=lambda point: (point.who != TEACHER, point.ms)))
        made.axes.set_ylabel(scale.label, color=INK)
        return Plot("speed", title, "speed", made.svg())


def _scale(report: Report, mean: Mapping[str, Any] | None) -> Scale | None:
    """Scores on the task that the timed exports were tuned for, taken on the same examples wherever they can be."""
    exports = [each for each in report["exports"] if each["task"] is not None and each["model"] in (TEACHER, STUDENT)]
    of = {"pairs": "stsb", "questions": "squad"}.get(report["latency"]["first"][0]["workload"])
    task = of or next((each["task"] for each in exports), None)
    scored = [each for each in exports if each["task"] == task and each["score"]]
    models = {row["model"]: row["score"] for row in report["scores"] if row["task"] == task}
    # What was scored beside an export is the very model that was exported, not the median over seeds.
    models |= {each["model"]: each["score"]["model"] for each in scored}
    if task is not None and models:
        own = {(each["model"], each["format"]): each["score"]["export"] for each in scored}
        title = next((row.title for row in paper.find(task)), task)
        return Scale(f"score, {title}", models, own)
    if mean is None:
        return None
    return Scale(f"mean score, {len(mean['tasks'])} tasks", {who: mean[who] for who in (TEACHER, STUDENT)}, {})


def _point(row: Mapping[str, Any], scale: Scale) -> Point | None:
    who, form = row["model"], row["form"]
    if who not in (TEACHER, STUDENT) or scale.models.get(who) is None:
        return None
    own = scale.models[who] if form == "pytorch" else scale.exports.get((who, form))
    score = scale.models[who] if own is None else own
    return Point(who, row["how"], row["p50_ms"], score, row["bytes"] or 0, own is not None)


def _draw(made: Canvas, points: Sequence[Point]) -> None:
    axes = made.axes
    axes.set_xscale("log")
    largest = max(point.bytes for point in points) or 1
    low, high = min(point.ms for point in points), max(point.ms for point in points)
    axes.set_xlim(low / 1.35, high * 1.35)
    levels = _levels(points, math.log(high * 1.35**2 / low))
    handles = []
    for number, (point, level) in enumerate(zip(points, levels, strict=True), start=1):
        area = LARGEST * point.bytes / largest
        face = point.colour if point.measured else "none"
        axes.scatter(point.ms, point.score, s=area, facecolor=face, edgecolor=point.colour, alpha=0.5)
        axes.plot(point.ms, point.score, ".", color=point.colour, markersize=3)
        axes.annotate(
            str(number), (point.ms, point.score), (0, 21 + 11 * level), textcoords="offset points", ha="center",
            color=INK, fontsize=8,
            arrowprops={"arrowstyle": "-", "color": INK, "alpha": 0.25, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 2},
        )  # fmt: skip
        told = f"{number} · {point.who}, {point.how}: {_short(point.ms)} ms, {megabytes(point.bytes)}"
        sign: dict[str, Any] = {
            "marker": "o",
            "linestyle": "",
            "color": point.colour,
            "markerfacecolor": face,
            "markersize": 5,
        }
        handles.append(Line2D([], [], label=told, **sign))
    axes.legend(
        handles=handles, frameon=False, labelcolor=INK, fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.02),
        handletextpad=0.3, labelspacing=0.35,
    )  # fmt: skip
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    scores = [point.score for point in points]
    spread = max(max(scores) - min(scores), 1.0)
    axes.set_ylim(min(scores) - 0.45 * spread, max(scores) + 0.75 * spread)


def _levels(points: Sequence[Point], width: float) -> list[int]:
    """Heights of the numbers: those that would touch, a level apart."""
    placed: list[tuple[float, int, float]] = []
    found = []
    for point in points:
        x = ACROSS * math.log(point.ms) / width
        near = {level for other, level, score in placed if abs(other - x) < APART and abs(score - point.score) < 5}
        level = next((each for each in range(LEVELS) if each not in near), 0)
        placed.append((x, level, point.score))
        found.append(level)
    return found


def _short(ms: float) -> str:
    return f"{ms:.1f}" if ms < 100 else f"{ms:.0f}"
