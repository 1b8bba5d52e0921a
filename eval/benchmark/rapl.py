"""Energy of a computation in joules, from the processor's counters (RAPL: Intel, and AMD since Zen).

::

    /sys/class/powercap/intel-rapl:0/{name, energy_uj, max_energy_range_uj}      a package, all its cores
    /sys/class/powercap/intel-rapl:0:1/{…}                                       a part of it: core, uncore, dram

The meter counts packages and, where it has a counter, their memory. That includes idle cores and other processes, so
the machine should do nothing else.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")
JOULE = 1e6
"""Microjoules, the unit of the counters."""


@dataclass(frozen=True)
class Domain:
    """One counter."""

    name: str
    path: Path
    range: int
    """Microjoules at which it restarts from 0."""

    def read(self) -> int:
        return int((self.path / "energy_uj").read_text(encoding="ascii"))


class Meter:
    """The counters of this machine; without any, ``absent`` says why."""

    def __init__(self, powercap: Path = POWERCAP) -> None:
        self.domains: tuple[Domain, ...] = ()
        self.absent: str | None = None
        try:
            self.domains = _domains(powercap)
            self.read()
        except PermissionError:
            self.absent = "only root may read the energy counters of this machine"
        if self.absent is None and not self.domains:
            self.absent = "this machine has no energy counters (RAPL)"

    def read(self) -> tuple[int, ...]:
        """All counters now, in microjoules; empty where there are none."""
        return () if self.absent else tuple(domain.read() for domain in self.domains)

    def joules(self, before: Sequence[int], after: Sequence[int]) -> float | None:
        """Joules between two readings, in which a counter may restart once; None without counters."""
        if self.absent:
            return None
        readings = zip(self.domains, before, after, strict=True)
        return sum(last - first + (domain.range if last < first else 0) for domain, first, last in readings) / JOULE


def _domains(powercap: Path) -> tuple[Domain, ...]:
    """Packages and their memory; a package includes ``core`` and ``uncore``, and ``psys`` would count it twice."""
    found = []
    for path in sorted(powercap.glob("intel-rapl:*")):
        name = (path / "name").read_text(encoding="ascii").strip()
        if name.startswith("package") or name == "dram":
            found.append(Domain(name, path, int((path / "max_energy_range_uj").read_text(encoding="ascii"))))
    return tuple(found)
