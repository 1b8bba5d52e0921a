"""What an inspection finds, apart from how it is shown: the terminal and the picture draw the same values.

Values are written for people here, the same way everywhere: ``1,234``, ``12.3 M``, ``4.5 MB``, ``0.12 %``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from cluster.artifacts.artifact import Artifact
from cluster.telemetry.formatting import plain

_BINS = 48


class InspectError(ValueError):
    """There is nothing that can be inspected, or nothing of the kind that was asked for."""


@dataclass(frozen=True)
class Histogram:
    """How often values fall into bins, in all or by series; ``edges`` grow by a factor, or are whole numbers."""

    title: str
    unit: str
    edges: npt.NDArray[np.float64]
    counts: Mapping[str, npt.NDArray[np.int64]]
    """Series to ``[bins]``."""
    note: str = ""

    @classmethod
    def of(cls, title: str, unit: str, series: Mapping[str, Sequence[int]], note: str = "") -> "Histogram":
        """Of positive values, in bins that are equally wide on a logarithmic scale."""
        every = np.concatenate([np.asarray(values, dtype=np.float64) for values in series.values()])
        low, high = max(1.0, float(every.min())), max(2.0, float(every.max()))
        edges = np.geomspace(low, max(high, low * 2) * 1.0001, _BINS + 1)
        edges[0] = min(edges[0], float(every.min()))
        counts = {name: np.histogram(np.asarray(values), edges)[0] for name, values in series.items()}
        return cls(title, unit, edges, counts, note)


@dataclass(frozen=True)
class Bars:
    """A value for each of some names, largest or first on top."""

    title: str
    unit: str
    values: Mapping[str, float]
    shown: Mapping[str, str] = field(default_factory=dict)
    """How a value is written, where it is not plainly."""
    note: str = ""


@dataclass(frozen=True)
class Curves:
    """Values over steps or ranks."""

    title: str
    across: str
    """What ``x`` counts."""
    lines: Mapping[str, tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]]
    """Name to ``x`` and ``y``."""
    logarithmic: Literal["no", "up", "both"] = "no"
    """Which axes: values that differ by orders of magnitude, or these and ranks."""
    note: str = ""


Panel: TypeAlias = Histogram | Bars | Curves


@dataclass(frozen=True)
class Pairs:
    """Names and what stands for them."""

    entries: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Table:
    """Rows of cells; the first ``texts`` columns are words, the others numbers."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    texts: int = 1


@dataclass(frozen=True)
class Sample:
    """A text to be read: spans, and whether each is a special token."""

    label: str
    spans: Sequence[tuple[str, bool]]


@dataclass(frozen=True)
class Words:
    """Lines of text as they are."""

    text: str


Block: TypeAlias = Panel | Pairs | Table | Sample | Words


@dataclass(frozen=True)
class Section:
    """A part of what is shown."""

    title: str
    blocks: Sequence[Block]
    note: str = ""


@dataclass
class Findings:
    """All that was found."""

    title: str
    """Kind and short identity."""
    place: str
    headline: str = ""
    remarks: list[str] = field(default_factory=list)
    """What is unusual enough to be looked at first."""
    sections: list[Section] = field(default_factory=list)

    @property
    def panels(self) -> list[Panel]:
        blocks = (block for section in self.sections for block in section.blocks)
        return [block for block in blocks if isinstance(block, Histogram | Bars | Curves)]


def fact(found: Artifact, name: str) -> Any:
    """A fact of the manifest.

    Raises:
        InspectError: it has no such fact.
    """
    if name not in found.facts:
        made = f"by version {found.manifest['code']['version']}"
        raise InspectError(
            f"{found.location} has no fact {name}, which every {found.kind} artifact of this version has: it was made "
            f"{made} of the code, make it again"
        )
    return found.facts[name]


def flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested values as ``a.b`` and their text; what says nothing is left out."""
    found: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            found += flat(value, f"{prefix}{key}.")
        elif value not in (None, [], ""):
            found.append((f"{prefix}{key}", plain(value)))
    return found
