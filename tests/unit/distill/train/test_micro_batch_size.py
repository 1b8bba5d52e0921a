"""The search for the micro-batch size: tried and chosen sizes, and a real measurement."""

from pathlib import Path

import numpy as np
import pytest
import tokens_artifact
import torch
from train_processes import curve, train

from cluster.tokens.rows import open_tokens
from distill.config import Distillation, Placement, Student
from distill.data.batches import Batches, Masker
from distill.engine import process_group
from distill.engine.process_group import Workers
from distill.engine.teacher_engine import TeacherEngine
from distill.modeling import masked_lm, student
from distill.modeling.masked_lm import MaskedLM
from distill.train import micro_batch_size
from distill.train.micro_batch_size import Trial, candidates, choose, in_use, predicted_peak, run_trial, search
from distill.train.student_objective import StudentObjective, head_settings

GIB = 2**30


@pytest.fixture(scope="module")
def workers() -> Workers:
    return process_group.join(1)


def device(fixed_seconds: float, seconds_per_row: float, bytes_per_row: int, tried: list[int]):  # type: ignore[no-untyped-def]
    """A device with a given time and memory per micro-batch."""

    def attempt(rows: int) -> Trial:
        tried.append(rows)
        return Trial(rows, fixed_seconds + seconds_per_row * rows, GIB // 4 + bytes_per_row * rows)

    return attempt


def test_sizes_divide_a_workers_rows_and_rise_fast() -> None:
    assert candidates(512) == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]
    assert candidates(60) == [1, 2, 3, 5, 10, 15, 30, 60]
    assert candidates(7) == [1, 7]


def test_a_size_that_would_not_fit_is_never_tried(workers: Workers) -> None:
    tried: list[int] = []
    trials = search(candidates(4096), device(1.0, 0.0, GIB, tried), 12 * GIB, workers)
    assert tried == [1, 2, 4, 8]
    assert choose(trials).rows == 8


def test_larger_sizes_are_not_tried_once_nothing_is_gained(workers: Workers) -> None:
    tried: list[int] = []
    trials = search(candidates(4096), device(0.001, 0.1, 1000, tried), 100 * GIB, workers)
    assert len(tried) <= 4
    assert choose(trials).rows == 1


def test_the_smallest_of_equally_fast_sizes_is_chosen(workers: Workers) -> None:
    trials = [Trial(1, 1.0, 1), Trial(2, 1.1, 2), Trial(4, 2.19, 4), Trial(8, 4.4, 8)]
    assert choose(trials).rows == 2


def test_a_prediction_is_a_straight_line_through_what_was_measured() -> None:
    assert predicted_peak([Trial(2, 1.0, 10)], 8) == 40
    assert predicted_peak([Trial(2, 1.0, 10), Trial(4, 1.0, 14)], 8) == 22
    assert predicted_peak([Trial(2, 1.0, 10), Trial(4, 1.0, 9)], 8) == 9


def test_memory_that_a_trial_does_not_give_back_counts(workers: Workers) -> None:
    kept: list[torch.Tensor] = []

    def once(rows: int) -> None:
        if len(kept) < rows:
            kept.append(torch.ones(2**24))

    held = in_use(workers)
    # Not all of it: memory of earlier tests may be freed meanwhile.
    assert run_trial(once, 1, held, workers).peak >= 0.8 * 2**26
    assert run_trial(once, 2, held, workers).peak >= 1.8 * 2**26


def test_a_real_measurement_leaves_the_model_as_it_was(workers: Workers, tmp_path: Path) -> None:
    tokens = open_tokens(tokens_artifact.make(tmp_path))
    training = Distillation(steps=1, rows_per_step=32, placement=Placement(rows_per_device="auto"))
    teacher, _ = masked_lm.load(tmp_path / "teacher")
    made = student.make(teacher, Student(), 1)
    learner = StudentObjective(made, training.loss, head_settings(training, tokens.vocab_size, workers))
    before = {name: tensor.clone() for name, tensor in learner.state_dict().items()}
    batches = Batches(tokens.train, Masker(tokens, training), training)
    tried: list[int] = []

    def take(rows: int):  # type: ignore[no-untyped-def]
        tried.append(rows)
        return batches.take(0, 0, rows)

    frozen = TeacherEngine(MaskedLM(teacher), training, workers)
    found = micro_batch_size.measure(learner, frozen, frozen.projection, take, training, workers)
    assert found in candidates(32)
    assert set(tried) <= set(candidates(32))
    assert len(np.unique(tried)) >= 3
    assert all(torch.equal(before[name], tensor) for name, tensor in learner.state_dict().items())
    assert all(parameter.grad is None for parameter in learner.parameters())


@pytest.mark.long
def test_a_run_that_measures_has_the_same_curve(tmp_path: Path) -> None:
    tokens_artifact.make(tmp_path)
    for name, rows in (("given", "2"), ("measured", '"auto"')):
        done = train(tmp_path, tmp_path / name, 1, "steps=3", f"placement.rows_per_device={rows}")
        assert done.returncode == 0, done.stderr
    assert "micro-batches of" in done.stderr
    assert curve(tmp_path / "measured") == pytest.approx(curve(tmp_path / "given"), rel=1e-6)
