"""Main memory of this machine, as far as it is ours: containers and batch systems give a part of it.

Whoever takes more than the limit of the control group is killed, however much the machine has free.
"""

import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil


def memory_numbers() -> str:
    """What this process and its machine had of memory, in words."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    words = f"its worker had up to {_gib(peak)}, {node_memory()}"
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return words
    free, total = torch.cuda.mem_get_info()
    return f"{words}, {_gib(free)} of {_gib(total)} on its GPU"


def node_memory() -> str:
    """What the machine has of memory, in words."""
    machine = psutil.virtual_memory()
    return f"{_gib(machine.available)} of {_gib(machine.total)} are free on the node"


def memory_kills() -> int | None:
    """How many processes the kernel has killed in this container because memory ran out; None where it does not say."""
    try:
        group = Path("/proc/self/cgroup").read_text(encoding="utf-8").strip().rpartition(":")[2].lstrip("/")
        for folder in (Path("/sys/fs/cgroup") / group, Path("/sys/fs/cgroup")):
            if (folder / "memory.events").is_file():
                return _counter(folder / "memory.events")
        return _counter(Path("/proc/vmstat"))
    except (OSError, ValueError):
        return None


def _counter(path: Path) -> int | None:
    lines = (line.split() for line in path.read_text(encoding="utf-8").splitlines())
    return next((int(words[1]) for words in lines if words[0] == "oom_kill"), None)


def _gib(count: float) -> str:
    return f"{count / 2**30:.1f} GiB"


_GROUPS = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")
# Version 2 has one tree of groups, version 1 one for memory alone: names of limit and use in each.
_VERSIONS = (("", "memory.max", "memory.current"), ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes"))


def total(groups: Path = _GROUPS, own: Path = _OWN) -> int:
    """Bytes this process and its neighbours in the control group may take together."""
    limits = (limit for limit, _ in _limits(groups, own))
    return min([int(psutil.virtual_memory().total), *limits])


def available(groups: Path = _GROUPS, own: Path = _OWN) -> int:
    """Bytes that may be taken beside what is taken now."""
    free = (max(0, limit - used) for limit, used in _limits(groups, own))
    return min([int(psutil.virtual_memory().available), *free])


def _limits(groups: Path, own: Path) -> Iterator[tuple[int, int]]:
    """Limit and use, in bytes, of every group this process is in that has a limit."""
    if not own.is_file():  # no Linux
        return
    for line in own.read_text(encoding="utf-8").splitlines():
        _, controllers, path = line.split(":", 2)
        tree, limit, used = _VERSIONS[1 if controllers else 0]
        if controllers and "memory" not in controllers.split(","):
            continue
        # In a container the tree often begins at the group itself, and its path, seen from outside, is not there.
        inside = groups / tree / path.strip("/")
        for group in (inside, *inside.parents):
            if group.is_relative_to(groups / tree) and (group / limit).is_file():
                text = (group / limit).read_text(encoding="ascii").strip()
                if text != "max":
                    yield int(text), int((group / used).read_text(encoding="ascii")) - _cached(group)


def _cached(group: Path) -> int:
    """Bytes counted as used that files left in memory, and that go when there is need for them."""
    lines = dict(line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
    return int(lines.get("total_inactive_file", lines.get("inactive_file", 0)))
