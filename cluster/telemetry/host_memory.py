"""The one reader of main memory: what this process uses, what it may use, and the kernel's out-of-memory kills.

Containers and batch systems give a process less than the machine has: the kernel kills processes above the limit of
their control group, however much the machine has free.
"""

import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil

from cluster.telemetry.formatting import memory_size

_GROUPS = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")
_STATUS = Path("/proc/self/status")
# Version 2 has one tree of groups, version 1 one for memory alone: names of limit and use in each.
_VERSIONS = (("", "memory.max", "memory.current"), ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes"))


def total(groups: Path = _GROUPS, own: Path = _OWN) -> int:
    """Bytes that the processes of this control group may use together."""
    limits = (limit for limit, _ in _limits(groups, own))
    return min([int(psutil.virtual_memory().total), *limits])


def available(groups: Path = _GROUPS, own: Path = _OWN) -> int:
    """Free bytes of this control group and of the machine."""
    free = (max(0, limit - used) for limit, used in _limits(groups, own))
    return min([int(psutil.virtual_memory().available), *free])


def resident() -> int:
    """Bytes of main memory that this process uses."""
    return int(psutil.Process().memory_info().rss)


def status(field: str) -> int | None:
    """Bytes of this process by a field that Linux reports, or None elsewhere.

    ``VmRSS``: resident; ``VmHWM``: the most that was resident since the last :func:`reset_peak`; ``VmData``: private.
    Unlike ``ru_maxrss``, ``VmHWM`` does not begin with the memory of the parent process.
    """
    if not _STATUS.is_file():
        return None
    lines = _STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None)


def reset_peak() -> None:
    """Make ``VmHWM`` begin again at what is resident now; needs Linux."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def memory_numbers() -> str:
    """Memory of this process, its node and its GPU, for an error message."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    text = f"its worker had up to {memory_size(peak)}, {node_memory()}"
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return text
    free, size = torch.cuda.mem_get_info()
    return f"{text}, {memory_size(free)} of {memory_size(size)} on its GPU"


def node_memory() -> str:
    """Free and total memory of the node, for an error message."""
    machine = psutil.virtual_memory()
    return f"{memory_size(machine.available)} of {memory_size(machine.total)} are free on the node"


def memory_kills() -> int | None:
    """Number of processes that the kernel has killed in this container for lack of memory; None where unknown."""
    try:
        group = _OWN.read_text(encoding="utf-8").strip().rpartition(":")[2].lstrip("/")
        counters = (_GROUPS / group / "memory.events", _GROUPS / "memory.events", Path("/proc/vmstat"))
        return _fields(next(path for path in counters if path.is_file())).get("oom_kill")
    except (OSError, ValueError, StopIteration):
        return None


def _limits(groups: Path, own: Path) -> Iterator[tuple[int, int]]:
    """Limit and use, in bytes, of every group of this process that has a limit."""
    if not own.is_file():  # not Linux
        return
    for line in own.read_text(encoding="utf-8").splitlines():
        _, controllers, path = line.split(":", 2)
        tree, limit, used = _VERSIONS[1 if controllers else 0]
        if controllers and "memory" not in controllers.split(","):
            continue
        # In a container the tree often begins at the group itself; its path, as the host sees it, is absent there.
        inside = groups / tree / path.strip("/")
        for group in (inside, *inside.parents):
            if group.is_relative_to(groups / tree) and (group / limit).is_file():
                text = (group / limit).read_text(encoding="ascii").strip()
                if text != "max":
                    yield int(text), int((group / used).read_text(encoding="ascii")) - _cached(group)


def _cached(group: Path) -> int:
    """Bytes of cached files: they count as used, and the kernel frees them when a process needs memory."""
    fields = _fields(group / "memory.stat")
    return fields.get("total_inactive_file", fields.get("inactive_file", 0))


def _fields(path: Path) -> dict[str, int]:
    return {name: int(value) for name, value in map(str.split, path.read_text(encoding="ascii").splitlines())}
