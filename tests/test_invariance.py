"""Where a run executes must not change what it learns: ZeRO stages, workers, micro-batches, stops and resumes."""

import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import tokens_artifact
from trainings import command, curve, environment, train

TOLERANCE = 1e-6

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("invariance")
    tokens_artifact.make(found)
    return found


@pytest.fixture(scope="module")
def reference(folder: Path) -> list[float]:
    """The curve of one worker under ZeRO-1, six steps and two validations."""
    done = train(folder, folder / "reference")
    assert done.returncode == 0, done.stderr
    found = curve(folder / "reference")
    assert len(found) == 8
    assert found[0] != found[5]
    return found


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_zero_stages_and_workers_give_the_same_curve(
    folder: Path, reference: list[float], tmp_path: Path, zero_stage: int, workers: int
) -> None:
    done = train(folder, tmp_path / "run", workers, f"placement.zero_stage={zero_stage}")
    assert done.returncode == 0, done.stderr
    assert curve(tmp_path / "run") == pytest.approx(reference, rel=TOLERANCE)


def test_micro_batches_and_logging_give_the_same_curve(folder: Path, reference: list[float], tmp_path: Path) -> None:
    done = train(folder, tmp_path / "run", 1, "placement.rows_per_device=8", "placement.log_every=1")
    assert done.returncode == 0, done.stderr
    assert curve(tmp_path / "run") == pytest.approx(reference, rel=TOLERANCE)


def test_a_sharded_teacher_gives_the_same_curve(folder: Path, reference: list[float], tmp_path: Path) -> None:
    done = train(folder, tmp_path / "run", 2, 'placement.teacher="sharded"', "placement.zero_stage=3")
    assert done.returncode == 0, done.stderr
    assert curve(tmp_path / "run") == pytest.approx(reference, rel=TOLERANCE)


def test_bf16_on_two_workers_follows_one_worker(folder: Path, tmp_path: Path) -> None:
    """bf16 keeps eight bits of a number; the curves agree to 1e-3, not to the last digit."""
    for workers in (1, 2):
        done = train(folder, tmp_path / f"run{workers}", workers, 'precision="bf16"')
        assert done.returncode == 0, done.stderr
    assert curve(tmp_path / "run2") == pytest.approx(curve(tmp_path / "run1"), rel=1e-3)


@pytest.mark.parametrize(("first", "then"), [((1, 0), (2, 3)), ((2, 3), (1, 0)), ((1, 1), (2, 2))])
def test_a_run_resumes_on_other_workers_and_another_stage(
    folder: Path, reference: list[float], tmp_path: Path, first: tuple[int, int], then: tuple[int, int]
) -> None:
    """Stopped behind its checkpoint of step 3 by losing all later work, resumed on another layout."""
    run = tmp_path / "run"
    done = train(folder, run, first[0], f"placement.zero_stage={first[1]}")
    assert done.returncode == 0, done.stderr
    shutil.rmtree(run / "checkpoints" / "step_00000006")
    done = train(folder, run, then[0], f"placement.zero_stage={then[1]}")
    assert done.returncode == 0, done.stderr
    assert curve(run) == pytest.approx(reference, rel=TOLERANCE)


def test_a_killed_run_goes_on_with_the_same_curve(folder: Path, tmp_path: Path) -> None:
    longer = ("steps=40", "placement.save_every=5", "placement.log_every=1", "placement.validate_every=20")
    whole = train(folder, tmp_path / "whole", 1, *longer)
    assert whole.returncode == 0, whole.stderr
    run = tmp_path / "killed"
    process = subprocess.Popen(
        command(folder, run, 1, *longer), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wait_for(run / "checkpoints" / "step_00000010" / "checkpoint.json", process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (run / "checkpoints" / "step_00000040").exists()
    again = train(folder, run, 1, *longer)
    assert again.returncode == 0, again.stderr
    assert curve(run) == pytest.approx(curve(tmp_path / "whole"), rel=TOLERANCE)


def wait_for(file: Path, process: "subprocess.Popen[bytes]") -> None:
    """Until ``file`` is there; fails when the process ends first."""
    while not file.exists():
        assert process.poll() is None, f"ended before {file.name} was there"
        time.sleep(0.01)
