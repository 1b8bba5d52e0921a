"""Findings as text for a terminal of any width, or for a pipe.

Colours appear only where a terminal shows them and ``NO_COLOR`` is not set. Texts of an artifact are shown, never
obeyed: whatever in them would move a cursor is written as an escape.
"""

import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TextIO

from cluster import inspect_charts
from cluster.inspect_findings import Block, Findings, Pairs, Sample, Section, Table, Words
from cluster.inspect_terminal import cut, fitted, padded, safe, width_of

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
            yield from inspect_charts.lines(block, self.width, self._paint)

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
