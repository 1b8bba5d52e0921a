"""The machine a number was measured on: what it is, holding a measurement to some cores, and whether it was quiet."""

import contextlib
import importlib.metadata
import os
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from cluster.artifacts.errors import StageError
from cluster.models import runtimes

LIBRARIES = ("torch", "onnxruntime", "transformers", "numpy")

# The instructions that decide how fast int8 and bf16 are: x86 first, then Arm.
FLAGS = (
    "avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16",
    "asimddp", "i8mm", "bf16", "sve", "sve2",
)  # fmt: skip

CPUINFO = Path("/proc/cpuinfo")
GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
STAT = Path("/proc/stat")
# Version 2 of control groups, then version 1: what a container sees of its own group.
THROTTLED = (Path("/sys/fs/cgroup/cpu.stat"), Path("/sys/fs/cgroup/cpu/cpu.stat"))

# Time others take on a pinned core is time the measurement waits: 5 % of it lengthens a mean by 5 %, about what tells
# two runs of the same thing apart anyway. The daemons of a node of ours (Ray's among them) stay below it.
MOST_OF_PINNED_CORES = 0.05
# Elsewhere others cost memory bandwidth, shared cache and clock, which matters less: a tenth of the machine.
MOST_OF_MACHINE = 0.10
# Only where the system does not say who took the processor: this many more than our own threads were running.
MOST_LOAD = 0.5
# A system counts in ticks of 10 ms and rounds at both ends of a measurement.
ROUNDING_TICKS = 2


def describe(cpuinfo: Path = CPUINFO) -> dict[str, Any]:
    """Processor, cores, instructions, governor, operating system and library versions; None for what it hides."""
    fields = _first_processor(cpuinfo)
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    return {
        "processor": fields.get("model name") or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "flags": [flag for flag in FLAGS if flag in flags],
        "governor": GOVERNOR.read_text().strip() if GOVERNOR.is_file() else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "libraries": _versions(),
    }


