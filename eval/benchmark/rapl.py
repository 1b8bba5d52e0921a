"""What a computation costs in joules, where the processor counts them (RAPL: Intel, and AMD since Zen).

::

    /sys/class/powercap/intel-rapl:0/{name, energy_uj, max_energy_range_uj}      a package, all its cores
    /sys/class/powercap/intel-rapl:0:1/{…}                                       a part of it: core, uncore, dram

Counted are packages and, where it is told apart, their memory. Whatever else runs on the machine is in it, idle cores
too: joules are of a machine that does one thing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")
JOULE = 1e6
"""In the counters' microjoules."""


@dataclass(frozen=True)
class Domain:
    """One counter."""

    name: str
    path: Path
    range: int
    """Where it starts again from 0, in microjoules."""

    def read(self) -> int:
        return int((self.path / "energy_uj").read_text(encoding="ascii"))


class Meter:
    """The counters of this machine; ``absent`` says why there are none, None where there are."""

    def __init__(self, powercap: Path = POWERCAP) -> None:
        self.domains: tuple[Domain, ...] = ()
        self.absent: str | None = None
        try:
            self.domains = _domains(powercap)
            self.read()
        except PermissionError:
            self.absent = "the energy counters of this machine may be read by root only"
        if self.absent is None and not self.domains:
            self.absent = "this machine shows no energy counters (RAPL)"

    def read(self) -> tuple[int, ...]:
        """All counters now, in microjoules; empty where there are none."""
        return () if self.absent else tuple(domain.read() for domain in self.domains)

    def joules(self, before: Sequence[int], after: Sequence[int]) -> float | None:
        """Between two readings, of which a counter may have started again once; None where there are no counters."""
        if self.absent:
            return None
        spent = 0
        for domain, first, last in zip(self.domains, before, after, strict=True):
            spent += last - first if last >= first else last + domain.range - first
        return spent / JOULE


def _domains(powercap: Path) -> tuple[Domain, ...]:
    """Packages and their memory; ``core`` and ``uncore`` are parts of a package, ``psys`` has all of it once more."""
    found = []
    for path in sorted(powercap.glob("intel-rapl:*")):
        name = (path / "name").read_text(encoding="ascii").strip()
        if name.startswith("package") or name == "dram":
            found.append(Domain(name, path, int((path / "max_energy_range_uj").read_text(encoding="ascii"))))
    return tuple(found)
