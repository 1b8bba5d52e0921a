"""What an inspection finds. The terminal and the picture draw the same values."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from cluster.artifacts.artifact import Artifact
from cluster.telemetry.formatting import plain, share

_BINS = 48


class InspectError(ValueError):
    """The place or the file cannot be inspected."""


@dataclass(frozen=True)
class Panel:
    """A chart."""

    title: str
    unit: str
    """What the horizontal axis counts."""
    note: str = field(default="", kw_only=True)


@dataclass(frozen=True)
class Histogram(Panel):
    """Counts of positive values in bins of equal width on a logarithmic scale."""

    edges: npt.NDArray[np.float64]
    counts: Mapping[str, npt.NDArray[np.int64]]
    """Series to ``[bins]``."""

    @classmethod
    def of(cls, title: str, unit: str, series: Mapping[str, Sequence[int]], note: str = "") -> "Histogram":
        every = np.concatenate([np.asarray(values, dtype=np.float64) for values in series.values()])
        low, high = max(1.0, float(every.min())), max(2.0, float(every.max()))
        edges = np.geomspace(low, max(high, low * 2) * 1.0001, _BINS + 1)
        edges[0] = min(edges[0], float(every.min()))
        counts = {name: np.histogram(np.asarray(values), edges)[0] for name, values in series.items()}
        return cls(title, unit, edges, counts, note=note)


@dataclass(frozen=True)
class Bars(Panel):
    """One value per name, from top to bottom."""

    values: Mapping[str, float]
    text: Callable[[float], str] = plain
    """Writes a value."""


@dataclass(frozen=True)
class Curves(Panel):
    """Values over steps or ranks."""

    lines: Mapping[str, tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]]
    """Name to ``x`` and ``y``."""
    logarithmic: Literal["no", "up", "both"] = "no"
    """Logarithmic axes: none, the vertical one if values differ by orders of magnitude, or both."""


@dataclass(frozen=True)
class Pairs:
    """Names and their texts."""

    entries: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Table:
    """Rows of cells; the first ``texts`` columns are words, the others numbers."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    texts: int = 1


@dataclass(frozen=True)
class Sample:
    """A text: spans, and whether each is a special token."""

    label: str
    spans: Sequence[tuple[str, bool]]


@dataclass(frozen=True)
class Words:
    """Lines of text, shown unchanged."""

    text: str


Block: TypeAlias = Panel | Pairs | Table | Sample | Words


@dataclass(frozen=True)
class Section:
    """A titled part of the page."""

    title: str
    blocks: Sequence[Block]
    note: str = ""


@dataclass(frozen=True)
class Findings:
    """The whole page. The view of a kind fills in sections and remarks; the command adds the rest."""

    title: str = ""
    """Kind and short identity."""
    place: str = ""
    headline: str = ""
    remarks: Sequence[str] = ()
    """Problems, shown first."""
    sections: Sequence[Section] = ()

    @property
    def panels(self) -> list[Panel]:
        return [block for section in self.sections for block in section.blocks if isinstance(block, Panel)]


def fact(found: Artifact, name: str) -> Any:
    """A fact of the manifest.

    Raises:
        InspectError: an older version of the code, which did not record it, made the artifact.
    """
    if name not in found.facts:
        raise InspectError(
            f"{found.location} has no fact {name}, which every {found.kind} artifact of this version has: version "
            f"{found.manifest['code']['version']} of the code made it, make it again"
        )
    return found.facts[name]


def flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested values as ``a.b`` and their text, without the empty ones."""
    found: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            found += flat(value, f"{prefix}{key}.")
        elif value not in (None, [], ""):
            found.append((f"{prefix}{key}", plain(value)))
    return found


def evenly(items: Sequence[Any], most: int) -> list[Any]:
    """At most ``most`` of the items, evenly spread, in order."""
    places = np.linspace(0, len(items) - 1, min(most, len(items))).round().astype(int)
    return [items[place] for place in places.tolist()]


def with_share(total: float) -> Callable[[float], str]:
    """Writes counts with their share of ``total``."""
    return lambda number: f"{number:,.0f}  {share(number, total)}"
