"""Findings as text for a terminal of any width, or for a pipe.

Colours appear only where a terminal shows them and ``NO_COLOR`` is not set. Texts of an artifact are shown, never
obeyed: whatever in them would move a cursor is written as an escape.
"""

import os
import shutil
import sys
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, TextIO, TypeAlias

import numpy as np
import numpy.typing as npt

from cluster.inspect.findings import (
    Bars,
    Block,
    Curves,
    Findings,
    Histogram,
    Pairs,
    Panel,
    Sample,
    Section,
    Table,
    Words,
)
from cluster.telemetry.formatting import count, plain, share

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


WIDEST, NARROWEST, PIPED = 110, 40, 100
_SAMPLE_LINES = 7
_NARROW = 8
"""Columns that words have in a table at least."""


@dataclass(frozen=True)
class Page:
    """How wide, and whether in colour."""

    width: int
    colours: bool

    @classmethod
    def of(cls, stream: TextIO) -> "Page":
        """For what a stream leads to."""
        terminal = stream.isatty()
        width = shutil.get_terminal_size((PIPED, 24)).columns if terminal or "COLUMNS" in os.environ else PIPED
        colours = terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        return cls(max(NARROWEST, min(WIDEST, width)), colours)

    def lines(self, found: Findings) -> Iterator[str]:
        """The whole page."""
        place = safe(found.place)
        if len(found.title) + 2 + width_of(place) <= self.width:
            yield f"{self._paint(found.title, '1')}  {self._paint(place, '2')}"
        else:
            yield self._paint(found.title, "1")
            yield from (self._paint(line, "2") for line in fitted(place, self.width))
        if found.headline:
            yield from self._wrapped(found.headline)
        for remark in found.remarks:
            first, *others = fitted(safe(remark), self.width - 2)
            yield self._paint(f"! {first}", "33;1")
            yield from (self._paint(f"  {line}", "33;1") for line in others)
        for section in found.sections:
            if section.blocks or section.note:
                yield from self._section(section)

    def _section(self, section: Section) -> Iterator[str]:
        yield ""
        rule = "─" * max(0, self.width - width_of(section.title) - 1)
        yield f"{self._paint(section.title, '1;36')} {self._paint(rule, '2')}"
        if section.note:
            yield from (self._paint(line, "2") for line in self._wrapped(section.note))
        for number, block in enumerate(section.blocks):
            if number:
                yield ""
            yield from self._block(block)

    def _block(self, block: Block) -> Iterator[str]:
        if isinstance(block, Pairs):
            yield from self._pairs(block)
        elif isinstance(block, Table):
            yield from self._table(block)
        elif isinstance(block, Sample):
            yield from self._sample(block)
        elif isinstance(block, Words):
            yield from ("  " + cut(safe(line), self.width - 2) for line in block.text.rstrip().splitlines())
        else:
            yield from lines(block, self.width, self._paint)

    def _wrapped(self, text: str) -> list[str]:
        return fitted(safe(text), self.width)

    def _paint(self, text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.colours else text

    def _pairs(self, block: Pairs) -> Iterator[str]:
        if not block.entries:
            return
        widest = min(max(width_of(name) for name, _ in block.entries), max(18, self.width // 3))
        for name, value in block.entries:
            room = self.width - widest - 4
            lines = [line for part in value.split("\n") for line in fitted(safe(part), room)] or [""]
            yield f"  {self._paint(padded(cut(safe(name), widest), widest), '2')}  {lines[0]}"
            yield from (" " * (widest + 4) + line for line in lines[1:])

    def _table(self, block: Table) -> Iterator[str]:
        rows = [[safe(cell) for cell in row] for row in (block.head, *block.rows)]
        widths = [max(width_of(row[column]) for row in rows) for column in range(len(block.head))]
        over = sum(widths) + 2 * len(widths) - self.width
        for column in sorted(range(block.texts), key=lambda column: -widths[column]):
            # Words give way to numbers, the longest first.
            less = min(max(0, over), max(0, widths[column] - _NARROW))
            widths[column], over = widths[column] - less, over - less
        for number, row in enumerate(rows):
            cells = (
                padded(cut(cell, width), width, left=column < block.texts)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            line = cut("  " + "  ".join(cells).rstrip(), self.width)
            yield self._paint(line, "2") if number == 0 else line

    def _sample(self, block: Sample) -> Iterator[str]:
        yield f"  {self._paint(cut(safe(block.label), self.width - 2), '2')}"
        words = [(word, special) for text, special in block.spans for word in safe(text).split()]
        lines: list[str] = []
        line, used = "", 0
        for word, special in words:
            if used + width_of(word) + 1 > self.width - 6 and used:
                lines.append(line)
                line, used = "", 0
                if len(lines) == _SAMPLE_LINES:
                    lines[-1] += " …"
                    break
            word = cut(word, self.width - 4)
            line += (" " if used else "") + (self._paint(word, "35;1") if special else word)
            used += width_of(word) + 1
        yield from (f"    {line}" for line in [*lines, *([line] if line else [])])


def write(found: Findings, stream: TextIO = sys.stdout) -> None:
    """Print findings; what cannot be encoded there is replaced."""
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="replace")
    for line in Page.of(stream).lines(found):
        stream.write(line + "\n")
    stream.flush()


def safe(text: str) -> str:
    """A text without anything a terminal would act on."""
    return "".join(
        character if character.isprintable() else " " if character.isspace() else ascii(character)[1:-1]
        for character in text
    )


def width_of(text: str) -> int:
    """Columns a text takes."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(character) else 2 if unicodedata.east_asian_width(character) in "WF" else 1
        for character in text
    )


def cut(text: str, width: int) -> str:
    """At most so many columns of a text."""
    if width_of(text) <= width:
        return text
    while width_of(text) > width - 1:
        text = text[:-1]
    return f"{text}…"


def padded(text: str, width: int, left: bool = True) -> str:
    """A text with blanks behind it, or before it, up to so many columns."""
    blank = " " * max(0, width - width_of(text))
    return text + blank if left else blank + text


def fitted(text: str, width: int) -> list[str]:
    """A text in lines; only a word that is longer than a line is cut, paths are not cut at their hyphens."""
    lines, line = list[str](), ""
    for word in text.split():
        if line and width_of(line) + 1 + width_of(word) > width:
            lines.append(line)
            line = ""
        line = f"{line} {word}" if line else word
        while width_of(line) > width:
            start = cut(line, width + 1)[:-1]
            lines.append(start)
            line = line[len(start) :]
    return [*lines, line] if line else lines
