"""Findings as text for a terminal or a pipe: sections, tables, samples, and charts in block characters."""

import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from typing import TextIO

import numpy as np
import numpy.typing as npt
from rich.bar import Bar
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table as Grid
from rich.text import Text

from cluster.inspect.findings import Bars, Block, Curves, Findings, Histogram, Pairs, Sample, Section, Table, Words
from cluster.telemetry.formatting import count, share
from cluster.telemetry.terminal import console_for, pairs, render, safe, table

Values = npt.NDArray[np.float64]

_WIDEST = 110
_SAMPLE_LINES, _CHART_LINES, _CHART_COLUMNS = 7, 5, 76
_LABEL = 8
"""Columns of the labels left of a chart."""
_EIGHTHS = " ▁▂▃▄▅▆▇█"
_SMALLEST_BAR = 0.003
"""Share of a bar that still shows: a value above 0 is never invisible."""


def write(found: Findings, stream: TextIO = sys.stdout) -> None:
    """Print findings; replaces characters that the stream cannot encode."""
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="replace")
    stream.write(page(found, console_for(stream, _WIDEST)))
    stream.flush()


def page(found: Findings, console: Console) -> str:
    """The findings as lines no wider than the console."""
    return render(console, *_parts(found, console))


def _parts(found: Findings, console: Console) -> Iterator[RenderableType]:
    yield Text.assemble((safe(found.title), "bold"), "  ", (safe(found.place), "dim"))
    if found.headline:
        yield Text(safe(found.headline))
    for remark in found.remarks:
        yield pairs([("!", remark)], style="bold yellow")
    for section in found.sections:
        if section.blocks or section.note:
            yield from _section(section, console)


def _section(section: Section, console: Console) -> Iterator[RenderableType]:
    yield Text()
    yield Rule(Text(section.title, "bold cyan"), align="left", style="dim")
    if section.note:
        yield Text(safe(section.note), "dim")
    blocks = [block for block in section.blocks if not isinstance(block, Pairs) or block.entries]
    for number, block in enumerate(blocks):
        if number:
            yield Text()
        for part in _block(block, console):
            yield Padding(part, (0, 0, 0, 2))


