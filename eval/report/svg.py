"""Charts as SVG with one text colour: curves over steps, and bars around zero.

A page with a dark mode replaces the text colour by its own (:meth:`Plot.inline`).
"""

import html
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

INK = "#27303c"
COLOURS = ("#c2662c", "#5b82b8", "#2f8f5b", "#9a66c9", "#cc4f83", "#1c8f9c", "#a08420", "#8b8076")
"""The first two are the student's and the teacher's on all pages."""
DASHES = ("", "7 3", "2 2.5", "8 3 2 3")
PAPER = "#8b8076"

_WIDTH, _HEIGHT = 420, 250
_LEFT, _RIGHT, _BOTTOM = 44, 12, 38
_LINE = 17
"""Height of a line of text."""
_LETTER = 6.4
"""Width of a letter of 11 pixels, roughly."""


@dataclass(frozen=True)
class Plot:
    """A chart; ``name`` is the stem of its file, ``section`` its place on the page."""

    name: str
    title: str
    section: str
    svg: str

    def inline(self) -> str:
        """The chart as an element of a page, in the page's text colour."""
        drawing = self.svg[self.svg.index("<svg ") :].replace(INK, "currentColor")
        return drawing.replace("<svg ", f'<svg role="img" aria-label="{html.escape(self.title)}" ', 1)


@dataclass(frozen=True)
class Line:
    """A curve; without points it is a level over the whole width."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: str
    dash: str = ""
    band: Sequence[tuple[float, float]] = ()
    """Lowest and highest value at each point."""
    level: float | None = None


@dataclass(frozen=True)
class Change:
    """A bar from zero, with its error, and the paper's."""

    name: str
    value: float
    error: float | None = None
    paper: float | None = None


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers between two values."""
    span = max(high - low, 1e-12)
    rough = span / most
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= rough)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def curves(title: str, lines: Sequence[Line], low: float, high: float, across: str = "step") -> str:
    """Lines over a common axis, with a legend below the title; ``low`` and ``high`` limit the vertical axis."""
    xs = [x for line in lines for x, _ in line.points] or [0.0, 1.0]
    first, last = min(xs), max(max(xs), min(xs) + 1e-9)
    rows = list(_legend_rows(lines))
    top = 22 + _LINE * len(rows) + 8
    height, wide = _HEIGHT + _LINE * (len(rows) - 1), _WIDTH - _LEFT - _RIGHT
    tall = height - top - _BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        return wide * (x - first) / (last - first), tall * (high - y) / (high - low)

    parts = [_text(0, 15, title, "bold")]
    for number, row in enumerate(rows):
        parts += [_key(x, 34 + _LINE * number, line) for x, line in row]
    for value in ticks(low, high):
        y = top + place(first, value)[1]
        parts.append(_rule(_LEFT, y, _LEFT + wide, y, 0.13))
        parts.append(_text(_LEFT - 6, y + 4, f"{value:g}", anchor="end"))
    for value in ticks(first, last):
        x = _LEFT + place(value, low)[0]
        parts.append(_text(x, top + tall + 16, f"{value:,g}", anchor="middle"))
    parts += [_rule(_LEFT, top + tall, _LEFT + wide, top + tall, 0.5), _rule(_LEFT, top, _LEFT, top + tall, 0.5)]
    parts.append(_text(_LEFT + wide, top + tall + 32, across, anchor="end"))
    # A nested drawing cuts off what is beyond the axes.
    parts.append(f'<svg x="{_LEFT}" y="{top}" width="{wide}" height="{tall:.1f}">')
    for line in lines:
        if line.band:
            edge = [place(x, high_) for (x, _), (_, high_) in zip(line.points, line.band, strict=True)]
            edge += [place(x, low_) for (x, _), (low_, _) in reversed([*zip(line.points, line.band, strict=True)])]
            parts.append(f'<polygon points="{_joined(edge)}" fill="{line.colour}" opacity=".18"/>')
        ends = [(first, line.level), (last, line.level)] if line.level is not None else line.points
        drawn = [place(x, y) for x, y in ends]
        parts.append(
            f'<polyline points="{_joined(drawn)}" fill="none" stroke="{line.colour}" stroke-width="2"'
            f'{_dashed(line.dash)} stroke-linejoin="round"/>'
        )
        if len(drawn) < 3 and line.level is None:
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{line.colour}"/>' for x, y in drawn]
    return _drawing(_WIDTH, height, [*parts, "</svg>"])


def changes(title: str, bars: Sequence[Change]) -> str:
    """Bars to the left and right of zero, below their names: ours with its error, then the paper's."""
    ends = [bar.value + sign * (bar.error or 0.0) for bar in bars for sign in (-1, 1)]
    ends += [bar.paper for bar in bars if bar.paper is not None]
    low, high = min(0.0, *ends), max(0.0, *ends)
    if low == high:  # no bar has a length
        low, high = -1.0, 1.0
    pad = 0.05 * (high - low)
    low, high = low - (pad if low < 0 else 0), high + (pad if high > 0 else 0)
    left, top, step = _RIGHT, 48, 50
    wide, tall = _WIDTH - left - _RIGHT, step * len(bars)

    def across(value: float) -> float:
        return float(left + wide * (value - low) / (high - low))

    ours, theirs = Line("here, with the range at 95 %", (), COLOURS[0]), Line("paper", (), PAPER)
    parts = [_text(0, 15, title, "bold"), _key(0, 34, ours), _key(220, 34, theirs)]
    for value in ticks(low, high, 6):
        parts.append(_rule(across(value), top, across(value), top + tall, 0.5 if value == 0 else 0.13))
        parts.append(
            _text(across(value), top + tall + 16, f"{value:g}".replace("-", "\N{MINUS SIGN}"), anchor="middle")
        )
    for number, bar in enumerate(bars):
        y = top + step * number + 5
        parts.append(_text(0, y + 10, _short(bar.name, 0)))
        parts.append(_bar(across(0.0), across(bar.value), y + 15, 14, COLOURS[0]))
        if bar.error is not None:
            parts.append(_rule(across(bar.value - bar.error), y + 22, across(bar.value + bar.error), y + 22, 0.9))
        if bar.paper is not None:
            parts.append(_bar(across(0.0), across(bar.paper), y + 30, 10, PAPER))
    return _drawing(_WIDTH, top + tall + 26, parts)


