"""Memory limits of containers, read from control groups of both versions."""

from pathlib import Path

import psutil
import pytest

from cluster.telemetry import host_memory

MIB = 2**20


def group(folder: Path, limit: str, used: int, cached: int, version: int = 2) -> None:
    folder.mkdir(parents=True)
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    stat = f"anon {used - cached}\ninactive_file {cached}"
    for name, text in zip((*names, "memory.stat"), (limit, str(used), stat), strict=True):
        (folder / name).write_text(f"{text}\n", encoding="ascii")


def own(tmp_path: Path, *lines: str) -> Path:
    (tmp_path / "cgroup").write_text("".join(f"{line}\n" for line in lines), encoding="ascii")
    return tmp_path / "cgroup"


@pytest.mark.parametrize("path", ["/", "/seen/from/outside"])
def test_a_container_has_its_limit(tmp_path: Path, path: str) -> None:
    group(tmp_path / "groups", str(64 * MIB), 30 * MIB, 10 * MIB)
    given = (tmp_path / "groups", own(tmp_path, f"0::{path}"))
    assert host_memory.total(*given) == 64 * MIB
    assert host_memory.available(*given) == 44 * MIB


def test_the_smallest_limit_of_all_parent_groups_counts(tmp_path: Path) -> None:
    group(tmp_path / "groups" / "batch", str(32 * MIB), 8 * MIB, 0)
    group(tmp_path / "groups" / "batch" / "job", "max", 4 * MIB, 0)
    given = (tmp_path / "groups", own(tmp_path, "0::/batch/job"))
    assert (host_memory.total(*given), host_memory.available(*given)) == (32 * MIB, 24 * MIB)


def test_the_older_kind_of_group_is_read_too(tmp_path: Path) -> None:
    group(tmp_path / "groups" / "memory" / "job", str(16 * MIB), 8 * MIB, 4 * MIB, version=1)
    given = (tmp_path / "groups", own(tmp_path, "5:cpu:/job", "4:memory:/job", "0::/"))
    assert (host_memory.total(*given), host_memory.available(*given)) == (16 * MIB, 12 * MIB)


def test_without_a_limit_all_memory_counts(tmp_path: Path) -> None:
    group(tmp_path / "groups", "max", 8 * MIB, 0)
    assert host_memory.total(tmp_path / "groups", own(tmp_path, "0::/")) == psutil.virtual_memory().total
    assert host_memory.total(tmp_path / "none", tmp_path / "none") == psutil.virtual_memory().total
    assert 0 < host_memory.available() <= host_memory.total()
