"""Numbers in words, and lines and tables of them: how a plan speaks."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any


def count(value: float) -> str:
    """A number of things: exact while it is short."""
    if abs(value) < 1e6:
        return f"{value:,.0f}"
    scale, letter = next((scale, letter) for scale, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M")) if value >= scale)
    return f"{value / scale:.3g} {letter}" if value < 1e3 * scale else f"{value / scale:,.0f} {letter}"


def plural(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def file_size(num_bytes: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} bytes" if unit == "bytes" else f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:,.4g} TB"


def share(part: float, whole: float) -> str:
    """In percent; next to nothing is not written as nothing."""
    percent = 100 * part / whole if whole else 0.0
    if percent == 0 or percent >= 99.95:
        return f"{percent:.0f} %"
    if percent < 0.01:
        return "< 0.01 %"
    return f"{percent:.1f} %" if percent >= 1 else f"{percent:.2f} %"


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def plain(value: Any) -> str:
    """A JSON value in words: long lists and numbers cut to what can be read."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, list):
        between = "\n" if value and isinstance(value[0], Mapping) else ", "
        inside = between.join(map(plain, value[:12]))
        return inside + (f" … ({len(value):,} in all)" if len(value) > 12 else "")
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {plain(entry)}" for key, entry in value.items() if entry not in (None, ""))
    return str(value)


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
