"""Every stage that reads a model refuses one that was changed after it was made, or whose files do not fit."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import altered_models
import model_exports
import pytest
import result_folders

from cluster.artifacts import registry, stage
from cluster.artifacts.commit import ArtifactError
from cluster.artifacts.errors import StageError
from cluster.inspect.cli import look
from deploy import predict
from distill.modeling import model_shape
from eval.hub import model_card
from eval.report import stage as report


@dataclass(frozen=True)
class Made:
    """A model artifact, its export, and data of its task."""

    model: Path
    export: Path
    data: Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    root = tmp_path_factory.mktemp("made")
    folder = model_exports.mrpc_model(root / "folder")
    model = altered_models.as_artifact(folder, root / "model", "finetune", task="mrpc", layers=1)
    return Made(model, model_exports.onnx(model, root / "onnx"), model_exports.pairs(root / "data"))


def run(name: str, inputs: Mapping[str, Path], out: Path, **values: Any) -> None:
    found = registry.find(name)
    out.mkdir()
    found.run(found.read(values), inputs, out)


Way = Callable[[Path, Made, Path], object]

WAYS: dict[str, Way] = {
    "teacher": lambda changed, made, out: run("distill.teacher", {}, out, source=str(changed)),
    "plan": lambda changed, made, out: model_shape.find(str(changed)),
    "finetune": lambda changed, made, out: run(
        "eval.finetune", {"model": changed, "data": made.data}, out, task="mrpc"
    ),
    "score": lambda changed, made, out: run("eval.score", {"model": changed, "data": made.data}, out, task="mrpc"),
    "onnx": lambda changed, made, out: run("deploy.onnx_export", {"model": changed}, out),
    "latency": lambda changed, made, out: run("eval.latency", {"student": changed}, out),
    "predict": lambda changed, made, out: predict.load(changed),
}
OF_ARTIFACTS: dict[str, Way] = {
    "second step": lambda changed, made, out: run(
        "eval.finetune",
        {"model": made.model, "teacher": changed, "data": made.data},
        out,
        task="mrpc",
        second_step={},
    ),
    "quantize": lambda changed, made, out: run("deploy.quantize", {"model": changed, "export": made.export}, out),
    "inspect": lambda changed, made, out: look(changed, 1, verify=False),
}
OF_EXPORTS: dict[str, Way] = {
    "score": WAYS["score"],
    "predict": WAYS["predict"],
    "inspect": OF_ARTIFACTS["inspect"],
    "latency": lambda changed, made, out: run("eval.latency", {"student": made.model, "export": changed}, out),
    "proxy": lambda changed, made, out: run("eval.mobile", {"student": changed}, out, way={"kind": "proxy"}),
    "quantize": lambda changed, made, out: run("deploy.quantize", {"model": made.model, "export": changed}, out),
    "browser": lambda changed, made, out: run("deploy.browser_layout", {"export": changed}, out),
}


@pytest.mark.parametrize("way", [*WAYS, *OF_ARTIFACTS])
def test_a_changed_bit_of_the_weights_is_refused(made: Made, tmp_path: Path, way: str) -> None:
    changed = altered_models.damaged(made.model, tmp_path / "changed")
    with pytest.raises(ArtifactError, match=r"changed/model\.safetensors was changed"):
        {**WAYS, **OF_ARTIFACTS}[way](changed, made, tmp_path / "out")


@pytest.mark.parametrize("way", OF_EXPORTS)
def test_a_changed_bit_of_an_export_is_refused(made: Made, tmp_path: Path, way: str) -> None:
    changed = altered_models.damaged(made.export, tmp_path / "changed", "model.onnx")
    with pytest.raises(ArtifactError, match=r"changed/model\.onnx was changed"):
        OF_EXPORTS[way](changed, made, tmp_path / "out")


@pytest.mark.parametrize("way", WAYS)
def test_a_configuration_with_fewer_layers_is_refused(made: Made, tmp_path: Path, way: str) -> None:
    deeper = model_exports.mrpc_model(tmp_path / "two", layers=2)
    changed = altered_models.with_config(deeper, tmp_path / "changed", n_layers=1)
    with pytest.raises(StageError, match=r"changed: config\.json has 1 layer, the weights have 2"):
        WAYS[way](changed, made, tmp_path / "out")


def test_a_changed_student_gets_no_card_and_no_report(tmp_path: Path) -> None:
    out = result_folders.suite(tmp_path / "out")
    stage.execute(report.STAGE, report.Report(), {"results": out}, tmp_path / "report")
    changed = altered_models.damaged(out / "students/student", tmp_path / "changed")
    with pytest.raises(ArtifactError, match=r"changed/model\.safetensors was changed"):
        model_card.fill(tmp_path / "report", changed, model_card.CardFacts())
    shutil.rmtree(out / "students/student")
    shutil.copytree(changed, out / "students/student")
    with pytest.raises(ArtifactError, match=r"student/model\.safetensors was changed"):
        stage.execute(report.STAGE, report.Report(), {"results": out}, tmp_path / "again")


def test_a_changed_teacher_trains_no_student(training_folder: Path, tmp_path: Path) -> None:
    changed = altered_models.damaged(training_folder / "teacher", tmp_path / "changed")
    inputs = {"tokens": training_folder / "tokens", "teacher": changed}
    with pytest.raises(ArtifactError, match=r"changed/model\.safetensors was changed"):
        run("distill.train", inputs, tmp_path / "out", steps=1, rows_per_step=1)


def test_a_changed_tokenizer_of_rows_gets_no_student(training_folder: Path, tmp_path: Path) -> None:
    """The student is saved with the tokenizer of its rows."""
    changed = altered_models.damaged(training_folder / "tokens", tmp_path / "changed", "tokenizer.json")
    inputs = {"tokens": changed, "teacher": training_folder / "teacher"}
    with pytest.raises(ArtifactError, match=r"changed/tokenizer\.json was changed"):
        run("distill.train", inputs, tmp_path / "out", steps=1, rows_per_step=1)
