"""Runs with faults: a slow or full disk, damaged checkpoints, death while writing, and losses that are not finite."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_disk
import tokens_artifact
import torch
from safetensors.torch import load_file, save_file
from train_processes import FORTY_STEPS, RECIPE, command, curve, environment, toml, train
from waiting import wait_until

from cluster.artifacts import artifact, cli, commit, registry, stage
from cluster.artifacts.artifact import digest
from cluster.telemetry import metrics, progress
from cluster.telemetry.metrics_log import read_metrics
from cluster.tokens.rows import open_tokens
from distill.checkpointing import checkpoint_writer
from distill.checkpointing.checkpoint import CHECKPOINT, WEIGHTS
from distill.checkpointing.run_folder import Run, RunError
from distill.config import Distillation
from distill.engine.deepspeed_engine import EngineError, deepspeed
from distill.engine.process_group import Workers
from distill.train.run_logger import TrainingError

TRAIN = registry.find("distill.train")
TOLERANCE = 1e-6
LONGER = (*FORTY_STEPS, "placement.save_every=10")


def execute(folder: Path, out: Path, teacher: str = "teacher", **changes: Any) -> None:
    recipe = Distillation.of({**RECIPE, **changes})
    stage.execute(TRAIN, recipe, {"tokens": folder / "tokens", "teacher": folder / teacher}, out)


def run_command(capsys: pytest.CaptureFixture[str], given: list[str]) -> tuple[int, str]:
    """Exit code and error output of a training command, run in this process without torchrun, which is faster."""
    if "torch.distributed.run" in given:
        done = subprocess.run(given, env=environment(), capture_output=True, text=True, check=False)
        return done.returncode, done.stderr
    code = 0
    try:
        cli.main(TRAIN.name, given[given.index("distill.train") + 1 :])
    except SystemExit as stopped:
        code = int(stopped.code or 0)
    return code, capsys.readouterr().err


def steps(run: Run) -> list[int]:
    return [checkpoint.step for checkpoint in run.checkpoints()]


def train_lines(run: Run) -> list[dict[str, Any]]:
    return [line for line in read_metrics(run.metrics) if line["kind"] == "train"]


def test_training_continues_while_a_checkpoint_is_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk accepts a checkpoint's files only after the next step; those of the last one at once."""
    run, real, awaited = Run(tmp_path / "run"), os.fsync, []

    def slow(descriptor: int) -> None:
        found = re.search(r"step_0*(\d+)\.partial", os.readlink(f"/proc/self/fd/{descriptor}"))
        wanted = min(int(found[1]) + 1, 6) if found else 0
        wait_until(
            lambda: not wanted or any(line["step"] >= wanted for line in read_metrics(run.metrics)),
            seconds=60,
            what="training goes on while the disk is slow",
        )
        awaited.append(wanted)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", slow)
    execute(folder, run.path, placement={**RECIPE["placement"], "log_every": 1, "save_every": 2, "keep_checkpoints": 9})
    assert steps(run) == [2, 4, 6]
    assert set(awaited) >= {3, 5, 6}
    assert all(checkpoint.damage() is None for checkpoint in run.checkpoints())
    shown = {part: metrics.CHECKPOINT_SECONDS.labels("run", part)._value.get() for part in ("blocked", "written")}
    assert shown["blocked"] > 0
    assert shown["written"] > 0


