import model_exports
import models_with_heads
import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from cluster.artifacts import artifact, errors
from deploy.conversion import task_score
from eval.finetune.task_model import ModelError
from eval.tasks.definitions import TASKS
from eval.tasks.examples import dev_from_folder
from eval.tasks.metrics import measure


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("score")
    model = model_exports.mrpc_model(root / "model")
    return {
        "model": model,
        "onnx": model_exports.onnx(model, root / "onnx"),
        "data": model_exports.pairs(root / "data"),
    }


def score(folders, which: str, out, **values) -> artifact.Artifact:
    inputs = {"model": folders[which], "data": folders["data"]}
    return model_exports.make("eval.score", out, inputs, task="mrpc", **values)


def test_a_score_is_that_of_the_model_asked_one_by_one_in_plain_transformers(folders, tmp_path):
    _, (examples,) = dev_from_folder(TASKS["mrpc"], folders["data"])
    model = AutoModelForSequenceClassification.from_pretrained(folders["model"]).eval()
    tokenizer = AutoTokenizer.from_pretrained(folders["model"])
    said = []
    for first, second in zip(*examples.texts, strict=True):
        encoded = tokenizer(first, second, truncation="longest_first", max_length=64, return_tensors="pt")
        with torch.no_grad():
            said.append(int(model(encoded["input_ids"]).logits.argmax()))
    wanted = measure(TASKS["mrpc"], np.array(said), examples.labels)
    for which, batch in (("model", 8), ("onnx", 1), ("onnx", 5)):
        made = score(folders, which, tmp_path / f"{which}-{batch}", batch=batch)
        assert made.facts["metrics"] == wanted
        assert made.facts["score"] == wanted["accuracy_f1"]
        assert (made.facts["examples"], made.facts["max_length"]) == (24, 64)


def test_scores_record_the_limit_and_the_runtime(folders, tmp_path):
    made = score(folders, "onnx", tmp_path / "score", limit=5)
    assert (made.facts["examples"], made.facts["subset"]) == (5, True)
    assert made.facts["runtime"].startswith("ONNX Runtime")
    assert made.facts["bytes"] == (folders["onnx"] / "model.onnx").stat().st_size


def test_a_model_of_other_labels_or_of_fewer_tokens_is_refused(folders, tmp_path):
    other = models_with_heads.model_folder(tmp_path / "other", "distilbert", "classification", labels=("no", "yes"))
    with pytest.raises(ModelError, match=r"has the labels no, yes, .* not_equivalent, equivalent"):
        model_exports.make("eval.score", tmp_path / "a", {"model": other, "data": folders["data"]}, task="mrpc")
    with pytest.raises(ModelError, match="max_length = 65, but the model reads 64 tokens"):
        score(folders, "model", tmp_path / "b", max_length=65)
    with pytest.raises(errors.StageError, match="stride is for questions"):
        score(folders, "model", tmp_path / "c", stride=3)


@pytest.mark.long
def test_an_export_reports_its_loss_on_the_task(folders, tmp_path):
    inputs = {"export": folders["onnx"], "model": folders["model"], "data": folders["data"]}
    loose = {"relative": 10.0, "agreement": 0.0, "score": 100.0}
    made = model_exports.make("deploy.quantize", tmp_path / "int8", inputs, tolerance=loose, score={"task": "mrpc"})
    said = made.facts["parity"]["score"]
    assert said["difference"] == said["export"] - said["model"]
    assert said["model"] == score(folders, "model", tmp_path / "score").facts["score"]
    with pytest.raises(errors.StageError, match=r"does not say what it was fine-tuned on: write score\.task"):
        model_exports.make("deploy.quantize", tmp_path / "untold", inputs, tolerance=loose)


def test_the_allowed_drop_decides_the_verdict():
    found = {"task": "mrpc", "model": 80.0, "export": 78.5, "difference": -1.5}
    task_score.check(found, 1.5, "it")
    task_score.check({**found, "difference": 3.0}, 0.0, "it")
    for difference, most in ((-1.5, 1.4), (float("nan"), 100.0)):
        with pytest.raises(errors.StageError, match=r"it loses .* points of mrpc \(80\.00 to 78\.50\)"):
            task_score.check({**found, "difference": difference}, most, "it")
    for keeps in (True, False):
        with pytest.raises(errors.StageError) as refused:
            task_score.check(found, 1.0, "it", keeps)
        assert ("sensitivity" in str(refused.value)) == keeps
