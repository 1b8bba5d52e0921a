"""Phases with losses of their own: layers first, words at the end; the head learns in the phases that need it."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from train_processes import RECIPE

from cluster.artifacts import registry, stage
from cluster.artifacts.errors import StageError
from cluster.artifacts.recipe import RecipeError
from cluster.telemetry.metrics_log import read_metrics
from distill.checkpointing.run_folder import Run
from distill.config import Distillation
from distill.modeling import masked_lm
from distill.modeling.masked_lm import MaskedLM, ModelError

TRAIN = registry.find("distill.train")
LENGTH = 32
LAYERS = {"soft": 0.0, "masked": 0.0, "cosine": 0.0, "hidden": 1.0, "relation": 1.0, "inputs": "clean"}
WORDS = {"soft": 1.0, "masked": 1.0, "hidden": 0.0, "inputs": "masked"}
TOLERANCE = 1e-6
HEAD = ("model.vocab_transform.weight", "model.vocab_transform.bias", "model.vocab_projector.bias")


def values(folder: Path, **placement: Any) -> dict[str, Any]:
    often = {"rows_per_device": 2, "log_every": 1, "save_every": 1, "validate_every": 3, "keep_checkpoints": 9}
    return {
        **{key: value for key, value in RECIPE.items() if key != "steps"},
        "loss": LAYERS,
        "optimizer": {"learning_rate": 2e-3, "weight_decay": 0.1},
        "phases": [{"seq_len": LENGTH, "steps": 3}, {"seq_len": LENGTH, "steps": 3, "loss": WORDS}],
        "placement": {**often, **placement},
    }


def execute(folder: Path, out: Path, recipe: dict[str, Any]) -> None:
    given = {"tokens": folder / "tokens", "teacher": folder / "teacher"}
    stage.execute(TRAIN, Distillation.of(recipe), given, out)


def weights(run: Path, step: int) -> dict[str, Tensor]:
    return Run(run).checkpoint(step).load().weights


@pytest.fixture(scope="module")
def run(training_folder: Path) -> Path:
    out = training_folder / "phase-losses"
    execute(training_folder, out, values(training_folder))
    return out


def test_a_phases_loss_fills_up_from_the_runs(training_folder: Path) -> None:
    first, second = Distillation.of(values(training_folder)).losses
    assert (first.hidden, first.relation, first.soft, first.inputs) == (1.0, 1.0, 0.0, "clean")
    assert (second.hidden, second.relation, second.soft, second.inputs) == (0.0, 1.0, 1.0, "masked")
    with pytest.raises(RecipeError, match=r'phases\.0\.loss: inputs = "clean" has no masked words'):
        Distillation.of({"phases": [{"seq_len": 8, "steps": 1, "loss": {"inputs": "clean"}}]})


def test_every_phase_trains_its_own_terms(run: Path) -> None:
    lines = [line for line in read_metrics(run / "metrics.jsonl") if line["kind"] == "train"]
    for line in lines[:3]:
        assert line["soft"] == line["masked"] == line["cosine"] == 0
        assert line["total"] == pytest.approx(line["hidden"] + line["relation"], rel=1e-6)
    for line in lines[3:]:
        assert line["hidden"] == line["cosine"] == 0
        assert line["total"] == pytest.approx(line["soft"] + line["masked"] + line["relation"], rel=1e-6)
    # A validation measures what any phase or a masked language model can be asked.
    validations = [line for line in read_metrics(run / "metrics.jsonl") if line["kind"] == "validation"]
    assert all(line["accuracy"] is not None and line["relation"] is not None for line in validations)
    assert [line["hidden"] is None for line in validations] == [False, True]
    # "hidden" is a loss here, and the number of hidden words inside a validation.
    assert all(0 <= line["accuracy"] <= 1 and 0 < line["hidden_loss"] < 20 for line in validations)


def test_the_head_is_the_teachers_until_a_phase_trains_it(training_folder: Path, run: Path) -> None:
    """Weight decay moves every matrix that is stepped; a head without a loss is not."""
    teacher = MaskedLM(masked_lm.load(training_folder / "teacher")[0]).state_dict()
    theirs = ("transform.dense.weight", "transform.dense.bias", "bias")
    for name, other in zip(HEAD, theirs, strict=True):
        assert torch.equal(weights(run, 3)[name], teacher[f"model.cls.predictions.{other}"]), name
        assert not torch.equal(weights(run, 6)[name], weights(run, 3)[name]), name


@pytest.mark.parametrize("zero_stage", [0, 2, 3])
def test_stages_and_micro_batches_train_the_same(training_folder: Path, run: Path, zero_stage: int) -> None:
    out = training_folder / f"phase-losses-{zero_stage}"
    recipe = values(training_folder, zero_stage=zero_stage, rows_per_device=8, head="naive")
    execute(training_folder, out, recipe)
    ours, theirs = (read_metrics(path / "metrics.jsonl") for path in (out, run))
    for mine, other in zip(ours, theirs, strict=True):
        assert mine["total"] == pytest.approx(other["total"], rel=10 * TOLERANCE)
    assert torch.equal(weights(out, 3)[HEAD[0]], weights(run, 3)[HEAD[0]])


def test_a_run_resumes_within_and_between_phases(training_folder: Path, run: Path, tmp_path: Path) -> None:
    for step in (2, 3, 5):
        again = tmp_path / f"from-{step}"
        shutil.copytree(run, again)
        for later in range(step + 1, 7):
            shutil.rmtree(again / "checkpoints" / f"step_{later:08}")
        execute(training_folder, again, values(training_folder, zero_stage=2))
        ours, theirs = (read_metrics(path / "metrics.jsonl") for path in (again, run))
        for mine, other in zip(ours, theirs, strict=True):
            assert mine["total"] == pytest.approx(other["total"], rel=TOLERANCE)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hidden_layers": [[0, 9]]}, r"pair \[0, 9\], and the teacher's layers are 0 to 3"),
        ({"relation_heads": 5}, "loss.relation_heads 5 does not divide the teacher's width of 32: write 4"),
        ({"relation_layer": 4}, "loss.relation_layer 4 does not fit a teacher of 4 layers: write 0 to 3"),
    ],
)
def test_a_loss_that_the_teacher_does_not_fit_is_refused_before_it_is_loaded(
    training_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], said: str
) -> None:
    monkeypatch.setattr(masked_lm, "load", lambda *_: pytest.fail("the teacher was loaded"))
    recipe = values(training_folder)
    recipe["phases"][1]["loss"] = {**WORDS, "hidden": 1.0, **change}
    with pytest.raises((ModelError, StageError), match=said):
        execute(training_folder, tmp_path / "out", recipe)
    assert not (tmp_path / "out").exists()
