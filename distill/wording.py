"""Numbers in words, and lines and tables of them: how a plan speaks."""

import textwrap
from collections.abc import Sequence

_WIDTH = 112
_LABEL = 22


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns aligned: the first to the left, the others to the right."""
    widths = [max(len(row[column]) for row in [heads, *rows]) for column in range(len(heads))]
    lines = []
    for first, *others in [heads, *rows]:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append(f"  {'   '.join([first.ljust(widths[0]), *cells])}".rstrip())
    return lines


def hours(value: float) -> str:
    if value < 0.1:
        return f"{value * 60:.1f} min"
    return f"{value:.1f} h" if value < 100 else f"{value:,.0f} h"


def seconds(value: float) -> str:
    return f"{value * 1000:.1f} ms" if value < 0.1 else f"{value:.2f} s"


def gb(count: float) -> str:
    """Bytes on disk or on the wire, in words."""
    return (
        f"{count / 1e6:,.1f} MB"
        if count < 1e8
        else f"{count / 1e9:,.2f} GB"
        if count < 1e10
        else f"{count / 1e9:,.0f} GB"
    )


def counted(count: int, one: str, several: str) -> str:
    return f"{count:,} {one if count == 1 else several}"


def line(label: str, value: str) -> str:
    indent = " " * (2 + _LABEL)
    return textwrap.fill(f"  {label:<{_LABEL}}{value}", _WIDTH, subsequent_indent=indent, break_on_hyphens=False)


def device_hours(value: float) -> str:
    return f"{value:,.1f}" if value >= 1 else f"{value:.2g}"


def size(count: float) -> str:
    """Bytes of memory, in words."""
    return f"{count / 2**20:,.0f} MiB" if count < 2**30 / 10 else f"{count / 2**30:,.1f} GiB"
