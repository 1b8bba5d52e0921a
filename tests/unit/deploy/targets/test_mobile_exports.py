"""Exports for servers and phones: each gives the outputs of its model in its own runtime."""

import importlib.metadata
import json
import shutil
import subprocess
import sys
from pathlib import Path

import model_exports
import models_with_heads
import numpy as np
import paths
import pytest
import tokens_artifact
import torch

from cluster.artifacts import artifact, commit, errors
from cluster.models import export_spec, runtimes
from deploy import predict

FAMILIES = ("distilbert", "bert", "roberta")
HEADS = ("masked-words", "classification", "question-answering")
LOOSE = {"relative": 0.2, "agreement": 0.6}

OPENVINO = model_exports.needs("openvino", "nncf")
EXECUTORCH = model_exports.needs("executorch", "torchao")
LITERT = model_exports.needs("ai-edge-litert", "litert-torch", "ai-edge-quantizer")
COREML = model_exports.needs("coremltools")
ROUNDED_AND_NOT = pytest.mark.parametrize(
    ("family", "head", "precision"),
    [
        ("distilbert", "masked-words", "int8"),
        ("bert", "question-answering", "fp32"),
        ("roberta", "classification", "int8"),
    ],
)


@pytest.fixture(scope="module")
def onnx_of_a_model(tmp_path_factory):
    root = tmp_path_factory.mktemp("onnx")
    model = models_with_heads.model_folder(root / "model", "distilbert", "classification")
    return model, model_exports.onnx(model, root / "onnx")