def test_a_bug_in_the_writing_thread_ends_the_run_as_a_bug(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(descriptor: int) -> None:
        if ".partial" in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise ZeroDivisionError("not the user's")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(ZeroDivisionError):
        execute(folder, tmp_path / "run")
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


class Full:
    """A training process on a small disk that becomes full when ``file`` appears, until a test frees space."""

    def __init__(self, disk: Path, given: list[str], file: Path) -> None:
        self._ballast = disk / "ballast"
        self.process = subprocess.Popen(given, env=environment(), stderr=subprocess.PIPE, text=True)
        wait_until(file.exists, self.process)
        with contextlib.suppress(OSError), self._ballast.open("wb", buffering=0) as ballast:
            while True:
                ballast.write(bytes(4096))

    def empty(self) -> None:
        self._ballast.unlink()

    def next_line(self, words: str) -> str:
        """Wait for a line of output with these words."""
        assert self.process.stderr is not None
        return next(line for line in self.process.stderr if words in line)

    def rest(self) -> str:
        return self.process.communicate()[1]


@pytest.mark.long
def test_a_disk_that_is_full_for_a_while_costs_only_checkpoints(folder: Path, tmp_path: Path) -> None:
    """The metrics log has no room meanwhile either: its lines wait."""
    with small_disk.small_disk(tmp_path / "disk", 20_000) as disk:
        run = Run(disk / "run")
        settings = ("steps=60", "placement.log_every=1", "placement.save_every=20", "placement.validate_every=60")
        full = Full(disk, command(folder, run.path, 1, *settings), run.metrics)
        output = full.next_line("warning: checkpoint")
        full.empty()
        assert full.process.wait() == 0, full.rest()
        assert "checkpoint of step 20 was not written" in output
        assert "the disk is full" in output
        assert (
            "; there is none yet): free some space; training continues, and the next checkpoint tries again" in output
        )
        assert steps(run)[-1] == 60
        assert not list(run.path.glob("checkpoints/.*"))
        assert [line["step"] for line in train_lines(run)] == list(range(1, 61))


@pytest.mark.long
@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.rare)])
def test_a_disk_that_stays_full_stops_the_run_and_loses_nothing(
    folder: Path, curve_of_forty_steps: list[float], tmp_path: Path, workers: int
) -> None:
    settings = (*FORTY_STEPS, "placement.save_every=1")
    with small_disk.small_disk(tmp_path / "disk", 20_000) as disk:
        run = Run(disk / "run")
        given = command(folder, run.path, workers, *settings)
        full = Full(disk, given, run.path / "checkpoints" / "step_00000001")
        output = full.rest().splitlines()
        assert full.process.returncode == 1
        newest = steps(run)[-1]
        assert newest < 38
        assert not list(run.path.glob("checkpoints/.*"))
        assert all(checkpoint.damage() is None for checkpoint in run.checkpoints())
        assert sum(line.startswith("warning: checkpoint of step") for line in output) == 2
        error = next(line for line in output if line.startswith("error: "))
        assert f"checkpoint of step {newest + 3} was not written" in error
        assert re.search(r"the disk is full \([\d.]+ \w+ needed, [\d.]+ \w+ free; ", error)
        assert f"the newest is of step {newest}): free some space" in error
        assert "(the last 3 checkpoints failed); then run the same command again" in error
        if workers == 1:  # torchrun ends with a traceback
            assert "Traceback" not in "".join(output)
        full.empty()
        again = subprocess.run(given, env=environment(), capture_output=True, text=True, check=False)
        assert again.returncode == 0, again.stderr
        assert curve(run.path) == pytest.approx(curve_of_forty_steps, rel=TOLERANCE)


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.rare)])
def test_a_damaged_newest_checkpoint_costs_its_steps_and_nothing_else(
    folder: Path, curve_of_forty_steps: list[float], tmp_path: Path, workers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    given = command(folder, tmp_path / "run", workers, *LONGER)
    assert run_command(capsys, given)[0] == 0
    newest = tmp_path / "run" / "checkpoints" / "step_00000040"
    (newest / CHECKPOINT).write_bytes((newest / CHECKPOINT).read_bytes()[:-30])
    code, output = run_command(capsys, given)
    assert code == 0, output
    assert (
        "checkpoint.json was truncated or changed: set aside as .damaged-step_00000040, resuming from step 30" in output
    )
    assert curve(tmp_path / "run") == pytest.approx(curve_of_forty_steps, rel=TOLERANCE)
    names = {path.name for path in newest.parent.iterdir()}
    assert names == {".damaged-step_00000040", "step_00000030", "step_00000040"}


def test_a_run_whose_checkpoints_are_all_damaged_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    execute(folder, tmp_path / "run", steps=2)
    (tmp_path / "run" / "checkpoints" / "step_00000002" / WEIGHTS).write_bytes(b"nothing")
    code, output = run_command(capsys, command(folder, tmp_path / "run", 1, "steps=2"))
    assert code == 1
    assert output.count("\n") == 1
    assert "every checkpoint of" in output
    assert "to start again at step 0" in output


def test_a_worker_that_sees_an_older_folder_waits_for_the_checkpoint_the_first_one_saw(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder becomes visible to one worker later than to another, while the worker waits."""
    execute(folder, tmp_path / "run", steps=2)
    run = Run(tmp_path / "run")
    whole, hidden = run.checkpoint(2), run.path / "elsewhere"
    identity, worker = digest(whole.facts), Workers(1, 1, 2, torch.device("cpu"))
    whole.path.rename(hidden)
    appearing = threading.Timer(0.2, hidden.rename, [whole.path])
    appearing.start()
    assert checkpoint_writer.wait_until_visible(run, 2, identity, worker).step == 2
    monkeypatch.setattr(checkpoint_writer, "_VISIBLE_SECONDS", 0.0)
    with pytest.raises(RunError, match=r"worker 1 does not see .* of step 2"):
        checkpoint_writer.wait_until_visible(run, 2, "another", worker)


DYING = """
import os, signal, sys
from cluster.artifacts import cli
real = os.fsync
def deadly(descriptor):
    if "step_00000020.partial" in os.readlink(f"/proc/self/fd/{descriptor}"):
        os.kill(os.getpid(), signal.SIGKILL)
    real(descriptor)
os.fsync = deadly
cli.main("distill.train", sys.argv[1:])
"""


@pytest.mark.long
def test_a_run_killed_while_it_writes_resumes_from_the_one_before(
    folder: Path, curve_of_forty_steps: list[float], tmp_path: Path
) -> None:
    given = command(folder, tmp_path / "run", 1, *LONGER)
    dying = [sys.executable, "-c", DYING, *given[given.index("distill.train") + 1 :]]
    done = subprocess.run(dying, env=environment(), capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    names = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert names == {"step_00000010", ".step_00000020.partial"}
    again = train(folder, tmp_path / "run", 1, *LONGER)
    assert again.returncode == 0, again.stderr
    assert curve(tmp_path / "run") == pytest.approx(curve_of_forty_steps, rel=TOLERANCE)
    assert steps(Run(tmp_path / "run")) == [30, 40]
    assert not list((tmp_path / "run" / "checkpoints").glob(".*"))


def test_a_collapsing_loss_scale_leaves_the_lines_of_the_steps_before(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CPUs have slow fp16; only DeepSpeed's capability check refuses it."""
    monkeypatch.setattr(deepspeed.accelerator.get_accelerator(), "is_fp16_supported", lambda: True)
    values = {"precision": "fp16", "steps": 60, "loss": {"soft": 0.0, "cosine": 0.0, "masked": 1e9}}
    placement = {"rows_per_device": 8, "log_every": 60, "save_every": 60, "validate_every": 60}
    with pytest.raises(EngineError, match="loss scale cannot fall further"):
        execute(folder, tmp_path / "run", placement=placement, **values)
    lines = train_lines(Run(tmp_path / "run"))
    assert len(lines) >= 16
    assert [line["step"] for line in lines] == [line["skipped_in_a_row"] for line in lines]
    assert progress.training_note(lines[-1])["skipped in a row"] == str(len(lines))
    assert lines[-1]["loss_scale"] == 1.0


def test_a_gradient_that_is_not_finite_stops_the_run(folder: Path, tmp_path: Path) -> None:
    loss = {"soft": 0.0, "cosine": 0.0, "masked": 1e30}
    with pytest.raises(TrainingError, match=r"gradient of step 1 is not finite"):
        execute(folder, tmp_path / "run", steps=2, loss=loss)
    assert not steps(Run(tmp_path / "run"))


# A teacher that fails on one word, which may be masked or unchanged but is never drawn as a random replacement.
BLIND = {
    "loss": {"soft": 0.0, "masked": 1.0, "cosine": 1.0},
    "masking": {"mask": 1.0, "random": 0.0},
    "student": {"start": "random"},
    "steps": 20,
}
EVERY_ROW = {"rows_per_device": 1, "log_every": 8, "save_every": 20, "validate_every": 20}


def blind_teacher(folder: Path, word: int) -> None:
    source = artifact.read(folder / "teacher")
    name = f"blind-{word}"
    if (folder / name).exists():
        return
    with artifact.create(folder / name, kind="teacher", inputs={}, recipe={"word": word}) as draft:
        for file in source.path.iterdir():
            if file.name != commit.MANIFEST:
                (draft.path / file.name).write_bytes(file.read_bytes())
        weights = load_file(source.path / "model.safetensors")
        # Finite, so that the teacher is accepted, and too large for its layer norm.
        weights["bert.embeddings.word_embeddings.weight"][word] = 3e38
        save_file(weights, draft.path / "model.safetensors", metadata={"format": "pt"})
        draft.facts.update(source.facts)


def rare_word(folder: Path) -> int:
    counts = open_tokens(folder / "tokens").counts
    return int(np.flatnonzero((counts > 0) & (counts < np.quantile(counts[counts > 0], 0.2)))[-1])


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.rare)])
def test_a_loss_that_is_not_finite_stops_before_the_update_and_names_the_rows(
    folder: Path, tmp_path: Path, workers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    word = rare_word(folder)
    blind_teacher(folder, word)
    (tmp_path / "recipe.toml").write_text(toml({**RECIPE, **BLIND, "placement": EVERY_ROW}))
    swaps = {folder / "recipe.toml": tmp_path / "recipe.toml", folder / "teacher": folder / f"blind-{word}"}
    given = {str(old): str(new) for old, new in swaps.items()}
    code, output = run_command(capsys, [given.get(part, part) for part in command(folder, tmp_path / "blind", workers)])
    assert code == 1
    error = next(line for line in output.splitlines() if line.startswith("error: "))
    found = re.search(r"loss of step (\d+) is not finite \(cosine, at training rows ([\d, ]+)", error)
    assert found, error
    step, rows = int(found[1]), [int(row) for row in found[2].split(",")]
    assert 1 < step < 20
    taken = open_tokens(folder / "tokens").train.take(np.array(rows))
    assert (taken == word).any(axis=1).all()
    run = Run(tmp_path / "blind")
    assert [line["step"] for line in train_lines(run)] == list(range(1, step))
    assert train_lines(run)[-1]["tokens"] == (step - 1) * 8 * tokens_artifact.SEQ_LEN
    assert steps(run) == [step - 1]
    clean = {**EVERY_ROW, "save_every": step - 1, "keep_checkpoints": 20}
    execute(folder, tmp_path / "clean", **BLIND, placement=clean)
    ours, theirs = (load_file(Run(tmp_path / name).checkpoint(step - 1).path / WEIGHTS) for name in ("blind", "clean"))
    exact = workers == 1
    for name, value in ours.items():
        assert torch.allclose(value, theirs[name], rtol=0 if exact else 1e-4, atol=0 if exact else 1e-6), name
