"""Fine-tuning and scoring keep the meaning of labels, whatever their numbers in data and models."""

import json
import random
import shutil
from pathlib import Path

import datasets
import model_exports
import models_with_heads
import numpy as np
import pytest
import tiny
import torch
from finetune_tasks import BAD, GOOD, finetune
from safetensors.torch import load_file, save_file

from deploy import predict
from eval.finetune.task_model import ModelError, load_trained, open_source, start
from eval.tasks.definitions import TASKS

MNLI = ("entailment", "neutral", "contradiction")
REORDERED = ("contradiction", "entailment", "neutral")
WORDS = {"entailment": GOOD[:5], "neutral": GOOD[5:], "contradiction": BAD[:5]}


def nli(folder: Path, names: tuple[str, ...]) -> Path:
    """Pairs whose hypothesis tells the label by its words; the classes are numbered as in ``names``."""
    chance = random.Random(4)
    rows = []
    for _ in range(240):
        name = chance.choice(MNLI)
        words = chance.choices(WORDS[name], k=4)
        rows.append({"premise": "the and a", "hypothesis": " ".join(words), "label": names.index(name)})
    text = datasets.Value("string")
    features = datasets.Features(premise=text, hypothesis=text, label=datasets.ClassLabel(names=list(names)))
    train, dev = (datasets.Dataset.from_list(part, features=features) for part in (rows[:180], rows[180:]))
    saved = datasets.DatasetDict(train=train, validation_matched=dev, validation_mismatched=dev)
    saved.save_to_disk(str(folder))
    return folder


def reordered(model: Path, folder: Path, names: tuple[str, ...], named: bool = True) -> Path:
    """The same classifier with its outputs in the order of ``names``."""
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text())
    order = [int(config["label2id"][name]) for name in names]
    shown = [name.upper() if named else f"LABEL_{number}" for number, name in enumerate(names)]
    config |= {"id2label": dict(enumerate(shown)), "label2id": {name: number for number, name in enumerate(shown)}}
    (folder / "config.json").write_text(json.dumps(config))
    weights = load_file(folder / "model.safetensors")
    for name in ("classifier.weight", "classifier.bias"):
        weights[name] = weights[name][order].contiguous()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    for name in ("manifest.json", "README.md"):
        (folder / name).unlink(missing_ok=True)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("labels")
    found = {"lab_std": nli(root / "lab_std", MNLI), "lab_reo": nli(root / "lab_reo", REORDERED)}
    teacher = tiny.bert_teacher(root / "teacher", layers=1)
    finetune(root / "teacher", found["lab_reo"], root / "model", task="mnli")
    assert teacher is not None
    return {**found, "model": root / "model"}


def score(model: Path, data: Path, out: Path) -> dict[str, float]:
    inputs = {"model": model, "data": data}
    return dict(model_exports.make("eval.score", out, inputs, task="mnli", batch=16).facts["metrics"])


def test_data_sets_that_number_their_classes_differently_give_the_same_score(trained, tmp_path) -> None:
    scores = [score(trained["model"], trained[name], tmp_path / name) for name in ("lab_std", "lab_reo")]
    assert scores[0] == scores[1]
    assert scores[0]["accuracy"] > 90.0
    for name, words in WORDS.items():
        assert predict.load(trained["model"])("the and a", " ".join(words[:4]))[0].text == name


def test_a_model_that_orders_its_labels_differently_has_the_same_score(trained, tmp_path) -> None:
    other = reordered(trained["model"], tmp_path / "other", ("neutral", "contradiction", "entailment"))
    export = model_exports.onnx(other, tmp_path / "onnx")
    wanted = score(trained["model"], trained["lab_std"], tmp_path / "score")
    for name, folder in (("folder", other), ("export", export)):
        assert score(folder, trained["lab_std"], tmp_path / f"score-{name}") == wanted
        best = predict.load(folder)("the and a", " ".join(WORDS["contradiction"][:4]))[0]
        assert best.text == "CONTRADICTION"


def test_a_head_in_another_order_is_loaded_in_the_order_of_the_task(trained, tmp_path) -> None:
    """As the teacher of a second step, and as the start of a fine-tuning."""
    other = open_source(reordered(trained["model"], tmp_path / "other", ("neutral", "contradiction", "entailment")))
    task = TASKS["mnli"]
    wanted = load_trained(open_source(trained["model"]), task).classifier
    for model in (load_trained(other, task), start(other, task, seed=1)):
        assert torch.equal(model.classifier.weight, wanted.weight)
        assert torch.equal(model.classifier.bias, wanted.bias)
        assert list(model.config.id2label.values()) == list(MNLI)


def test_a_start_from_a_head_of_other_labels_is_said(trained, tmp_path, caplog) -> None:
    unnamed = open_source(reordered(trained["model"], tmp_path / "unnamed", MNLI, named=False))
    with caplog.at_level("INFO", logger="stillhouse"):
        start(open_source(trained["model"]), TASKS["mnli"], seed=1)
    assert "LABEL" not in caplog.text
    with caplog.at_level("INFO", logger="stillhouse"):
        start(unnamed, TASKS["mnli"], seed=1)
    assert "LABEL_0, LABEL_1, LABEL_2" in caplog.text


def test_labels_without_names_are_refused(trained, tmp_path) -> None:
    """Published MNLI models number their labels in different orders."""
    unnamed = reordered(trained["model"], tmp_path / "unnamed", MNLI, named=False)
    with pytest.raises(ModelError, match=r"LABEL_0, LABEL_1, LABEL_2.*id2label"):
        score(unnamed, trained["lab_std"], tmp_path / "score")


def test_a_model_with_another_head_is_refused(trained, tmp_path) -> None:
    other = models_with_heads.model_folder(tmp_path / "qa", "bert", "question-answering")
    with pytest.raises(ModelError, match="head for question-answering"):
        score(other, trained["lab_std"], tmp_path / "score")
    squad = {"model": trained["model"], "data": trained["lab_std"]}
    with pytest.raises(ModelError, match="head for classification"):
        model_exports.make("eval.score", tmp_path / "squad", squad, task="squad")


def test_a_score_of_another_scale_needs_no_name(tmp_path) -> None:
    """A regression has one output: there is nothing to match."""
    model = models_with_heads.model_folder(tmp_path / "model", "bert", "regression", labels=("LABEL_0",))
    rows = {"sentence1": ["a mill", "b"], "sentence2": ["c", "a river"], "score": [1.0, 4.5]}
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "data" / "dev.parquet")
    inputs = {"model": model, "data": tmp_path / "data"}
    made = model_exports.make("eval.score", tmp_path / "score", inputs, task="stsb")
    assert np.isfinite(made.facts["score"])
