"""Checkpoints on disk: atomic, set aside when damaged, and pruned, even if a process dies or a disk is full."""

import errno
import itertools
import multiprocessing
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import small_disk
import torch
from safetensors.torch import load_file

from distill.checkpointing.checkpoint import CheckpointError
from distill.checkpointing.run_folder import Run, RunError
from distill.config import Placement
from distill.engine.deepspeed_engine import TrainingState

FACTS = {"tokens": 64, "device_seconds": 0.1, "skipped_steps": 0, "validation": {"masked": None, "total": 1.25}}


def state(step: int, size: int = 1000) -> TrainingState:
    made = torch.Generator().manual_seed(step)
    weights = {name: torch.randn(size, generator=made) for name in ("a.weight", "b.weight")}
    moments = {f"{moment}.{name}": value + 1 for moment in ("exp_avg", "exp_avg_sq") for name, value in weights.items()}
    return TrainingState(weights, moments, float(step), {"cur_scale": 1024.0})


def saved(folder: Path, *steps: int, **placement: int) -> Run:
    run = Run(folder)
    for step in steps:
        run.save(state(step), step, Placement(**({"keep_checkpoints": 9} | placement)), **FACTS)
    return run


def steps(run: Run) -> list[int]:
    return [checkpoint.step for checkpoint in run.checkpoints()]


def names(run: Run) -> set[str]:
    return {path.name for path in (run.path / "checkpoints").iterdir()}


def check_same(found: TrainingState, step: int) -> None:
    wanted = state(step)
    assert (found.optimizer_steps, found.scaler) == (wanted.optimizer_steps, wanted.scaler)
    for ours, theirs in ((found.weights, wanted.weights), (found.moments, wanted.moments)):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_state_comes_back_from_the_disk_as_it_was(tmp_path: Path) -> None:
    run = saved(tmp_path, 3)
    newest = run.newest()
    assert newest is not None
    check_same(newest.load(), 3)
    assert newest.facts.items() >= {**FACTS, "step": 3}.items()
    assert load_file(newest.path / "weights.safetensors").keys() == {"a.weight", "b.weight"}


@pytest.mark.parametrize(
    ("newest", "every", "kept"),
    [
        (1, None, [60]),
        (2, None, [50, 60]),
        (2, 20, [20, 40, 50, 60]),
        (1, 30, [30, 60]),
        (9, None, [*range(10, 70, 10)]),
    ],
)
def test_the_newest_and_every_nth_are_kept(tmp_path: Path, newest: int, every: int | None, kept: list[int]) -> None:
    run = Run(tmp_path)
    for step in range(10, 70, 10):
        run.save(state(step, 4), step, Placement(keep_checkpoints=newest, keep_every=every))
    assert steps(run) == kept
    assert names(run) == {f"step_{step:08d}" for step in kept}


def test_a_copy_of_a_checkpoint_is_ignored(tmp_path: Path) -> None:
    run = saved(tmp_path, 1, 2)
    copies = [run.checkpoint(2).path.with_name(name) for name in ("step_00000002.bak", "step_2 (copy)")]
    for copy in copies:
        copy.mkdir()
    assert steps(run) == [1, 2]
    saved(tmp_path, 3, keep_checkpoints=1)
    assert steps(run) == [3]
    assert all(copy.is_dir() for copy in copies)


