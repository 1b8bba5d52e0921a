"""What was found, as pictures: shares kept beside the paper's, quality against speed and size, the ablations."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.lines import Line2D

from eval import speed_picture
from eval.drawing import COLOURS, INK, PAPER, TONES, Plot, canvas, legend
from eval.records import STUDENT, TEACHER

Report = Mapping[str, Any]

TIGHT = {"columnspacing": 1.1, "handletextpad": 0.4}


def draw(report: Report) -> list[Plot]:
    """Those for which there are measurements."""
    drawn = (
        _shares(report),
        speed_picture.draw(report, _quality(report)),
        _quality_and_size(report),
        _ablations(report),
    )
    return [plot for plot in drawn if plot is not None]


def _shares(report: Report) -> Plot | None:
    """A line for each task: where the student stands between nothing and the teacher, and where DistilBERT does."""
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
            Line2D([], [], marker="o", linestyle="", color=TONES["passed"], label="student, passed"),
            Line2D([], [], marker="o", linestyle="", color=TONES["missed"], label="missed"),
            Line2D([], [], marker="o", linestyle="", color=TONES["unclear"], label="unclear"),
            Line2D([], [], marker="D", linestyle="", color=INK, markerfacecolor="none", label="second step"),
            Line2D([], [], marker="|", linestyle="", color=PAPER, markersize=11, markeredgewidth=2, label="paper"),
        ]
        legend(axes, handles=signs, loc="upper center", bbox_to_anchor=(0.45, -0.09), ncols=5, **TIGHT)
        return Plot("shares", title, "shares", made.svg())


def _quality(report: Report) -> Mapping[str, Any] | None:
    """The mean that the headline tells of."""
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
        _room(made.axes, [y for _, _, y in (*ours, *theirs)])
        made.axes.set_ylabel(f"mean score, {len(mean['tasks'])} tasks", color=INK)
        return Plot("size", title, "quality", made.svg())


def _room(axes: Any, values: Sequence[float]) -> None:
    """Leave room for the words above and below the points."""
    low, high = min(values), max(values)
    spread = max(high - low, 1.0)
    axes.set_ylim(low - 1.15 * spread, high + 1.15 * spread)


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
