"""The first half of a second step: losses by formula on padded rows, students whose layers approach the teacher's."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from finetune_tasks import finetune, sentiment
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from cluster.artifacts import artifact, errors
from cluster.artifacts.recipe import RecipeError
from eval.finetune.batching import Features
from eval.finetune.layer_step import LayerStep, LayerTeaching
from eval.finetune.stage import Finetune

LENGTHS = (5, 9, 3)
BOTH = {"hidden": 1.0, "relation": 1.0}


def models(folder: Path) -> tuple[Any, Any]:
    """A student and a teacher in fp64, without dropout."""
    torch.manual_seed(1)
    made = (tiny.distilbert(folder / "student", layers=2), tiny.bert_teacher(folder / "teacher", layers=4))
    return tuple(AutoModelForSequenceClassification.from_pretrained(path).double().eval() for path in made)  # type: ignore[return-value]


def rows() -> Features:
    generator = np.random.default_rng(2)
    return Features.of([generator.integers(5, 60, length).tolist() for length in LENGTHS], None, 0)


def by_row(student: Any, teacher: Any, features: Features, number: int) -> tuple[Tensor, Tensor]:
    """Hidden and relation loss of one row alone, token by token, without padding."""
    ids = features.ids[features.starts[number] : features.starts[number] + LENGTHS[number]].long()[None]
    ours, theirs = (model.base_model(ids, output_hidden_states=True).hidden_states for model in (student, teacher))
    errors_of = [
        sum((a - b).square().sum() / b.square().sum() for a, b in zip(ours[i][0], theirs[j][0], strict=True))
        for i, j in ((1, 2), (2, 4))
    ]
    hidden = sum(errors_of) / 2 / LENGTHS[number]
    attention = student.distilbert.transformer.layer[-1].attention
    other = teacher.bert.encoder.layer[-1].attention.self
    found = []
    for mine, wanted in ((attention.q_lin, other.query), (attention.k_lin, other.key), (attention.v_lin, other.value)):
        for head in range(2):
            part = slice(16 * head, 16 * (head + 1))
            q, p = (
                torch.softmax(values @ values.T / math.sqrt(16), dim=-1)
                for values in (mine(ours[-2])[0][:, part], wanted(theirs[-2])[0][:, part])
            )
            found.append((p * (p / q).log()).sum(-1).mean())
    assert isinstance(hidden, Tensor)
    return hidden, torch.stack(found).mean()


@pytest.mark.parametrize("weights", [{"hidden": 1.0, "relation": 0.0}, {"hidden": 0.0, "relation": 1.0}, BOTH])
def test_padding_adds_nothing_and_every_row_counts_alike(tmp_path: Path, weights: dict[str, float]) -> None:
    student, teacher = models(tmp_path)
    features, every = rows(), np.arange(3)
    teaching = LayerTeaching(LayerStep.of(weights), teacher, features)
    found = teaching.loss(student, every, features.batch(every))
    alone = [by_row(student, teacher, features, number) for number in every]
    wanted = sum(weights["hidden"] * hidden + weights["relation"] * relation for hidden, relation in alone)
    assert float(found) == pytest.approx(float(wanted), rel=1e-5)
    found.backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())


def trained(
    folder: Path, student: Path, data: Path, teacher: Path, layers: dict[str, Any] | None, **values: Any
) -> Path:
    step = {"task": 0.5, "soft": 0.5, **({} if layers is None else {"layers": layers})}
    finetune(student, data, folder, teacher, task="sst2", epochs=1, second_step=step, **values)
    return folder


@torch.no_grad()
def error_of(student: Path, teacher: Path) -> float:
    """Relative error of the last hidden states on some words."""
    ids = torch.randint(5, 60, (8, 12), generator=torch.Generator().manual_seed(3))
    ours, theirs = (
        AutoModelForSequenceClassification.from_pretrained(path).eval().base_model(ids).last_hidden_state
        for path in (student, teacher)
    )
    return float(((ours - theirs).square().sum(-1) / theirs.square().sum(-1)).mean())


def test_a_students_layers_approach_the_teachers(tmp_path: Path) -> None:
    data, student = sentiment(tmp_path / "data", 60), tiny.distilbert(tmp_path / "model", layers=2)
    teacher = tmp_path / "teacher"
    finetune(tiny.bert_teacher(tmp_path / "bert", layers=4), data, teacher, task="sst2", epochs=1)
    plain = trained(tmp_path / "plain", student, data, teacher, None)
    layers = {"epochs": 12, "learning_rate": 2e-3}
    taught = trained(tmp_path / "taught", student, data, teacher, layers)
    assert error_of(taught, teacher) < 0.5 * error_of(plain, teacher)
    kept = artifact.read(taught).facts["second_step"]["layers"]
    assert kept == {"epochs": 12, "learning_rate": 2e-3, **BOTH, "hidden_layers": "uniform"}
    # Parts of other sizes only change the rounding.
    again = trained(tmp_path / "again", student, data, teacher, layers, placement={"micro_batch": 3})
    assert error_of(again, teacher) == pytest.approx(error_of(taught, teacher), rel=0.05)


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ({"hidden_layers": [[0, 4]]}, r"pair \[0, 4\], and the teacher's layers are 0 to 3"),
        ({"hidden_layers": [[2, 0]]}, r"pair \[2, 0\], and the student's layers are 0 to 1"),
    ],
)
def test_layers_that_a_model_lacks_are_refused(tmp_path: Path, layers: dict[str, Any], said: str) -> None:
    data, teacher = sentiment(tmp_path / "data", 20), tmp_path / "teacher"
    finetune(tiny.bert_teacher(tmp_path / "bert", layers=4), data, teacher, task="sst2", epochs=1)
    with pytest.raises(errors.StageError, match=said):
        trained(tmp_path / "out", tiny.distilbert(tmp_path / "model", layers=2), data, teacher, layers)


def test_a_teacher_of_other_tokens_or_another_width_is_refused(tmp_path: Path) -> None:
    data, student = sentiment(tmp_path / "data", 20), tiny.distilbert(tmp_path / "model", layers=2)
    foreign, wide = tmp_path / "foreign", tmp_path / "wide"
    finetune(tiny.roberta_teacher(tmp_path / "roberta", layers=2), data, foreign, task="sst2", epochs=1)
    finetune(tiny.bert_teacher(tmp_path / "bert", layers=2, hidden=48), data, wide, task="sst2", epochs=1)
    with pytest.raises(errors.StageError, match="they read the examples as other tokens"):
        trained(tmp_path / "out", student, data, foreign, {})
    with pytest.raises(errors.StageError, match=r"the student has 32, the teacher 48: write hidden = 0\.0"):
        trained(tmp_path / "out", student, data, wide, {})
    # Relations compare any widths.
    assert trained(tmp_path / "out", student, data, wide, {"hidden": 0.0, "epochs": 1}).is_dir()


def test_a_step_without_a_loss_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"second_step\.layers: every weight is 0: give hidden or relation a weight"):
        Finetune.of({"task": "sst2", "second_step": {"layers": {"hidden": 0.0, "relation": 0.0}}})