def _versions() -> dict[str, str]:
    """Of the libraries every installation has, and of the other runtimes that are installed."""
    others = {distribution for distribution, _ in runtimes.NEEDS.values()} - {*LIBRARIES}
    found = {name: importlib.metadata.version(name) for name in LIBRARIES}
    for name in sorted(others):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _first_processor(cpuinfo: Path) -> dict[str, str]:
    if not cpuinfo.is_file():
        return {}
    first = cpuinfo.read_text(encoding="utf-8").partition("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def load_average() -> float:
    """Processes that ran or waited over the last minute: near 0 on a quiet machine."""
    return round(os.getloadavg()[0], 2)


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def pinned(threads: int) -> Iterator[list[int] | None]:
    """Hold the calling thread, and those it starts, to ``threads`` cores; yields them, None where no system call can.

    Raises:
        StageError: fewer cores are free to use than threads asked for.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield None
        return
    allowed = os.sched_getaffinity(0)
    if threads > len(allowed):
        raise StageError(
            f"threads = {threads}, but this process may use {len(allowed)} cores: set threads to that or less"
        )
    # The last ones: interrupts and other people's programs tend to sit on the first.
    cores = sorted(allowed)[-threads:]
    os.sched_setaffinity(0, cores)
    try:
        yield cores
    finally:
        os.sched_setaffinity(0, allowed)


@dataclass(frozen=True)
class Conditions:
    """How quiet the machine was while something was measured.

    Shares are of processor time over the measurement, other virtual machines' (steal) among the others'; None where
    the system does not count. They decide: the load average looks back a minute, at work that ended before the
    measurement began, so it is recorded and decides only where there is nothing better.
    """

    threads: int
    load_average: tuple[float, float]
    """Of one minute, before and after; the measurement's own threads are in the second one."""
    others_share_of_machine: float | None
    others_share_of_pinned_cores: float | None
    throttled_seconds: float
    """Time the container was held back by its own CPU limit."""

    @property
    def unfit(self) -> str | None:
        """Why the numbers are not to be relied on; None where they are."""
        if self.throttled_seconds > 0:
            return f"the container's CPU limit held it back for {self.throttled_seconds:.2f} s: ask for whole CPUs"
        if self.others_share_of_machine is None:
            return self._busy_by_load()
        pinned = self.others_share_of_pinned_cores
        if pinned is not None and pinned > MOST_OF_PINNED_CORES:
            return _took(pinned, "the pinned cores", MOST_OF_PINNED_CORES)
        if self.others_share_of_machine > MOST_OF_MACHINE:
            return _took(self.others_share_of_machine, "the machine", MOST_OF_MACHINE)
        return None

    def _busy_by_load(self) -> str | None:
        before, after = self.load_average
        if before <= MOST_LOAD and after - self.threads <= MOST_LOAD:
            return None
        return f"the load average was {before} before and {after} after: at most {MOST_LOAD} beside our own is quiet"

    def facts(self) -> dict[str, Any]:
        """For the machine's description in a benchmark: everything above but the verdict."""
        return {
            "load_average": list(self.load_average),
            "others_share_of_machine": self.others_share_of_machine,
            "others_share_of_pinned_cores": self.others_share_of_pinned_cores,
            "throttled_seconds": self.throttled_seconds,
        }

    def verdict(self) -> dict[str, Any]:
        """``fit``, and the reason in ``unfit`` where it is not."""
        return {"fit": self.unfit is None, "unfit": self.unfit}


def _took(share: float, where: str, most: float) -> str:
    return f"other processes took {share:.1%} of {where}: at most {most:.0%} is quiet"


@dataclass(frozen=True)
class Usage:
    """Processor seconds since the system started: of each core, and of this process with its children that ended."""

    busy: dict[int, float]
    own: float
    clock: float
    throttled: float

    @classmethod
    def now(cls, stat: Path = STAT, throttled: Sequence[Path] = THROTTLED) -> Self:
        """What has been used by now; ``busy`` is empty where the system does not say."""
        held = next((path for path in throttled if path.is_file()), None)
        times = os.times()
        own = times.user + times.system + times.children_user + times.children_system
        return cls(_busy(stat), own, time.monotonic(), _throttled(held) if held else 0.0)


class InterferenceMonitor:
    """Watches what others do to a measurement, from its making until :meth:`conditions`.

    What is measured may run in children that are started and have ended in between.
    """

    def __init__(self, threads: int, cores: Sequence[int] | None) -> None:
        self._threads, self._cores = threads, cores
        self._load, self._start = load_average(), Usage.now()

    def conditions(self) -> Conditions:
        """How quiet it was so far."""
        return conditions(self._start, Usage.now(), self._threads, self._cores, (self._load, load_average()))


def conditions(
    start: Usage, end: Usage, threads: int, cores: Sequence[int] | None, load: tuple[float, float]
) -> Conditions:
    """The conditions between two moments. ``cores`` are those this process was pinned to, with all its work."""
    seconds, own = end.clock - start.clock, end.own - start.own
    busy = {core: end.busy[core] - start.busy[core] for core in end.busy if core in start.busy}

    def others(counted: dict[int, float]) -> float | None:
        if not counted or not sum(end.busy.values()):
            return None
        rounding = ROUNDING_TICKS / os.sysconf("SC_CLK_TCK") * len(counted)
        return round(max(0.0, sum(counted.values()) - own - rounding) / (seconds * len(counted)), 4)

    mine = {core: busy[core] for core in cores or () if core in busy}
    return Conditions(threads, load, others(busy), others(mine), round(end.throttled - start.throttled, 3))


def _busy(stat: Path) -> dict[int, float]:
    """Seconds each core was not idle: user, nice, system, interrupts and steal (guests are in user already)."""
    if not stat.is_file():
        return {}
    second, found = os.sysconf("SC_CLK_TCK"), {}
    for line in stat.read_text(encoding="ascii").splitlines():
        name, *counts = line.split()
        if name.startswith("cpu") and name != "cpu":
            user, nice, system, _idle, _waiting, *rest = map(int, counts[:8])
            found[int(name.removeprefix("cpu"))] = (user + nice + system + sum(rest)) / second
    return found


def _throttled(stat: Path) -> float:
    """Seconds a control group was held back: microseconds in version 2, nanoseconds in version 1; 0 without a limit."""
    values = dict(line.split() for line in stat.read_text(encoding="ascii").splitlines())
    return int(values.get("throttled_usec", 0)) / 1e6 + int(values.get("throttled_time", 0)) / 1e9
