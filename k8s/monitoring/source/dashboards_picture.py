"""Draw both dashboards as one picture, with the data of a Prometheus server.

::

    python -m k8s.monitoring.source.dashboards_picture --prometheus http://localhost:9090 --hours 6 --out dashboards.png

It shows what Grafana will show before Grafana runs: the same panels, units, limits and queries.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MultipleLocator, NullFormatter

from k8s.monitoring.source.generate import BOARDS
from k8s.monitoring.source.grafana import HEIGHT, WIDTH, Board, Panel
from k8s.monitoring.source.picture_data import Line, Source, Window

GROUND, FACE, INK, FAINT, GRID = "#0f1116", "#181b1f", "#d8d9e0", "#8e929c", "#2a2e35"
COLOURS = ("#73bf69", "#f2cc0c", "#5794f2", "#ff780a", "#f2495c", "#b877d9", "#56d8e4", "#c0a27a")
GOOD, BAD = "#73bf69", "#f2495c"
_COLUMN, _LINE, _GAP, _HEAD = 0.36, 0.22, 0.06, 0.55
"""Inches: a column and a line of Grafana's grid, the gap around a panel, the title of a dashboard."""
_MOST_BARS, _LEGEND_LINES = 9, 4
_LEGEND_LINE, _LETTER = 0.11, 0.047
"""Inches: a line of a legend, and a letter of its names."""


def draw(source: Source, window: Window, path: Path) -> int:
    """Draw the dashboards next to each other into a PNG; returns the number of panels without data."""
    layouts = [_layout(board) for board in BOARDS]
    width = len(BOARDS) * WIDTH * _COLUMN + 0.3
    height = max(lines for _, _, lines in layouts) * _LINE + _HEAD
    figure = Figure(figsize=(width, height), facecolor=GROUND)
    empty = 0
    for number, (board, (titles, panels, _)) in enumerate(zip(BOARDS, layouts, strict=True)):
        left, top = 0.1 + number * (WIDTH * _COLUMN + 0.1), height - _HEAD
        figure.text(left / width, 1 - 0.3 / height, board.title, color=INK, fontsize=14, weight="bold")
        for question, line in titles:
            y = (top - line * _LINE - 0.17) / height
            figure.text(left / width, y, f"▾ {question}", color=INK, fontsize=9, weight="bold")
        for panel, column, line in panels:
            tall = HEIGHT[panel.kind] * _LINE
            place = (left + column * _COLUMN, top - line * _LINE - tall, panel.width * _COLUMN, tall)
            empty += not draw_panel(figure, panel, place, source.lines(panel, window))
    figure.savefig(path, dpi=130)
    return empty


def _layout(board: Board) -> tuple[list[tuple[str, int]], list[tuple[Panel, int, int]], int]:
    """Questions with their lines in Grafana's grid, panels with their columns and lines, and the number of lines."""
    titles: list[tuple[str, int]] = []
    placed: list[tuple[Panel, int, int]] = []
    line = 0
    for question, panels in board.rows.items():
        titles.append((question, line))
        line, column, tallest = line + 1, 0, 0
        for panel in panels:
            placed.append((panel, column, line))
            column, tallest = column + panel.width, max(tallest, HEIGHT[panel.kind])
            if column >= WIDTH:
                line, column, tallest = line + tallest, 0, 0
        line += tallest
    return titles, placed, line


def draw_panel(figure: Figure, panel: Panel, place: tuple[float, float, float, float], lines: list[Line]) -> bool:
    """Draw a panel at ``place`` (left, bottom, width, height; inches); returns whether it has data."""
    wide, high = figure.get_size_inches()
    left, bottom, width, height = (place[0] + _GAP / 2, place[1] + _GAP / 2, place[2] - _GAP, place[3] - _GAP)
    frame = figure.add_axes((left / wide, bottom / high, width / wide, height / high), facecolor=FACE)
    frame.set(xticks=[], yticks=[], xlim=(0, width), ylim=(0, height))
    for spine in frame.spines.values():
        spine.set_color(GRID)
    frame.text(0.07, height - 0.06, panel.title, color=INK, fontsize=6.5, va="top", weight="bold")
    drawable = [line for line in lines if any(map(math.isfinite, line.values))]
    if not drawable:
        frame.text(width / 2, height / 2, "No data", color=FAINT, fontsize=8, ha="center", va="center")
        return False
    _DRAWING[panel.kind](frame, panel, drawable)
    return True


