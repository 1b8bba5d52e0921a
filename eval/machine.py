"""The machine a number was measured on, and holding a measurement to some of its cores."""

import contextlib
import importlib.metadata
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cluster.stage import StageError

LIBRARIES = ("torch", "onnxruntime", "transformers", "numpy")

# The instructions that decide how fast int8 and bf16 are: x86 first, then Arm.
FLAGS = (
    "avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16",
    "asimddp", "i8mm", "bf16", "sve", "sve2",
)  # fmt: skip

CPUINFO = Path("/proc/cpuinfo")
GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


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
        "libraries": {name: importlib.metadata.version(name) for name in LIBRARIES},
    }


def _first_processor(cpuinfo: Path) -> dict[str, str]:
    if not cpuinfo.is_file():
        return {}
    first = cpuinfo.read_text(encoding="utf-8").partition("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def load_average() -> float:
    """Processes that ran or waited over the last minute: near 0 on a quiet machine."""
    return round(os.getloadavg()[0], 2)


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
