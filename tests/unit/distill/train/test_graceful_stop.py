"""Requests to stop: SIGTERM ends a run after the same step on every worker, with a checkpoint to resume from."""

import os
import signal
import subprocess
import threading
from pathlib import Path

import pytest
import torch
from train_processes import RECIPE, command, curve, environment, train
from waiting import wait_until

from cluster.artifacts import registry, stage
from cluster.telemetry.metrics_log import read_metrics
from distill.checkpointing.run_folder import Run
from distill.config import Distillation
from distill.engine.process_group import Workers
from distill.train import graceful_stop
from distill.train.graceful_stop import GracefulStop, StoppedError, StopReason

ALONE = Workers(0, 0, 1, torch.device("cpu"))
SETTINGS = ("steps=150", "placement.log_every=1", "placement.save_every=100", "placement.validate_every=100")


@pytest.fixture(scope="module")
def uninterrupted_curve(folder: Path) -> list[float]:
    """The curve of an uninterrupted run."""
    done = train(folder, folder / "whole", 1, *SETTINGS)
    assert done.returncode == 0, done.stderr
    return curve(folder / "whole")


def test_a_stop_request_is_reported_once_and_the_most_urgent_wins() -> None:
    with GracefulStop(ALONE) as stops:
        assert stops.agreed() is None
        graceful_stop.request(StopReason.LEAVING)
        graceful_stop.request(StopReason.GROWING)
        assert stops.agreed() is StopReason.LEAVING
    with GracefulStop(ALONE) as stops:
        assert stops.agreed() is None


def test_sigterm_is_a_request_inside_the_block_only() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with GracefulStop(ALONE) as stops:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stops.agreed() is StopReason.TERMINATED
    assert signal.getsignal(signal.SIGTERM) is before


def test_outside_the_main_thread_signals_are_left_alone() -> None:
    handlers = []

    def listen() -> None:
        with GracefulStop(ALONE):
            handlers.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert handlers == [signal.getsignal(signal.SIGTERM)]


def test_the_message_of_a_stop_says_what_to_do() -> None:
    assert str(StoppedError(StopReason.TERMINATED, 7)) == (
        "stopped after step 7 (SIGTERM), checkpoint written: run the same command again to continue"
    )


def test_a_stopped_run_has_a_checkpoint_and_resumes(folder: Path, tmp_path: Path) -> None:
    inputs = {"tokens": folder / "tokens", "teacher": folder / "teacher"}
    recipe = Distillation.of(RECIPE)
    stage.execute(registry.find("distill.train"), recipe, inputs, tmp_path / "whole")
    run = Run(tmp_path / "run")
    graceful_stop.request(StopReason.TERMINATED)
    with pytest.raises(StoppedError, match="stopped after step 1 "):
        stage.execute(registry.find("distill.train"), recipe, inputs, run.path)
    assert [checkpoint.step for checkpoint in run.checkpoints()] == [1]
    stage.execute(registry.find("distill.train"), recipe, inputs, run.path)
    assert curve(run.path) == pytest.approx(curve(tmp_path / "whole"), rel=1e-6)


@pytest.mark.long
@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_that_got_sigterm_resumes_to_the_same_curve(
    folder: Path, tmp_path: Path, uninterrupted_curve: list[float], workers: int
) -> None:
    run = Run(tmp_path / "run")
    started = command(folder, run.path, workers, *SETTINGS)
    process = subprocess.Popen(started, env=environment(), stderr=subprocess.PIPE, text=True)
    wait_until(lambda: len(read_metrics(run.metrics)) >= 5, process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate()
    newest = run.newest()
    assert newest is not None
    assert 5 <= newest.step < 100
    assert process.returncode == 1
    assert f"error: stopped after step {newest.step} (SIGTERM), checkpoint written" in errors
    again = train(folder, run.path, 1, *SETTINGS)
    assert again.returncode == 0, again.stderr
    assert curve(run.path) == pytest.approx(uninterrupted_curve, rel=1e-6)
