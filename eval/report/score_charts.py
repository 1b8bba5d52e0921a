"""Charts of the results: shares kept, with the paper's; score against size and speed; ablations."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from cluster.telemetry.formatting import count, megabytes
from eval.report.svg import COLOURS, INK, PAPER, TONES, Canvas, Plot, canvas, legend
from eval.results import paper
from eval.results.schema import STUDENT, TEACHER

Report = Mapping[str, Any]

TIGHT = {"columnspacing": 1.1, "handletextpad": 0.4}


def draw(report: Report) -> list[Plot]:
    """The charts for which there are measurements."""
    drawn = (_shares(report), draw_speed(report, _quality(report)), _quality_and_size(report), _ablations(report))
    return [plot for plot in drawn if plot is not None]


def _shares(report: Report) -> Plot | None:
    """A line for each task, from the share that DistilBERT keeps in the paper to the student's."""
    tables = report["tables"]
    rows = [
        row for row in (*tables["1"]["means"], *tables["1"]["rows"], *tables["2"]["rows"]) if row["kept"] is not None
    ]
    if not rows:
        return None
    title = "Share of the teacher's score kept, %"
    with canvas(title, 5.4, 1.1 + 0.24 * len(rows), grid="x") as made:
        axes = made.axes
        for place, row in enumerate(rows):
            colour = TONES[row["verdict"]["state"]]
            axes.plot([row["paper"]["kept"], row["kept"]], [place, place], color=colour, linewidth=1.2, alpha=0.5)
            axes.plot(row["paper"]["kept"], place, "|", color=PAPER, markersize=12, markeredgewidth=2)
            axes.plot(row["kept"], place, "o", color=colour, markersize=7)
            if row["kept_second_step"] is not None:
                axes.plot(row["kept_second_step"], place, "D", color=colour, markersize=5, markerfacecolor="none")
        axes.axvline(report["paper"]["target_percent"], color=INK, linewidth=1, linestyle=(0, (2, 2)))
        axes.set_yticks(range(len(rows)), [row["title"] for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        signs = [
            _sign("student, passed", TONES["passed"]),
            _sign("missed", TONES["missed"]),
            _sign("unclear", TONES["unclear"]),
            _sign("second step", INK, marker="D", markerfacecolor="none"),
            _sign("paper", PAPER, marker="|", markersize=11, markeredgewidth=2),
        ]
        legend(axes, handles=signs, loc="upper center", bbox_to_anchor=(0.45, -0.09), ncols=5, **TIGHT)
        return Plot("shares", title, "shares", made.svg())


def _sign(label: str, color: str, marker: str = "o", **style: Any) -> Line2D:
    """A key of a legend."""
    return Line2D([], [], label=label, color=color, marker=marker, linestyle="", **style)


def _quality(report: Report) -> Mapping[str, Any] | None:
    """The mean in the headline."""
    means = report["tables"]["1"]["means"]
    return next((mean for mean in reversed(means) if mean["key"] in ("nine", "measured") and mean["kept"]), None)


def _quality_and_size(report: Report) -> Plot | None:
    """Teacher to student here, BERT-base to DistilBERT in the paper, over the same tasks."""
    mean = _quality(report)
    sizes = {model["name"]: model["parameters"] for model in report["models"]}
    if mean is None or not sizes.get(TEACHER) or not sizes.get(STUDENT):
        return None
    title = "Score against size"
    published = {row["key"]: row["paper"] for row in report["tables"]["3"]["rows"]}
    paper = [("BERT-base (paper)", "bertbase", "teacher"), ("DistilBERT (paper)", "distilbert", "student")]
    ours = [(name, sizes[name] / 1e6, mean[name]) for name in (TEACHER, STUDENT)]
    theirs = [(name, published[key]["parameters"] / 1e6, mean["paper"][side]) for name, key, side in paper]
    with canvas(title, 5.2, 3.3, across="parameters, millions") as made:
        for points, colour in ((ours, COLOURS[0]), (theirs, PAPER)):
            made.axes.plot([x for _, x, _ in points], [y for _, _, y in points], "o-", color=colour, markersize=7)
            for name, x, y in points:
                above = y == max(score for _, _, score in points)
                made.axes.annotate(
                    f"{name}\n{x:.0f} M, {y:.1f}", (x, y), (7, 3 if above else -3), textcoords="offset points",
                    va="bottom" if above else "top", color=INK, fontsize=8,
                )  # fmt: skip
        made.axes.set_xlim(0, 1.45 * max(x for _, x, _ in (*ours, *theirs)))
        # Leave room for the labels above and below the points.
        scores = [y for _, _, y in (*ours, *theirs)]
        spread = max(max(scores) - min(scores), 1.0)
        made.axes.set_ylim(min(scores) - 1.15 * spread, max(scores) + 1.15 * spread)
        made.axes.set_ylabel(f"mean score, {len(mean['tasks'])} tasks", color=INK)
        return Plot("size", title, "quality", made.svg())


def _ablations(report: Report) -> Plot | None:
    rows = [row for row in report["tables"]["4"]["rows"] if row["change"] is not None]
    if not rows:
        return None
    title = "Change of the mean score, points"
    with canvas(title, 5.4, 1.0 + 0.4 * len(rows), grid="x") as made:
        axes = made.axes
        for place, row in enumerate(rows):
            error = None if row["error"] is None else 2 * row["error"]
            axes.barh(
                place - 0.19, row["change"], 0.36, color=COLOURS[0], xerr=error, ecolor=INK, capsize=2.5,
                error_kw={"linewidth": 1}, label="" if place else "here, two standard errors",
            )  # fmt: skip
            if row["paper"] is not None:
                axes.barh(place + 0.19, row["paper"], 0.36, color=PAPER, label="" if place else "paper")
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.set_yticks(range(len(rows)), [row["title"] for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        legend(axes, loc="upper center", bbox_to_anchor=(0.4, -0.12), ncols=2, **TIGHT)
        return Plot("ablations", title, "ablations", made.svg())


WIDTH, HEIGHT = 8.4, 4.3
# Area of the largest point, in square points: it stays within the chart.
LARGEST = 1500.0
# Approximate width of the axes in points, without the legend to their right.
ACROSS = 290.0
# Numbers nearer to each other than this get different heights.
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
    """Whether the score is the export's own; otherwise it is that of its model."""

    @property
    def colour(self) -> str:
        return COLOURS[0] if self.who == STUDENT else COLOURS[1]


@dataclass(frozen=True)
class Scale:
    """The scores of models and exports, and the label of their axis."""

    label: str
    models: Mapping[str, float]
    exports: Mapping[tuple[str, str], float]


def draw_speed(report: Report, mean: Mapping[str, Any] | None) -> Plot | None:
    """Models with a score and a time; ``mean`` is the headline's, for models without a common task."""
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
    """Scores on the task of the timed exports, on the same examples where possible."""
    exports = [each for each in report["exports"] if each["task"] is not None and each["model"] in (TEACHER, STUDENT)]
    of = {"pairs": "stsb", "questions": "squad"}.get(report["latency"]["first"][0]["workload"])
    task = of or next((each["task"] for each in exports), None)
    scored = [each for each in exports if each["task"] == task and each["score"]]
    models = {row["model"]: row["score"] for row in report["scores"] if row["task"] == task}
    # The score in an export's record is that of the exported model, not the median over seeds.
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
        label = f"{number} · {point.who}, {point.how}: {count(point.ms)} ms, {megabytes(point.bytes)}"
        handles.append(_sign(label, point.colour, markersize=5, markerfacecolor=face))
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
    """Heights of the numbers; numbers that would touch get different levels."""
    placed: list[tuple[float, int, float]] = []
    found = []
    for point in points:
        x = ACROSS * math.log(point.ms) / width
        near = {level for other, level, score in placed if abs(other - x) < APART and abs(score - point.score) < 5}
        level = next((each for each in range(LEVELS) if each not in near), 0)
        placed.append((x, level, point.score))
        found.append(level)
    return found