def outputs(folder, model, head, length):
    """Outputs of an export in its runtime and of the model in transformers, on one padded row."""
    ids = np.random.default_rng(length).integers(5, 100, (2, length))
    mask = np.ones_like(ids)
    mask[1, length - length // 3 :] = 0
    feed = {"input_ids": ids, "attention_mask": mask}
    if "token_type_ids" in export_spec.read(folder).inputs:
        feed["token_type_ids"] = mask * (np.arange(length) >= length // 2)
    with torch.no_grad():
        wanted = models_with_heads.load(model, head)(
            **{name: torch.from_numpy(values) for name, values in feed.items()}
        )
    found = runtimes.open_export(folder)(feed)
    for name, values in found.items():
        whole = wanted[name].numpy()
        assert values.shape == whole.shape
        real = mask.astype(bool) if head != "classification" else slice(None)
        yield whole[real], values[real]


def check(made: artifact.Artifact, model, head, closeness: float) -> None:
    pairs = [pair for length in (3, 11, 24) for pair in outputs(made.path, model, head, length)]
    scale = max(np.abs(wanted).max() for wanted, _ in pairs)
    assert max(np.abs(wanted - found).max() for wanted, found in pairs) <= closeness * scale
    facts = made.facts
    assert facts["bytes"] == export_spec.read(made.path).bytes(made.path) > 0
    assert facts["parity"]["relative"] <= closeness
    assert predict.load(made.path).described.head == head


@OPENVINO
@pytest.mark.long
@pytest.mark.parametrize("family", FAMILIES)
def test_openvino_calibrates_on_corpus_rows(tmp_path, family):
    model = models_with_heads.model_folder(tmp_path / "model", family, "question-answering")
    tokens = tokens_artifact.of_length(tmp_path / "tokens", model, 32, 100, 4)
    inputs = {"model": model, "tokens": tokens}
    # On CPUs without VNNI, sums of 8-bit products saturate, and random models decide between nearly equal choices.
    tolerance = {**LOOSE, "agreement": 0.3}
    values = {"probe": model_exports.PROBE, "tolerance": tolerance, "calibration": {"rows": 8, "lengths": [8, 16]}}
    made = model_exports.make("deploy.openvino_export", tmp_path / "int8", inputs, **values)
    check(made, model, "question-answering", 0.2)
    assert made.facts["parity"]["relative"] > 1e-5, "without a difference, nothing was quantized"
    if family == "distilbert":
        kept = model_exports.make(
            "deploy.openvino_export", tmp_path / "kept", inputs, **values, keep=["*.layer.*", "qa_outputs"]
        )
        assert kept.facts["parity"]["relative"] < 0.5 * made.facts["parity"]["relative"]
        assert kept.facts["bytes"] > made.facts["bytes"]
        with pytest.raises(errors.StageError, match="keep: no layer is named everything"):
            model_exports.make("deploy.openvino_export", tmp_path / "no", inputs, **values, keep=["everything"])
    whole = model_exports.make(
        "deploy.openvino_export", tmp_path / "fp32", {"model": model}, precision="fp32", probe=model_exports.PROBE
    )
    check(whole, model, "question-answering", 1e-5)
    with pytest.raises(errors.StageError, match="belong together"):
        model_exports.make("deploy.openvino_export", tmp_path / "none", {"model": model}, probe=model_exports.PROBE)


@EXECUTORCH
@pytest.mark.long
@ROUNDED_AND_NOT
def test_executorch_is_one_file_for_any_length(tmp_path, family, head, precision):
    model = models_with_heads.model_folder(tmp_path / "model", family, head)
    values = {"precision": precision, "probe": model_exports.PROBE, "tolerance": LOOSE}
    made = model_exports.make("deploy.executorch_export", tmp_path / "export", {"model": model}, **values)
    check(made, model, head, 0.1 if precision == "int8" else 1e-5)
    assert made.facts["lengths"] is None


@LITERT
@pytest.mark.long
@ROUNDED_AND_NOT
def test_litert_has_a_file_for_each_length(tmp_path, family, head, precision):
    model = models_with_heads.model_folder(tmp_path / "model", family, head)
    values = {"precision": precision, "lengths": [16, 24], "probe": model_exports.PROBE, "tolerance": LOOSE}
    made = model_exports.make("deploy.litert_export", tmp_path / "export", {"model": model}, **values)
    check(made, model, head, 0.1 if precision == "int8" else 1e-5)
    assert made.facts["lengths"] == [16, 24]
    assert predict.load(made.path).described.positions == 24


@COREML
@pytest.mark.long
@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_core_ml_is_converted_and_says_that_it_was_not_run(tmp_path, precision):
    model = models_with_heads.model_folder(tmp_path / "model", "bert", "question-answering")
    made = model_exports.make("deploy.coreml_export", tmp_path / "export", {"model": model}, precision=precision)
    assert made.facts["parity"] is None
    assert "not run" in made.facts["not_run"]
    said = json.loads((made.path / "parity.json").read_text())
    assert said["traced"]["start_logits"]["relative"] < 1e-5
    with pytest.raises(errors.StageError, match="runs on a Mac"):
        predict.load(made.path)


@pytest.mark.long
def test_ort_mobile_answers_as_the_export_does(tmp_path):
    model = models_with_heads.model_folder(tmp_path / "model", "distilbert", "classification")
    onnx = model_exports.onnx(model, tmp_path / "onnx")
    int8 = model_exports.int8(onnx, model, tmp_path / "int8")
    for source, form, closeness in ((onnx, "ort", 1e-5), (int8, "ort-int8", 0.3)):
        inputs = {"export": source, "model": model}
        made = model_exports.make("deploy.ort_mobile", tmp_path / form, inputs)
        check(made, model, "classification", closeness)
        assert made.facts["format"] == form
        operators = (made.path / "required_operators_and_types.config").read_text()
        assert ("MatMulInteger" in operators) == (form == "ort-int8")


@pytest.mark.parametrize("module", ["browser_layout", "ort_mobile", "quantize", "sensitivity"])
def test_a_changed_export_is_not_converted(onnx_of_a_model, tmp_path, module):
    """Changes one byte of an embedding, far within the tolerance of the parity check."""
    model, whole = onnx_of_a_model
    damaged = Path(shutil.copytree(whole, tmp_path / "onnx"))
    contents = bytearray((damaged / "model.onnx").read_bytes())
    contents[len(contents) // 2] ^= 1
    (damaged / "model.onnx").write_bytes(contents)
    inputs = {"export": damaged} if module == "browser_layout" else {"export": damaged, "model": model}
    with pytest.raises(commit.ArtifactError, match="was changed after it was made"):
        model_exports.make(f"deploy.{module}", tmp_path / "out", inputs)
    assert not (tmp_path / "out").exists()


@pytest.mark.long
def test_a_browser_finds_the_model_and_a_whole_tokenizer(tmp_path):
    model = models_with_heads.model_folder(tmp_path / "model", "bert", "question-answering")
    onnx = model_exports.onnx(model, tmp_path / "onnx")
    int8 = model_exports.int8(onnx, model, tmp_path / "int8")
    made = model_exports.make("deploy.browser_layout", tmp_path / "browser", {"export": int8})
    assert (made.path / "onnx" / "model_quantized.onnx").read_bytes() == (int8 / "model.onnx").read_bytes()
    config = json.loads((made.path / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "BertTokenizer"
    assert {config[name] for name in ("cls_token", "sep_token", "pad_token", "mask_token", "unk_token")} == {
        "[CLS]", "[SEP]", "[PAD]", "[MASK]", "[UNK]",
    }  # fmt: skip
    passage = "She poured the warm mash into the copper still."
    assert predict.load(made.path)("What?", passage) == predict.load(int8)("What?", passage)
    with pytest.raises(errors.StageError, match="give an export made by stillhouse"):
        model_exports.make("deploy.browser_layout", tmp_path / "again", {"export": made.path})


@EXECUTORCH
@pytest.mark.long
def test_executorch_answers_without_notes_of_its_libraries(tmp_path):
    model = models_with_heads.model_folder(tmp_path / "model", "distilbert", "classification")
    made = model_exports.make(
        "deploy.executorch_export", tmp_path / "out", {"model": model}, tolerance=model_exports.LOOSE
    )
    command = [sys.executable, "-m", "deploy.predict", str(made.path), "a text"]
    done = subprocess.run(command, cwd=paths.ROOT, capture_output=True, text=True, check=True)
    assert done.stdout
    assert done.stderr == ""


@EXECUTORCH
def test_torchao_alone_warns():
    """Else the package ``cluster`` need not silence it any longer."""
    done = subprocess.run([sys.executable, "-c", "import torchao"], capture_output=True, text=True, check=True)
    for cause in ("Failed to load", "register_constant"):
        assert cause in done.stderr


@pytest.mark.parametrize(
    ("module", "distribution", "advice"),
    [
        ("deploy.openvino_export", "openvino", r"stillhouse\[openvino\]"),
        ("deploy.executorch_export", "executorch", r"stillhouse\[executorch\]"),
        ("deploy.coreml_export", "coremltools", r"stillhouse\[coreml\]"),
        ("deploy.litert_export", "ai-edge-litert", r"stillhouse\[litert\]"),
    ],
)
def test_a_toolchain_that_is_absent_is_one_line_with_its_extra(tmp_path, monkeypatch, module, distribution, advice):
    there = importlib.metadata.version

    def version(name: str) -> str:
        if name == distribution:
            raise importlib.metadata.PackageNotFoundError(name)
        return there(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    model = models_with_heads.model_folder(tmp_path / "model", "distilbert", "classification")
    with pytest.raises(errors.StageError, match=f"^{distribution} is not installed: pip install '{advice}'$"):
        model_exports.make(module, tmp_path / "out", {"model": model})
