"""The description of the machine, pinning to cores, and whether the machine was quiet."""

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest
from waiting import wait_until

from cluster.artifacts import errors
from eval.benchmark import host
from eval.benchmark.host import Conditions, Usage, conditions

TICK = 1 / os.sysconf("SC_CLK_TCK")
QUIET = Conditions(1, (0.1, 0.9), 0.02, 0.01, 0.0)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not pin threads to cores")
def test_pinning_is_undone_even_after_an_error() -> None:
    before = os.sched_getaffinity(0)

    def measure_and_fail() -> None:
        with host.pinned(1) as cores:
            assert os.sched_getaffinity(0) == set(cores)
            assert len(cores) == 1
            raise KeyError("measuring failed")

    with pytest.raises(KeyError):
        measure_and_fail()
    assert os.sched_getaffinity(0) == before
    with pytest.raises(errors.StageError, match=r"may use .* cores"), host.pinned(len(before) + 1):
        pass


def test_instructions_are_read_from_the_processors_own_list(tmp_path: Path) -> None:
    x86 = (
        "processor\t: 0\nmodel name\t: Xeon 8\nflags\t\t: fpu avx2 avx512_vnni\n\nprocessor\t: 1\nmodel name\t: other\n"
    )
    (tmp_path / "x86").write_text(x86)
    about = host.describe(tmp_path / "x86")
    assert (about["processor"], about["flags"]) == ("Xeon 8", ["avx2", "avx512_vnni"])
    (tmp_path / "arm").write_text("processor\t: 0\nFeatures\t: fp asimd asimddp i8mm\n")
    assert host.describe(tmp_path / "arm")["flags"] == ["asimddp", "i8mm"]
    assert host.describe(tmp_path / "none")["flags"] == []


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"load_average": (3.0, 3.0)}, None),  # looks back a minute, including processes that have ended
        ({"others_share_of_pinned_cores": 0.06}, "other processes took 6.0% of the pinned cores"),
        ({"others_share_of_machine": 0.12}, "other processes took 12.0% of the machine"),
        ({"others_share_of_pinned_cores": None}, None),
        ({"throttled_seconds": 0.25}, "CPU limit held it back for 0.25 s"),
        ({"others_share_of_machine": None}, None),
        ({"others_share_of_machine": None, "load_average": (0.7, 1.2)}, "load average was 0.7 before"),
        ({"others_share_of_machine": None, "load_average": (0.1, 1.6)}, "load average was 0.1 before and 1.6 after"),
        ({"others_share_of_machine": None, "load_average": (0.1, 2.4), "threads": 2}, None),
    ],
)
def test_a_machine_that_was_not_quiet_is_unfit_with_the_reason(changes: dict, reason: str | None) -> None:
    found = Conditions(**{**QUIET.__dict__, **changes})
    said = found.verdict()
    assert said["fit"] == (reason is None)
    assert said["unfit"] is None if reason is None else reason in said["unfit"]
    assert Conditions(found.threads, **{**found.facts(), "load_average": found.load_average}) == found


def test_usage_of_this_process_is_not_counted_as_others() -> None:
    start = Usage({0: 100.0, 1: 200.0}, own=5.0, clock=1000.0, throttled=1.0)
    # Ten seconds, 9.5 of them ours on core 1, where another took 0.3; 2 seconds of others on core 0.
    end = Usage({0: 102.0, 1: 209.8}, own=14.5, clock=1010.0, throttled=1.5)
    found = conditions(start, end, 1, [1], (0.0, 1.0))
    assert found.others_share_of_pinned_cores == pytest.approx((0.3 - 2 * TICK) / 10, abs=1e-4)
    assert found.others_share_of_machine == pytest.approx((2.3 - 4 * TICK) / 20, abs=1e-4)
    assert found.throttled_seconds == 0.5
    unpinned = conditions(start, end, 1, None, (0.0, 1.0))
    assert unpinned.others_share_of_pinned_cores is None
    assert unpinned.others_share_of_machine == found.others_share_of_machine


@pytest.mark.parametrize("busy", [{}, {0: 0.0}], ids=["no counts", "counts that stand still"])
def test_a_system_that_does_not_count_is_judged_by_its_load(busy: dict[int, float]) -> None:
    found = conditions(Usage(busy, 0.0, 0.0, 0.0), Usage(busy, 1.0, 1.0, 0.0), 1, [0], (2.0, 3.0))
    assert (found.others_share_of_machine, found.others_share_of_pinned_cores) == (None, None)
    assert found.unfit is not None


def test_usage_is_read_from_the_systems_own_counts(tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    # user nice system idle iowait irq softirq steal guest guest_nice
    stat.write_text("cpu  1 2 3 4 5 6 7 8 9 9\ncpu0 100 20 3 9999 50 1 2 4 90 9\ncpu11 1 0 0 5 5\nintr 1 2 3\n")
    two, one = tmp_path / "cpu.stat", tmp_path / "cpu.stat.1"
    two.write_text("usage_usec 5\nnr_throttled 3\nthrottled_usec 250000\n")
    one.write_text("nr_periods 0\nnr_throttled 2\nthrottled_time 1500000000\n")
    found = Usage.now(stat, (tmp_path / "absent", two, one))
    assert found.busy == pytest.approx({0: 130 * TICK, 11: 1 * TICK})
    assert found.throttled == 0.25
    assert Usage.now(stat, (one,)).throttled == 1.5
    bare = Usage.now(tmp_path / "absent", ())
    assert (bare.busy, bare.throttled) == ({}, 0.0)


@pytest.mark.skipif(not host.STAT.is_file(), reason="this system does not say who took the processor")
def test_another_program_on_the_pinned_core_is_seen() -> None:
    with host.pinned(1) as cores:
        # Pinned like its parent.
        other = subprocess.Popen(
            [sys.executable, "-c", "print(flush=True)\nwhile True: pass"], stdout=subprocess.PIPE, text=True
        )
        try:
            assert other.stdout is not None
            other.stdout.readline()
            watch = host.InterferenceMonitor(1, cores)
            wait_until(lambda: "of the pinned cores" in (watch.conditions().unfit or ""), other)
        finally:
            other.kill()
            other.communicate()


def test_versions_are_those_of_every_runtime_that_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name == "ai-edge-litert":
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.2.3" if name in ("openvino", "executorch") else real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    found = host.describe()["libraries"]
    assert (found["openvino"], found["executorch"]) == ("1.2.3", "1.2.3")
    assert "ai-edge-litert" not in found
    assert {"torch", "onnxruntime", "numpy"} <= {*found}
