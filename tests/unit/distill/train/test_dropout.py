"""Dropout of the student: the probability of the recipe, the same masks after a resume, none in validation."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_engine
import torch
from tiny_engine import LENGTH, started
from torch import nn
from train_processes import RECIPE, curve, train

from cluster.artifacts import registry, stage
from distill.config import Distillation, Student
from distill.data.batches import Batch
from distill.engine import process_group
from distill.engine.deepspeed_engine import Engine


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.bert_teacher(tmp_path_factory.mktemp("dropout"), layers=2)


def _engine(bert: Path, dropout: float) -> Engine:
    recipe = Distillation(**{**vars(tiny_engine.training()), "student": Student(dropout=dropout)})
    return started(bert, recipe, process_group.join(1))


def _loss(engine: Engine, seed: int = 7) -> float:
    engine.seed_dropout(seed)
    rows = torch.arange(5, 5 + 8 * LENGTH).reshape(8, LENGTH) % 300
    return engine(Batch(rows, torch.arange(rows.numel()), rows.flatten()), None, None).losses.total.item()


def _dropouts(engine: Engine) -> list[nn.Dropout]:
    return [part for part in engine._engine.module.modules() if isinstance(part, nn.Dropout)]


def test_every_dropout_has_the_probability_of_the_recipe(bert: Path) -> None:
    engine = _engine(bert, 0.5)
    shares: list[float] = []
    for part in _dropouts(engine):
        part.register_forward_hook(lambda _, before, after: shares.append(float((after == 0).float().mean())))
    _loss(engine)
    assert {(part.p, part.training) for part in _dropouts(engine)} == {(0.5, True)}
    assert len(shares) >= 2
    assert all(0.4 < share < 0.6 for share in shares)
    assert engine._engine.module.model.config.dropout == 0.1  # what people fine-tune with


def test_masks_depend_on_the_seed_alone_and_evaluation_has_none(bert: Path) -> None:
    engine, plain = _engine(bert, 0.1), _engine(bert, 0.0)
    assert _loss(engine) == _loss(engine) != _loss(engine, seed=8)
    with engine.evaluating():
        assert _loss(engine, 1) == _loss(engine, 2) == _loss(plain, 1) == _loss(plain, 2)
    assert _loss(engine) != _loss(plain)


def _train(folder: Path, out: Path, **changes: Any) -> list[float]:
    placement = {**RECIPE["placement"], "log_every": 1, "save_every": 2, "keep_checkpoints": 9}
    recipe = Distillation.of({**RECIPE, "student": {"dropout": 0.1}, "placement": placement, **changes})
    inputs = {"tokens": folder / "tokens", "teacher": folder / "teacher"}
    stage.execute(registry.find("distill.train"), recipe, inputs, out)
    return curve(out)


def test_a_resumed_run_draws_the_same_masks(training_folder: Path, tmp_path: Path) -> None:
    whole = _train(training_folder, tmp_path / "whole")
    for path in (tmp_path / "whole" / "checkpoints").iterdir():
        if path.name != "step_00000002":
            shutil.rmtree(path)
    torch.manual_seed(99)  # the state of the generator must not matter
    assert _train(training_folder, tmp_path / "whole") == whole
    assert _train(training_folder, tmp_path / "without", student={"dropout": 0.0})[0] != whole[0]
    config = json.loads((tmp_path / "whole" / "config.json").read_text())
    assert (config["dropout"], config["attention_dropout"]) == (0.1, 0.1)


@pytest.mark.long
def test_workers_and_zero_stage_do_not_change_the_masks(training_folder: Path, tmp_path: Path) -> None:
    settings = ("student.dropout=0.1", "placement.log_every=1", "placement.rows_per_device=2")
    for workers, zero_stage in ((1, 1), (2, 3)):
        done = train(training_folder, tmp_path / f"{workers}", workers, *settings, f"placement.zero_stage={zero_stage}")
        assert done.returncode == 0, done.stderr
    assert curve(tmp_path / "2") == pytest.approx(curve(tmp_path / "1"), rel=1e-5)


@pytest.mark.parametrize("dropout", [-0.1, 1.0])
def test_a_probability_is_at_least_0_and_below_1(dropout: float) -> None:
    with pytest.raises(ValueError, match="dropout"):
        Distillation.of({"steps": 1, "student": {"dropout": dropout}})