def _graph(frame: Axes, panel: Panel, lines: list[Line]) -> None:
    width, height = frame.get_xlim()[1], frame.get_ylim()[1]
    legend = _legend([line.name for line in lines], width)
    below = 0.23 + _LEGEND_LINE * (1 + legend[-1].line if legend else 0)
    inside = (0.42 / width, below / height, (width - 0.52) / width, (height - below - 0.28) / height)
    axes: Any = frame.inset_axes(inside, facecolor=FACE)
    if panel.stacked:
        _stack(axes, lines)
    for number, line in enumerate([] if panel.stacked else lines):
        drawn = axes.plot(_moments(line.times), line.values, color=COLOURS[number % len(COLOURS)], linewidth=0.9)
        drawn[0].set_solid_joinstyle("round")
    if panel.logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=5))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_ylim(bottom=panel.low, top=panel.high)
        low, high = axes.get_ylim()
        axes.yaxis.set_major_locator(MultipleLocator(_between(low, high, panel.unit)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: format_value(value, panel.unit)))
    locator: Any = AutoDateLocator(maxticks=5)  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator, show_offset=False))  # type: ignore[no-untyped-call]
    axes.tick_params(which="both", colors=FAINT, labelsize=5, length=0, pad=2)
    axes.grid(True, color=GRID, linewidth=0.5)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_visible(False)
    if panel.bad is not None:
        axes.axhline(panel.bad, color=BAD, linewidth=0.6, linestyle=(0, (4, 3)))
    _draw_legend(frame, legend)


def _between(low: float, high: float, unit: str) -> float:
    """The distance of two marks of an axis: a round number in the unit that :func:`format_value` chooses."""
    bases = {"s": _DURATIONS, "bytes": _BYTES, "Bps": _BYTES}.get(unit, ())
    size = next((size for size in bases if high >= size), 1.0)
    rough = max((high - low) / 5 / size, 1e-12)
    power = 10.0 ** math.floor(math.log10(rough))
    return size * next(step * power for step in (1, 2, 5, 10) if step * power >= rough * 0.999)


_DURATIONS = (86400, 3600, 60)
_BYTES = tuple(1024**power for power in (4, 3, 2, 1))


def _stack(axes: Any, lines: list[Line]) -> None:
    """Stacked areas; a line without a value at some time counts as 0 there."""
    times = sorted({moment for line in lines for moment in line.times})
    known = [dict(zip(line.times, line.values, strict=True)) for line in lines]
    values = [[found.get(moment, 0.0) for moment in times] for found in known]
    colours = [COLOURS[number % len(COLOURS)] for number in range(len(lines))]
    axes.stackplot(_moments(times), values, colors=colours, alpha=0.75, linewidth=0)


@dataclass(frozen=True)
class _Key:
    """A name in a legend with its colour, or the number of names left out."""

    name: str
    colour: str | None
    across: float
    line: int


def _legend(names: Sequence[str], width: float) -> list[_Key]:
    """The names that fit into a legend of ``width`` inches, and the number of those that do not."""
    for kept in range(len(names), 0, -1):
        more = len(names) - kept
        words = [(name, COLOURS[number % len(COLOURS)]) for number, name in enumerate(names[:kept])]
        keys = _placed([*words, *([(f"and {more} more", None)] if more else [])], width)
        if keys[-1].line < _LEGEND_LINES:
            return keys
    return []


def _placed(words: Sequence[tuple[str, str | None]], width: float) -> list[_Key]:
    keys: list[_Key] = []
    across, line = 0.07, 0
    for word, colour in words:
        needed = 0.16 + _LETTER * len(word)
        if keys and across + needed > width:
            across, line = 0.07, line + 1
        keys.append(_Key(word, colour, across, line))
        across += needed
    return keys


def _draw_legend(frame: Axes, keys: Sequence[_Key]) -> None:
    for key in keys:
        high = 0.08 + _LEGEND_LINE * (keys[-1].line - key.line)
        if key.colour:
            frame.plot([key.across, key.across + 0.08], [high, high], color=key.colour, linewidth=2)
        frame.text(key.across + 0.11, high, key.name, color=FAINT, fontsize=5, va="center")


def _stat(frame: Axes, panel: Panel, lines: list[Line]) -> None:
    width, height = frame.get_xlim()[1], frame.get_ylim()[1]
    for number, line in enumerate(lines):
        value = line.values[-1]
        colour = BAD if panel.bad is not None and value >= panel.bad else GOOD
        middle = width * (number + 0.5) / len(lines)
        text = format_value(value, panel.unit, panel.decimals)
        size = min(15.0, 95 * width / len(lines) / max(4, len(text)))
        frame.text(middle, height * 0.42, text, color=colour, fontsize=size, ha="center", va="center", weight="bold")
        if len(lines) > 1:
            frame.text(middle, height * 0.15, line.name, color=FAINT, fontsize=5, ha="center", va="center")


