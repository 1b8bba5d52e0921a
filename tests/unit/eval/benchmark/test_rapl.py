"""Energy counters: reading, adding up, wrap-around and missing permissions, on a copy of the kernel's folder."""

from pathlib import Path

import pytest
from rapl_counters import domain

from eval.benchmark.rapl import Meter


@pytest.fixture
def counters(tmp_path: Path) -> dict[str, Path]:
    """Two sockets with their parts, and the platform, which counts all of it again."""
    named = {
        "intel-rapl:0": "package-0",
        "intel-rapl:0:0": "core",
        "intel-rapl:0:1": "dram",
        "intel-rapl:1": "package-1",
        "intel-rapl:2": "psys",
        "intel-rapl-mmio:0": "package-0",
    }
    return {path: domain(tmp_path, name, path, 100_000) for path, name in named.items()}


def test_packages_and_their_memory_are_added_up_and_nothing_twice(counters: dict[str, Path], tmp_path: Path) -> None:
    meter = Meter(tmp_path)
    assert meter.absent is None
    assert [each.name for each in meter.domains] == ["package-0", "dram", "package-1"]
    before = meter.read()
    for path in counters.values():
        path.write_text("350000\n")
    assert meter.joules(before, meter.read()) == pytest.approx(3 * 0.25)


def test_a_counter_that_starts_again_loses_nothing(counters: dict[str, Path], tmp_path: Path) -> None:
    meter = Meter(tmp_path)
    before = meter.read()
    counters["intel-rapl:1"].write_text("40000\n")
    assert meter.joules(before, meter.read()) == pytest.approx(0.94)


def test_without_counters_it_says_why(
    counters: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    none = Meter(tmp_path / "nothing")
    assert "no energy counters" in none.absent
    assert none.joules(none.read(), none.read()) is None

    def refused(path: Path, **_: object) -> str:
        # As the kernel does for users other than root; tests may run as root.
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied", str(path))
        return whole(path, encoding="ascii")

    whole = Path.read_text
    monkeypatch.setattr(Path, "read_text", refused)
    assert "only root" in Meter(tmp_path).absent