def _block(block: Block, console: Console) -> Iterator[RenderableType]:
    room = console.width - 2
    if isinstance(block, Pairs):
        yield pairs(block.entries, max(18, room // 3))
    elif isinstance(block, Table):
        yield table(block.head, block.rows, block.texts)
    elif isinstance(block, Sample):
        yield from _sample(block, console)
    elif isinstance(block, Words):
        yield from (_wrapped(line, room) for line in block.text.rstrip().splitlines())
    else:
        yield Text.assemble(safe(block.title), "  ", (safe(block.note), "dim"))
        charts = {Bars: _bars, Histogram: _histogram, Curves: _curves}
        yield charts[type(block)](block, room)  # type: ignore[operator]


def _one_line(text: str, style: str = "") -> Text:
    return Text(safe(text), style, no_wrap=True, overflow="ellipsis")


def _wrapped(line: str, room: int) -> Text:
    """A line of text; the rest of a long one is indented, as far as the line itself or its second column."""
    start = re.match(r" *(\S.{0,14}?  +)?", safe(line))
    indent = " " * (len(start[0]) if start else 0)
    return Text("\n".join(textwrap.wrap(safe(line), room, subsequent_indent=indent, drop_whitespace=True)) or "")


def _sample(block: Sample, console: Console) -> Iterator[RenderableType]:
    yield _one_line(block.label, "dim")
    words = [(word, "bold magenta" if special else "") for text, special in block.spans for word in safe(text).split()]
    lines = Text(" ").join(Text(*word) for word in words).wrap(console, console.width - 6)
    if len(lines) > _SAMPLE_LINES:
        lines[_SAMPLE_LINES - 1].rstrip()
        lines[_SAMPLE_LINES - 1].append(" …")
    for line in lines[:_SAMPLE_LINES]:
        yield Padding(line, (0, 0, 0, 2))


def _bars(panel: Bars, room: int) -> RenderableType:
    grid = Grid.grid(padding=(0, 2, 0, 0), expand=True)
    grid.add_column(no_wrap=True, overflow="ellipsis", max_width=room // 3)
    grid.add_column(no_wrap=True, justify="right")
    grid.add_column(ratio=1)
    values = {name: value if np.isfinite(value) else 0.0 for name, value in panel.values.items()}
    most = max(values.values(), default=0.0) or 1.0
    for name, value in values.items():
        end = max(value, _SMALLEST_BAR * most) if value > 0 else 0.0
        text = panel.text(panel.values[name])
        grid.add_row(_one_line(name), _one_line(text), Bar(most, 0, end, color="blue"))
    return grid


def _histogram(panel: Histogram, room: int) -> RenderableType:
    total = np.sum(list(panel.counts.values()), axis=0)
    most_columns = _chart_columns(room, panel.unit)
    bins = np.array([part.sum() for part in np.array_split(total, min(len(total), most_columns))], dtype=np.float64)
    heights = np.repeat(bins, most_columns // len(bins))
    edges = np.interp(np.linspace(0, len(panel.edges) - 1, 5), np.arange(len(panel.edges)), panel.edges)
    top = share(bins.max(), bins.sum())
    return _chart(heights / max(1.0, bins.max()), top, "0", [*map(count, edges.tolist())], panel.unit)


def _curves(panel: Curves, room: int) -> RenderableType:
    if len(panel.lines) > 1:
        return _sparklines(panel, room)
    (x, y), both = next(iter(panel.lines.values())), panel.logarithmic == "both"
    across, up = (np.log10(x), np.log10(y)) if both else (x, y)
    heights = _resampled(across, up, _chart_columns(room, panel.unit))
    ends, ticks = np.array([heights.max(), heights.min()]), np.linspace(across[0], across[-1], 5)
    ends, ticks = (10**ends, 10**ticks) if both else (ends, ticks)
    top, low = map(count, ends.tolist())
    return _chart(0.04 + 0.96 * _scaled(heights), top, low, [*map(count, ticks.tolist())], panel.unit)


def _sparklines(panel: Curves, room: int) -> RenderableType:
    """A line per curve, each on its own scale: first value, shape, last value."""
    grid = Grid.grid(padding=(0, 2, 0, 0))
    for justify in ("left", "right", "left", "left"):
        grid.add_column(no_wrap=True, justify=justify)
    columns = max(8, min(room - 42, _CHART_COLUMNS))
    for name, (x, y) in panel.lines.items():
        levels = np.rint(1 + 7 * _scaled(_resampled(x, y, columns))).astype(int)
        shape = "".join(_EIGHTHS[level] for level in levels.tolist())
        grid.add_row(_one_line(name), count(float(y[0])), Text(shape, "blue"), count(float(y[-1])))
    return grid


def _chart_columns(room: int, unit: str) -> int:
    return min(room - _LABEL - 4 - len(unit), _CHART_COLUMNS)


def _chart(heights: Values, top: str, low: str, ticks: Sequence[str], unit: str) -> Text:
    """Columns with heights from 0 to 1; the ticks are evenly spaced, from the first column to the last."""
    eighths = np.where(heights > 0, np.maximum(1, np.rint(heights * _CHART_LINES * 8)), 0).astype(int)
    chart = Text(no_wrap=True, overflow="ellipsis")
    for line in reversed(range(_CHART_LINES)):
        label = top if line == _CHART_LINES - 1 else low if line == 0 else ""
        cells = "".join(_EIGHTHS[level] for level in np.clip(eighths - 8 * line, 0, 8).tolist())
        chart.append(f"{label:>{_LABEL}} │").append(f"{cells.rstrip()}\n", "blue")
    below, free = "", 0
    for place, tick in zip(np.linspace(0, len(heights), len(ticks)).astype(int).tolist(), ticks, strict=True):
        start = max(0, min(place, len(heights) - len(tick)))
        if start >= free:
            below, free = f"{below:<{start}}{tick}", start + len(tick) + 1
    return chart.append(f"{'':{_LABEL}} └{'─' * len(heights)}\n{'':{_LABEL}}  {below}  {unit}")


def _scaled(values: Values) -> Values:
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else np.full(len(values), 0.5)


def _resampled(x: Values, y: Values, columns: int) -> Values:
    """A curve with one value per column: means of equally spaced points if it has many, else interpolated."""
    if len(x) > 2 * columns and np.ptp(np.diff(x)) == 0:
        return np.array([part.mean() for part in np.array_split(y, columns)])
    return np.interp(np.linspace(x[0], x[-1], columns), x, y)
