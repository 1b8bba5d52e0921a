"""A table of words, and how every number in it is written, for HTML, Markdown and the terminal alike.

Scores and shares of a score have one decimal, milliseconds two; sizes are in MB (10^6 bytes), parameters in M.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

NOT_MEASURED = "not measured"
NOTHING = "–"


@dataclass(frozen=True)
class Cell:
    """A value, and what is said about it in smaller letters."""

    text: str
    detail: str = ""
    source: str | None = None
    """Path of the artifact it was read from, below the results."""
    tone: str = ""
    """``passed``, ``missed`` or ``unclear``, for what is judged."""

    def __str__(self) -> str:
        return f"{self.text} ({self.detail})" if self.detail else self.text


@dataclass(frozen=True)
class Row:
    """Cells in the order of the table's columns; ``kind`` says how it is shown: main, group, total, paper, failed."""

    cells: tuple[Cell, ...]
    kind: str = ""


@dataclass(frozen=True)
class Table:
    """Columns are titles; those in ``words`` are aligned to the left, all others hold numbers."""

    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    words: frozenset[str] = frozenset()
    findings: tuple[str, ...] = ()
    """What a reader should see in the table, in sentences."""
    notes: tuple[str, ...] = ()

    def only(self, *columns: str) -> "Table":
        """The same table with these columns, those it does not have left out."""
        kept = [self.columns.index(column) for column in columns if column in self.columns]
        rows = tuple(Row(tuple(row.cells[place] for place in kept), row.kind) for row in self.rows)
        return Table(tuple(self.columns[place] for place in kept), rows, self.words)

    def without(self, *columns: str) -> "Table":
        """The same table without these columns."""
        left = self.only(*(column for column in self.columns if column not in columns))
        return Table(left.columns, left.rows, self.words, self.findings, self.notes)


def amount(value: Any, form: str, unit: str = "", scale: float = 1, absent: str = NOT_MEASURED) -> str:
    """``value * scale`` in a format specification and a unit; the words for it where it is None."""
    return absent if value is None else f"{value * scale:{form}}{unit}"


def percent(value: float | None, absent: str = NOT_MEASURED) -> str:
    return amount(value, ".1f", " %", absent=absent)


def megabytes(value: int | None) -> str:
    return amount(value, ".1f" if value is None or value >= 1e5 else ".3f", " MB", 1e-6)


def millions(value: float | None, absent: str = NOT_MEASURED) -> str:
    """With as many decimals as keep a small model or a short run from reading 0.0 M."""
    return amount(value, ".1f" if value is None or value >= 1e6 else ".3f", " M", 1e-6, absent)


def signed(value: float | None, form: str = ".1f", unit: str = "", absent: str = NOT_MEASURED) -> str:
    """With its sign, which is a minus and no hyphen."""
    return amount(value, f"+{form}", unit, absent=absent).replace("-", "\N{MINUS SIGN}")


def ratio(value: float | None, absent: str = NOT_MEASURED) -> str:
    return amount(value, ".2f", "×", absent=absent)


def plain(value: Any) -> str:
    """A value from a machine description or a parity record, for people."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {plain(below)}" for key, below in value.items()) or NOTHING
    if isinstance(value, list | tuple):
        return ", ".join(plain(below) for below in value) or NOTHING
    return NOTHING if value is None or value == "" else str(value)


def cells(texts: Sequence[str]) -> tuple[Cell, ...]:
    return tuple(Cell(text) for text in texts)
