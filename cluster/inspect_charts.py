"""Histograms, bars and curves in the characters of a terminal."""

from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from cluster.inspect_findings import Bars, Curves, Histogram, Panel, count, plain, share
from cluster.inspect_terminal import cut, fitted, padded, safe, width_of

Paint: TypeAlias = Callable[[str, str], str]
"""A text in a colour, where there are any."""
Values: TypeAlias = npt.NDArray[np.float64]

_HEIGHT = 5
_EIGHTHS = " ▁▂▃▄▅▆▇█"
_PARTS = " ▏▎▍▌▋▊▉"
_MARKS = 3
"""Of an axis, at least, where the numbers allow it."""
_BLUE = "34"


class Axis(NamedTuple):
    """What is written at a chart."""

    top: str
    low: str
    marks: list[tuple[int, str]]
    """Columns, and what stands below them."""
    unit: str


def lines(panel: Panel, width: int, paint: Paint) -> Iterator[str]:
    """A panel with its title, in so many columns."""
    note = f"  {panel.note}" if panel.note else ""
    yield from (f"  {line}" for line in fitted(safe(f"{panel.title}{note}"), width - 2))
    if isinstance(panel, Bars):
        yield from _bars(panel, width, paint)
    elif isinstance(panel, Histogram):
        yield from _histogram(panel, width, paint)
    else:
        yield from _curves(panel, width, paint)


def _bars(panel: Bars, width: int, paint: Paint) -> Iterator[str]:
    names = {name: cut(safe(name), width // 3) for name in panel.values}
    texts = {name: panel.shown.get(name, plain(value)) for name, value in panel.values.items()}
    left, right = (max(map(width_of, those.values()), default=0) for those in (names, texts))
    room = max(4, width - left - right - 6)
    most = max((value for value in panel.values.values() if np.isfinite(value)), default=0) or 1.0
    for name, value in panel.values.items():
        bar = paint(_bar(value / most if np.isfinite(value) else 0.0, room), _BLUE)
        yield f"  {padded(names[name], left)}  {padded(texts[name], right, left=False)}  {bar}".rstrip()


def _histogram(panel: Histogram, width: int, paint: Paint) -> Iterator[str]:
    total = np.sum(list(panel.counts.values()), axis=0)
    together = -(-len(total) // _columns(width))  # bins in a column, where there are more bins than columns
    columns = np.add.reduceat(total, np.arange(0, len(total), together))
    each = max(1, _columns(width) // len(columns))
    marks = [(place // together * each, count(value)) for place, value in _decades(panel.edges)]
    axis = Axis(share(int(columns.max()), int(columns.sum())), "0", marks, panel.unit)
    yield from _chart(np.repeat(columns, each) / max(1, columns.max()), axis, width, paint)


def _curves(panel: Curves, width: int, paint: Paint) -> Iterator[str]:
    if len(panel.lines) > 1:
        yield from _sparks(panel, width, paint)
        return
    for x, y in panel.lines.values():
        across, up = (np.log10(x), np.log10(y)) if panel.logarithmic == "both" else (x, y)
        heights = _averaged(across, up, _columns(width))
        low, high = float(heights.min()), float(heights.max())
        scaled = (heights - low) / (high - low) if high > low else np.full(len(heights), 0.5)
        marks = [(0, count(float(x[0]))), (len(heights) - 1, count(float(x[-1])))]
        ends = [_number(10**end if panel.logarithmic == "both" else end) for end in (high, low)]
        yield from _chart(0.04 + 0.96 * scaled, Axis(ends[0], ends[1], marks, panel.across), width, paint)


def _sparks(panel: Curves, width: int, paint: Paint) -> Iterator[str]:
    """A line for each curve, each on a scale of its own: first value, shape, last value."""
    ends = {name: (_number(float(y[0])), _number(float(y[-1]))) for name, (_, y) in panel.lines.items()}
    left, first = max(map(len, ends)), max(len(begin) for begin, _ in ends.values())
    room = max(8, min(width, 90) - left - first - 18)
    for name, (x, y) in panel.lines.items():
        heights = _averaged(x, y, room)
        low, high = float(heights.min()), float(heights.max())
        levels = np.rint(1 + 7 * (heights - low) / (high - low)) if high > low else np.full(len(heights), 4)
        shape = paint("".join(_EIGHTHS[level] for level in levels.astype(int).tolist()), _BLUE)
        yield f"  {padded(name, left)}  {padded(ends[name][0], first, left=False)} {shape} {ends[name][1]}"


def _columns(width: int) -> int:
    """Columns of a chart."""
    return min(width, 90) - 14


def _chart(heights: Values, axis: Axis, width: int, paint: Paint) -> Iterator[str]:
    """Columns of heights from 0 to 1."""
    eighths = np.where(heights > 0, np.maximum(1, np.rint(heights * _HEIGHT * 8)), 0).astype(int)
    for line in reversed(range(_HEIGHT)):
        label = axis.top if line == _HEIGHT - 1 else axis.low if line == 0 else ""
        cells = "".join(_EIGHTHS[level] for level in np.clip(eighths - 8 * line, 0, 8).tolist())
        yield f"  {padded(label, 8, left=False)} │{paint(cells.rstrip(), _BLUE)}"
    below = [" "] * (len(heights) + 24)
    free, last = 0, len(heights) - 1
    for place, text in axis.marks:
        start = max(0, last - len(text) + 1 if place >= last else place)
        if start >= free:
            below[start : start + len(text)] = text
            free = start + len(text) + 1
    yield f"  {' ' * 8} └{'─' * len(heights)}"
    yield cut(f"  {' ' * 8}  {''.join(below).rstrip()}  {axis.unit}", width)


def _bar(part: float, room: int) -> str:
    eighths = max(1, round(part * room * 8)) if part > 0 else 0
    return "█" * (eighths // 8) + _PARTS[eighths % 8].strip()


def _number(value: float) -> str:
    return count(value) if abs(value) >= 1000 else f"{value:.4g}"


def _averaged(x: Values, y: Values, room: int) -> Values:
    """A curve as so many columns: means where it has more points, lines between them where it has fewer."""
    if len(x) > 2 * room and np.ptp(np.diff(x)) == 0:
        return np.array([part.mean() for part in np.array_split(y, room)])
    return np.interp(np.linspace(x[0], x[-1], room), x, y)


def _decades(edges: Values) -> list[tuple[int, float]]:
    """Bins in which round numbers lie: the powers of ten, or more where there are few of them."""
    low, high = float(edges[0]), float(edges[-1])
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9)):
        values = [step * 10**power for power in range(10) for step in steps if low <= step * 10**power < high]
        if len(values) >= _MARKS:
            break
    return [(int(np.searchsorted(edges, value, side="right")) - 1, value) for value in values]