def _bars(frame: Axes, panel: Panel, lines: list[Line]) -> None:
    width, height = frame.get_xlim()[1], frame.get_ylim()[1]
    lines = sorted((line for line in lines if math.isfinite(line.values[-1])), key=lambda line: line.name)[:_MOST_BARS]
    highest = panel.high or max((line.values[-1] for line in lines), default=0) or 1.0
    longest = max((len(line.name) for line in lines), default=0)
    names, room = min(0.15 + _LETTER * longest, max(width - 1.1, 0.55 * width)), height - 0.34
    letters = int((names - 0.1) / _LETTER)
    each = room / max(len(lines), 3)
    for number, line in enumerate(lines):
        middle, value = height - 0.3 - each * (number + 0.5), line.values[-1]
        long = max(0.0, value / highest) * (width - names - 0.55)
        colour = BAD if panel.bad is not None and value >= panel.bad else COLOURS[2]
        frame.barh(middle, width - names - 0.55, each * 0.55, left=names, color=GRID)
        frame.barh(middle, long, each * 0.55, left=names, color=colour)
        frame.text(
            names - 0.06, middle, _shortened(line.name, letters), color=FAINT, fontsize=5.2, ha="right", va="center"
        )
        text = format_value(value, panel.unit, panel.decimals)
        frame.text(width - 0.06, middle, text, color=INK, fontsize=5.5, ha="right", va="center")
    frame.set(xlim=(0, width), ylim=(0, height))


def _shortened(name: str, letters: int) -> str:
    """The end of a name, which differs from name to name."""
    return name if len(name) <= letters else "…" + name[len(name) - max(1, letters - 1) :]


def _table(frame: Axes, panel: Panel, lines: list[Line]) -> None:
    width, height = frame.get_xlim()[1], frame.get_ylim()[1]
    left_out = {"__name__", "instance", "job", "cluster", "endpoint", "group", "node"}
    columns = [label for label in lines[0].labels if label not in left_out]
    across = [0.1 + number * (width - 0.2) / len(columns) for number in range(len(columns))]
    for place, label in zip(across, columns, strict=True):
        frame.text(place, height - 0.36, label, color=COLOURS[2], fontsize=5.5, va="center")
        for number, line in enumerate(lines[:4]):
            text = line.labels.get(label, "")[:24]
            frame.text(place, height - 0.53 - 0.15 * number, text, color=INK, fontsize=5.5, va="center")


_DRAWING: dict[str, Callable[[Axes, Panel, list[Line]], None]] = {
    "graph": _graph,
    "stat": _stat,
    "bars": _bars,
    "table": _table,
}


def _moments(times: Sequence[float]) -> Any:
    """Unix times as matplotlib's days."""
    return [moment / 86400 for moment in times]


_SCALES: dict[str, tuple[float, Sequence[str]]] = {
    "bytes": (1024, (" B", " KiB", " MiB", " GiB", " TiB")),
    "Bps": (1024, (" B/s", " KiB/s", " MiB/s", " GiB/s", " TiB/s")),
    "hertz": (1000, (" Hz", " kHz", " MHz", " GHz")),
    "watt": (1000, (" W", " kW")),
    "celsius": (1000, (" °C",)),
}


def format_value(value: float, unit: str, decimals: int | None = None) -> str:
    """A number with its unit, as Grafana writes it."""
    if not math.isfinite(value):
        return "–"
    if unit in ("percentunit", "percent"):
        percent = value * 100 if unit == "percentunit" else value
        digits = decimals if decimals is not None else 0 if abs(percent) >= 10 or percent == 0 else 1
        return f"{percent:.{digits}f} %"
    if unit == "s":
        return _duration(value)
    if unit == "sci" or (unit == "short" and decimals is not None):
        return f"{value:.3g}" if unit == "sci" else f"{value:,.{decimals}f}"
    base, names = _SCALES.get(unit, (1000, ("", " K", " M", " G", " T")))
    power = 0
    while abs(value) >= base and power < len(names) - 1:
        value, power = value / base, power + 1
    return f"{value:.3g}{names[power]}"


def _duration(seconds: float) -> str:
    for size, word in ((86400, "day"), (3600, "hour"), (60, "min"), (1, "s")):
        if abs(seconds) >= size:
            amount = f"{seconds / size:.3g}"
            return f"{amount} {word}{'s' if size >= 3600 and amount != '1' else ''}"
    return f"{seconds * 1e3:.3g} ms" if seconds else "0 s"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m k8s.monitoring.source.dashboards_picture", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--prometheus", required=True, metavar="URL")
    parser.add_argument(
        "--hours", type=float, default=6.0, metavar="N", help="hours to show, up to now (default: %(default)g)"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="PNG")
    given = parser.parse_args()
    window = Window(time.time(), 3600 * given.hours)
    try:
        empty = draw(Source(given.prometheus.rstrip("/")), window, given.out)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{given.out}: {empty} panels have no data" if empty else f"{given.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
