"""How people read numbers: the one set of formats for command lines, plans, reports and error messages."""

from collections.abc import Mapping
from typing import Any

NOT_MEASURED = "not measured"
NOTHING = "–"
_LONGEST_LIST = 12


def count(value: float) -> str:
    """A number of things, or an amount per second: ``12.5``, ``3,105``, ``3.1 M``."""
    for scale, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if abs(value) >= scale:
            return f"{value / scale:.3g} {letter}" if abs(value) < 1e3 * scale else f"{value / scale:,.0f} {letter}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def plural(number: int, one: str, several: str = "") -> str:
    """``1 file``, ``3 files``; ``several`` where the plural is not ``one`` with an s."""
    return f"{number:,} {one if number == 1 else several or f'{one}s'}"


def file_size(num_bytes: float) -> str:
    """Bytes on a disk or a network, in powers of 1000: ``3.2 GB``."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} bytes" if unit == "bytes" else f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:,.4g} TB"


def memory_size(num_bytes: float) -> str:
    """Bytes of memory, in powers of 1024: ``3.2 GiB``."""
    return f"{num_bytes / 2**20:,.0f} MiB" if num_bytes < 2**30 / 10 else f"{num_bytes / 2**30:,.1f} GiB"


def duration(seconds: float) -> str:
    """``36.5 ms``, ``2.34 s``, ``12 min``, ``3.4 h``."""
    if seconds < 90:
        return f"{1000 * seconds:.3g} ms" if 0 < seconds < 0.1 else f"{seconds:.3g} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 360_000 else f"{seconds / 3600:,.0f} h"


def elapsed(seconds: float) -> str:
    """A time that has passed, to the second or minute: ``45 s``, ``6 min 52 s``, ``3 h 05 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60:02d} min"


def hours(value: float) -> str:
    """:func:`duration` of a number of hours."""
    return duration(3600 * value)


def share(part: float, whole: float) -> str:
    """``part`` in percent of ``whole``; a small share is never written as 0 %."""
    percent = 100 * part / whole if whole else 0.0
    if percent == 0 or percent >= 99.95:
        return f"{percent:.0f} %"
    if percent < 0.01:
        return "< 0.01 %"
    return f"{percent:.1f} %" if percent >= 1 else f"{percent:.2f} %"


def amount(value: Any, form: str, unit: str = "", scale: float = 1, absent: str = NOT_MEASURED) -> str:
    """``value * scale`` in a format specification, with its unit; ``absent`` where it is None."""
    return absent if value is None else f"{value * scale:{form}}{unit}"


def percent(value: float | None, absent: str = NOT_MEASURED) -> str:
    """A score or share that is in percent already, with one decimal."""
    return amount(value, ".1f", " %", absent=absent)


def megabytes(value: int | None) -> str:
    """Bytes in MB (10^6) alone, to compare the rows of a column."""
    return amount(value, ".1f" if value is None or value >= 1e5 else ".3f", " MB", 1e-6)


def millions(value: float | None, absent: str = NOT_MEASURED) -> str:
    """In millions alone; with three decimals where a small model would read 0.0 M."""
    return amount(value, ".1f" if value is None or value >= 1e6 else ".3f", " M", 1e-6, absent)


def signed(value: float | None, form: str = ".1f", unit: str = "", absent: str = NOT_MEASURED) -> str:
    """With its sign, and a minus instead of a hyphen."""
    return amount(value, f"+{form}", unit, absent=absent).replace("-", "\N{MINUS SIGN}")


def ratio(value: float | None, absent: str = NOT_MEASURED) -> str:
    """``1.63×``."""
    return amount(value, ".2f", "×", absent=absent)


def plain(value: Any) -> str:
    """A JSON value without its syntax; long lists are cut."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, list | tuple):
        between = "\n" if value and isinstance(value[0], Mapping) else ", "
        more = f" … ({len(value):,} in all)" if len(value) > _LONGEST_LIST else ""
        return between.join(map(plain, value[:_LONGEST_LIST])) + more or NOTHING
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {plain(inner)}" for key, inner in value.items() if inner not in (None, "")) or NOTHING
    return NOTHING if value in (None, "") else str(value)
