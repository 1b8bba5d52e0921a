"""A table of texts for HTML, Markdown and the terminal alike.

Scores and shares of a score have one decimal, milliseconds two; sizes are in MB (10^6 bytes), parameters in M.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from cluster.telemetry.formatting import NOT_MEASURED, NOTHING


@dataclass(frozen=True)
class Cell:
    """A value, with a detail in smaller letters."""

    text: str
    detail: str = ""
    source: str | None = None
    """Path of the artifact it was read from, below the results."""
    tone: str = ""
    """``passed``, ``missed`` or ``unclear`` for a verdict, ``failed`` where a job failed."""

    @property
    def is_empty(self) -> bool:
        """Whether it holds no value."""
        return self.text in ("", NOTHING, NOT_MEASURED) and not self.detail

    def __str__(self) -> str:
        return f"{self.text} ({self.detail})" if self.detail else self.text


@dataclass(frozen=True)
class Row:
    """Cells in the order of the table's columns; ``kind`` sets the style: main, group, total, paper, failed."""

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
    caption: str = ""
    """What the table holds, for those who do not see the heading above it."""

    def only(self, *columns: str) -> "Table":
        """The same table with those of these columns that it has."""
        kept = [self.columns.index(column) for column in columns if column in self.columns]
        rows = tuple(Row(tuple(row.cells[place] for place in kept), row.kind) for row in self.rows)
        return replace(self, columns=tuple(self.columns[place] for place in kept), rows=rows)

    def without(self, *columns: str) -> "Table":
        """The same table without these columns."""
        return self.only(*(column for column in self.columns if column not in columns))

    def dense(self, *always: str) -> "Table":
        """The same table without columns in which no row has a value; columns in ``always`` stay."""
        empty = [
            column
            for place, column in enumerate(self.columns)
            if all(row.cells[place].is_empty for row in self.rows) and column not in always
        ]
        return self.without(*empty)


def cells(texts: Sequence[str]) -> tuple[Cell, ...]:
    return tuple(Cell(text) for text in texts)