def _legend_rows(lines: Sequence[Line]) -> Iterator[list[tuple[float, Line]]]:
    """Keys of the legend with their horizontal places, in as many rows as they need."""
    row: list[tuple[float, Line]] = []
    x = 0.0
    for line in lines:
        width = 30 + _LETTER * len(_short(line.name)) + 14
        if row and x + width > _WIDTH:
            yield row
            row, x = [], 0.0
        row.append((x, line))
        x += width
    yield row


def _key(x: float, y: float, line: Line) -> str:
    stroke = f'stroke="{line.colour}" stroke-width="3"{_dashed(line.dash)}'
    return f'<path d="M{x:.1f} {y - 4}h24" {stroke}/>{_text(x + 30, y, _short(line.name))}'


def _short(name: str, before: float = 30.0) -> str:
    """A name that fits the width of a chart."""
    most = int((_WIDTH - before) / _LETTER)
    return name if len(name) <= most else f"{name[: most - 1]}…"


def _dashed(dash: str) -> str:
    return f' stroke-dasharray="{dash}"' if dash else ""


def _bar(start: float, end: float, y: float, height: float, colour: str) -> str:
    left, width = min(start, end), max(abs(end - start), 1.0)
    return f'<rect x="{left:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height}" rx="2" fill="{colour}"/>'


def _rule(x1: float, y1: float, x2: float, y2: float, opacity: float) -> str:
    return f'<path d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" stroke="{INK}" opacity="{opacity}"/>'


def _text(x: float, y: float, text: str, weight: str = "normal", anchor: str = "start") -> str:
    style = f'font-size="{13 if weight == "bold" else 11}" font-weight="{weight}" text-anchor="{anchor}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style} fill="{INK}">{html.escape(text)}</text>'


def _joined(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _drawing(width: float, height: float, parts: Sequence[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" font-family="sans-serif">'
    return f"{head}{''.join(parts)}</svg>\n"
