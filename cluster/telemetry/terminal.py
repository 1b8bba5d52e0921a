"""Text for terminals and pipes: tables that fit, colours only on a terminal, no control characters from data."""

import os
import shutil
from collections.abc import Iterable, Sequence
from typing import Literal, TextIO

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

_PIPED, _NARROWEST = 100, 40


def safe(text: str) -> str:
    """The text with control characters and direction marks as escapes, and every white space as a space."""
    return "".join(
        character if character.isprintable() else " " if character.isspace() else ascii(character)[1:-1]
        for character in text
    )


def console_for(stream: TextIO, widest: int | None = None, piped: int | None = None) -> Console:
    """A console for a terminal, or for a pipe, where ``piped``, ``COLUMNS`` or 100 is the width.

    The width is at least 40 and at most ``widest``.

    Colours need a terminal, no ``NO_COLOR`` and another ``TERM`` than ``dumb``.
    """
    terminal = stream.isatty()
    asks = terminal or (piped is None and "COLUMNS" in os.environ)
    width = shutil.get_terminal_size((_PIPED, 24)).columns if asks else piped or _PIPED
    colours = terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    width = max(_NARROWEST, min(width, widest or width))
    system: Literal["auto"] | None = "auto" if colours else None
    # Without a height, rich takes 80 columns for a dumb terminal, whatever the width.
    return Console(
        file=stream, width=width, height=24, force_terminal=terminal, color_system=system, markup=False, highlight=False
    )


def render(console: Console, *parts: RenderableType) -> str:
    """Text of the parts without spaces at the ends of lines."""
    with console.capture() as capture:
        for part in parts:
            console.print(part)
    return "".join(f"{line.rstrip()}\n" for line in capture.get().splitlines())


def pairs(entries: Iterable[tuple[str, str]], widest_name: int | None = None, style: str = "") -> Table:
    """Names and their values, in two columns; values keep their line breaks."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style=style or "dim", no_wrap=True, overflow="ellipsis", max_width=widest_name)
    grid.add_column(style=style, overflow="fold")
    for name, value in entries:
        grid.add_row(Text(safe(name)), Text("\n".join(map(safe, value.split("\n")))))
    return grid


def table(head: Sequence[str], rows: Iterable[Sequence[str | Text]], texts: int) -> Table:
    """A table; its first ``texts`` columns are words, which wrap, the others numbers, aligned to the right."""
    found = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for column, name in enumerate(head):
        words = column < texts
        found.add_column(name, justify="left" if words else "right", no_wrap=not words, overflow="fold")
    for row in rows:
        found.add_row(*(cell if isinstance(cell, Text) else Text(safe(cell)) for cell in row))
    return found