def test_a_checkpoint_being_read_is_not_deleted(tmp_path: Path) -> None:
    run = saved(tmp_path, 1, 2)
    with run.checkpoint(1).reading():
        saved(tmp_path, 3, keep_checkpoints=1)
        assert steps(run) == [1, 3]
        check_same(run.checkpoint(1).load(), 1)
    saved(tmp_path, 4, keep_checkpoints=1)
    assert steps(run) == [4]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def change_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "cut weights": (lambda path: cut(path / "weights.safetensors"), "weights.safetensors was truncated or changed"),
    "changed moments": (lambda path: change_a_byte(path / "moments.safetensors"), "moments.safetensors was truncated"),
    "no moments": (lambda path: (path / "moments.safetensors").unlink(), "moments.safetensors is missing"),
    "cut facts": (lambda path: cut(path / "checkpoint.json"), "checkpoint.json was truncated or changed"),
    "changed facts": (lambda path: change_a_byte(path / "checkpoint.json"), "checkpoint.json was truncated or changed"),
    "empty facts": (
        lambda path: (path / "checkpoint.json").write_bytes(b""),
        "checkpoint.json was truncated or changed",
    ),
    "no facts": (lambda path: (path / "checkpoint.json").unlink(), "checkpoint.json is missing"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_taken(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    run = saved(tmp_path, 1, 2, 3)
    harm, words = DAMAGES[damage]
    harm(run.checkpoint(3).path)
    with pytest.raises(CheckpointError, match=f"{words}.*: delete .*step_00000003"):
        run.checkpoint(3).load()
    with caplog.at_level("INFO", "stillhouse"):
        found = run.newest_intact()
    assert found is not None
    check_same(found.load(), 2)
    (line,) = caplog.messages
    assert words in line
    assert line.endswith("set aside as .damaged-step_00000003, resuming from step 2")
    saved(tmp_path, 3, 4, keep_checkpoints=1)
    assert names(run) == {".damaged-step_00000003", "step_00000004"}


def test_a_run_with_only_damaged_checkpoints_does_not_restart(tmp_path: Path) -> None:
    run = saved(tmp_path, 1, 2)
    for checkpoint in run.checkpoints():
        change_a_byte(checkpoint.path / "weights.safetensors")
    for _ in range(2):
        with pytest.raises(RunError, match=r"every checkpoint of .* is damaged \(steps 1, 2; .*weights"):
            run.newest_intact()
    assert steps(run) == [1, 2]


def test_a_checkpoint_damaged_twice_is_set_aside_twice(tmp_path: Path) -> None:
    run = saved(tmp_path, 1)
    for _ in range(2):
        cut(saved(tmp_path, 2).checkpoint(2).path / "weights.safetensors")
        run.newest_intact()
    assert names(run) == {"step_00000001", ".damaged-step_00000002", ".damaged-step_00000002-2"}


def in_child(work: Callable[[], None]) -> int:
    """Exit code of ``work`` in a child process."""
    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    child.join()
    assert child.exitcode is not None
    return child.exitcode


def die_at(name: str, call: int) -> None:
    """Kill this process by ``SIGKILL`` at the nth call of a function of the operating system."""
    calls, real = itertools.count(1), getattr(os, name)

    def deadly(*given: Any, **named: Any) -> Any:
        if next(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*given, **named)

    setattr(os, name, deadly)


@pytest.mark.parametrize(
    ("name", "call", "left"),
    [
        ("fsync", 1, [1, 2]),  # after the weights
        ("fsync", 3, [1, 2]),  # after the moments, while the facts are written
        ("fsync", 4, [1, 2]),  # all files exist, but the folder is not renamed yet
        ("fsync", 5, [1, 2, 3]),
        ("rmdir", 1, [2, 3]),  # the oldest checkpoint is already empty
    ],
)
def test_a_kill_while_writing_leaves_sound_checkpoints(tmp_path: Path, name: str, call: int, left: list[int]) -> None:
    run = saved(tmp_path, 1, 2)

    def work() -> None:
        die_at(name, call)
        saved(tmp_path, 3, keep_checkpoints=2)

    assert in_child(work) == -signal.SIGKILL
    assert steps(run) == left
    found = run.newest_intact()
    assert found is not None
    check_same(found.load(), left[-1])
    saved(tmp_path, 4, keep_checkpoints=1)
    assert names(run) == {"step_00000004"}


def test_a_file_that_may_not_grow_leaves_the_others_and_says_why(tmp_path: Path) -> None:
    run = saved(tmp_path, 1, 2)

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))
        try:
            saved(tmp_path, 3)
        except OSError as error:
            os._exit(error.errno or 1)

    assert in_child(work) == errno.EFBIG
    assert names(run) == {"step_00000001", "step_00000002"}
    check_same(run.checkpoint(2).load(), 2)


def test_a_full_disk_leaves_the_others_and_says_so(tmp_path: Path) -> None:
    with small_disk.small_disk(tmp_path / "disk", 1000) as disk:
        run = saved(disk, 1)
        with pytest.raises(OSError, match="No space left on device") as caught:
            run.save(state(2, 100_000), 2, Placement(), **FACTS)
        assert caught.value.errno == errno.ENOSPC
        assert names(run) == {"step_00000001"}
        check_same(run.checkpoint(1).load(), 1)
