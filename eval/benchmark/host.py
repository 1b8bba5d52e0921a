"""The machine of a measurement: its description, pinning threads to cores, and interference by other processes."""

import contextlib
import dataclasses
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

# Instructions that decide the speed of int8 and bf16: x86 first, then Arm.
FLAGS = (
    "avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16",
    "asimddp", "i8mm", "bf16", "sve", "sve2",
)  # fmt: skip

CPUINFO = Path("/proc/cpuinfo")
GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
STAT = Path("/proc/stat")
# The container's own control group, in version 2 and in version 1.
THROTTLED = (Path("/sys/fs/cgroup/cpu.stat"), Path("/sys/fs/cgroup/cpu/cpu.stat"))

# Other processes on a pinned core make the measurement wait: 5 % of the time lengthens a mean by 5 %, about the spread
# of equal runs. The daemons of a node, Ray's included, stay below it.
MOST_OF_PINNED_CORES = 0.05
# On other cores they cost memory bandwidth, shared cache and clock rate, which matters less.
MOST_OF_MACHINE = 0.10
# Load average beyond our own threads; decides only where the system does not count processor time.
MOST_LOAD = 0.5
# The kernel counts in ticks of 10 ms, and rounds at both ends of a measurement.
ROUNDING_TICKS = 2


def describe(cpuinfo: Path = CPUINFO) -> dict[str, Any]:
    """Processor, cores, instructions, governor, system and library versions; None where unknown."""
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
    """Versions of the required libraries, and of the optional runtimes that are installed."""
    others = {runtime.distribution for runtime in runtimes.RUNTIMES.values()} - {*LIBRARIES}
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
    for name in sorted(others):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def _first_processor(cpuinfo: Path) -> dict[str, str]:
    if not cpuinfo.is_file():
        return {}
    first = cpuinfo.read_text(encoding="utf-8").partition("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def load_average() -> float:
    """Processes that ran or waited, averaged over the last minute; near 0 on a quiet machine."""
    return round(os.getloadavg()[0], 2)


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def pinned(threads: int) -> Iterator[list[int] | None]:
    """Pin the calling thread, and threads it starts, to ``threads`` cores; yields these, None where not supported.

    Raises:
        StageError: this process may use fewer cores than threads.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield None
        return
    allowed = os.sched_getaffinity(0)
    if threads > len(allowed):
        raise StageError(
            f"threads = {threads}, but this process may use {len(allowed)} cores: set threads to that or less"
        )
    # The last ones: interrupts and other programs tend to use the first.
    cores = sorted(allowed)[-threads:]
    os.sched_setaffinity(0, cores)
    try:
        yield cores
    finally:
        os.sched_setaffinity(0, allowed)


@dataclass(frozen=True)
class Conditions:
    """How much other processes interfered with a measurement.

    Shares are of the processor time during the measurement, and include other virtual machines (steal); None where the
    system does not count it. The load average decides only then, because it includes the minute before the measurement.
    """

    threads: int
    load_average: tuple[float, float]
    """Before and after; the second includes the measurement's own threads."""
    others_share_of_machine: float | None
    others_share_of_pinned_cores: float | None
    throttled_seconds: float
    """Time for which the container's CPU limit stopped it."""

    @property
    def unfit(self) -> str | None:
        """Why the numbers are unreliable; None where they are reliable."""
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
        return f"the load average was {before} before and {after} after: quiet is {MOST_LOAD} besides our own threads"

    def facts(self) -> dict[str, Any]:
        """The measured values, for ``conditions`` of a benchmark."""
        values = dataclasses.asdict(self) | {"load_average": list(self.load_average)}
        return {name: value for name, value in values.items() if name != "threads"}

    def verdict(self) -> dict[str, Any]:
        """``fit``, and otherwise the reason in ``unfit``."""
        return {"fit": self.unfit is None, "unfit": self.unfit}


def _took(share: float, where: str, most: float) -> str:
    return f"other processes took {share:.1%} of {where}: at most {most:.0%} is quiet"


@dataclass(frozen=True)
class Usage:
    """Processor seconds so far: of each core since boot, and of this process with its ended children."""

    busy: dict[int, float]
    own: float
    clock: float
    throttled: float

    @classmethod
    def now(cls, stat: Path = STAT, throttled: Sequence[Path] = THROTTLED) -> Self:
        """Read the counters; ``busy`` is empty where the system has none."""
        group = next((path for path in throttled if path.is_file()), None)
        times = os.times()
        own = times.user + times.system + times.children_user + times.children_system
        return cls(_busy(stat), own, time.monotonic(), _throttled(group) if group else 0.0)


class InterferenceMonitor:
    """Measures interference from its creation until :meth:`conditions`.

    The measured work may run in child processes that start and end in between.
    """

    def __init__(self, threads: int, cores: Sequence[int] | None) -> None:
        self._threads, self._cores = threads, cores
        self._load, self._start = load_average(), Usage.now()

    def conditions(self) -> Conditions:
        return conditions(self._start, Usage.now(), self._threads, self._cores, (self._load, load_average()))


def conditions(
    start: Usage, end: Usage, threads: int, cores: Sequence[int] | None, load: tuple[float, float]
) -> Conditions:
    """The conditions between two readings; ``cores`` are those that this process and its children were pinned to."""
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
    """Seconds each core was not idle: user (includes guests), nice, system, interrupts and steal."""
    if not stat.is_file():
        return {}
    second, seconds = os.sysconf("SC_CLK_TCK"), {}
    for line in stat.read_text(encoding="ascii").splitlines():
        name, *counts = line.split()
        if name.startswith("cpu") and name != "cpu":
            user, nice, system, _idle, _waiting, *rest = map(int, counts[:8])
            seconds[int(name.removeprefix("cpu"))] = (user + nice + system + sum(rest)) / second
    return seconds


def _throttled(stat: Path) -> float:
    """Seconds a control group was throttled (version 2 counts µs, version 1 ns); 0 without a limit."""
    values = dict(line.split() for line in stat.read_text(encoding="ascii").splitlines())
    return int(values.get("throttled_usec", 0)) / 1e6 + int(values.get("throttled_time", 0)) / 1e9
