import json
import shutil
from pathlib import Path

import models_with_heads
import numpy as np
import onnx
import onnxruntime
import paths
import pytest
import torch
from transformers import AutoTokenizer

from cluster.artifacts import artifact, errors, stage
from cluster.artifacts.recipe import load
from deploy.conversion.parity import Probe, Tolerance
from deploy.targets import onnx_export
from deploy.targets.quantize import STAGE, Quantization

REAL = paths.DATA / "models" / "minilm-l6-mlm"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return models_with_heads.model_folder(
        tmp_path_factory.mktemp("models") / "student", "bert", "classification", layers=2
    )


@pytest.fixture(scope="module")
def exported(model) -> Path:
    recipe = onnx_export.Export(probe=Probe(lengths=(8, 24), rows=3, seed=7))
    return stage.execute(onnx_export.STAGE, recipe, {"model": model}, model.parent / "export").path


def quantized(export: Path, model: Path, out: Path, **changes) -> artifact.Artifact:
    recipe = Quantization.of({"tolerance": {"relative": 0.3, "agreement": 0.5}, **changes})
    return stage.execute(STAGE, recipe, {"export": export, "model": model}, out)


def initializers(path: Path) -> list[np.ndarray]:
    return [onnx.numpy_helper.to_array(values) for values in onnx.load(path).graph.initializer]


def test_int8_is_smaller_and_still_the_model_at_any_length(model, exported, tmp_path):
    made = quantized(exported, model, tmp_path / "int8")
    facts = made.facts
    assert facts["format"] == "int8"
    assert facts["bytes"] == (made.path / "model.onnx").stat().st_size < 0.5 * facts["onnx_bytes"]
    assert facts["onnx_bytes"] == (exported / "model.onnx").stat().st_size
    # Without a difference, nothing was quantized.
    assert 1e-4 < facts["parity"]["relative"] <= 0.3
    loaded, session = (
        models_with_heads.load(model, "classification"),
        onnxruntime.InferenceSession(made.path / "model.onnx"),
    )
    for batch, length in ((1, 1), (2, 33), (1, 64)):
        ids = torch.randint(5, 100, (batch, length), generator=torch.Generator().manual_seed(length))
        with torch.no_grad():
            wanted = loaded(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.numpy()
        feed = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
        found = session.run(["logits"], {name: values.numpy() for name, values in feed.items()})[0]
        assert np.abs(found - wanted).max() < 0.3 * np.abs(wanted).max()


def test_int8_is_laid_out_like_the_export(model, exported, tmp_path):
    made = quantized(exported, model, tmp_path / "int8")
    assert {path.name for path in made.path.iterdir()} == {path.name for path in exported.iterdir()}
    assert (made.path / "config.json").read_bytes() == (exported / "config.json").read_bytes()
    assert AutoTokenizer.from_pretrained(made.path)("the mill")["input_ids"]
    said, before = (json.loads((folder / "parity.json").read_text()) for folder in (made.path, exported))
    assert said["inputs"] == before["inputs"], "both are measured on the same inputs"
    assert said["outputs"]["logits"]["relative"] == made.facts["parity"]["relative"]
    kept = ("parameters", "head", "source", "model_name", "opset")
    assert {key: made.facts[key] for key in kept} == {key: artifact.read(exported).facts[key] for key in kept}


def test_every_matrix_is_int8_with_a_scale_per_channel(model, exported, tmp_path):
    made = quantized(exported, model, tmp_path / "int8")
    arrays = initializers(made.path / "model.onnx")
    matrices = [values for values in arrays if values.ndim == 2 and values.size >= 32 * 3]
    assert {values.dtype for values in matrices} == {np.dtype(np.int8), np.dtype(np.uint8)}
    graph = onnx.load(made.path / "model.onnx").graph
    scales = {values.name: list(values.dims) for values in graph.initializer if values.name.endswith("_scale")}
    assert [128] in scales.values(), "one scale for each of the 128 channels of a feed-forward layer"


def test_seven_bits_leave_room_for_processors_without_vnni(model, exported, tmp_path):
    made = quantized(exported, model, tmp_path / "int8", weight_bits=7)
    largest = {
        int(np.abs(v.astype(np.int32)).max()) for v in initializers(made.path / "model.onnx") if v.dtype == np.int8
    }
    assert max(largest) == 64
    assert made.facts["weight_bits"] == 7


def test_int8_further_than_the_tolerance_is_refused_and_leaves_nothing(model, exported, tmp_path):
    with pytest.raises(errors.StageError, match=r"the int8 export .* tolerance\.relative allows 1e-06"):
        quantized(exported, model, tmp_path / "int8", tolerance={"relative": 1e-6})
    assert not (tmp_path / "int8").exists()


def test_the_wrong_model_or_export_is_refused(model, exported, tmp_path):
    shutil.copytree(model, tmp_path / "other")
    (tmp_path / "other" / "notes.txt").write_text("another folder")
    with pytest.raises(errors.StageError, match="give the model it was made from, student, as --model"):
        quantized(exported, tmp_path / "other", tmp_path / "int8")
    made = quantized(exported, model, tmp_path / "int8")
    with pytest.raises(errors.StageError, match="is int8 already"):
        quantized(made.path, model, tmp_path / "again")


@pytest.mark.long
@pytest.mark.real_data
@pytest.mark.skipif(not REAL.is_dir(), reason="no ../shared/data/models/minilm-l6-mlm next to the checkout")
def test_a_trained_model_keeps_its_words_in_int8(tmp_path):
    recipe = onnx_export.Export(probe=Probe(lengths=(8, 30), rows=2))
    exported = stage.execute(onnx_export.STAGE, recipe, {"model": REAL}, tmp_path / "onnx")
    assert exported.facts["parity"]["relative"] < 1e-5
    assert exported.facts["parity"]["agreement"] == 1.0
    made = stage.execute(STAGE, Quantization(), {"export": exported.path, "model": REAL}, tmp_path / "int8")
    assert made.facts["bytes"] < 0.27 * exported.facts["bytes"], "embeddings are quantized too"
    assert Tolerance().relative < made.facts["parity"]["relative"]
    tokenizer = AutoTokenizer.from_pretrained(made.path)
    session = onnxruntime.InferenceSession(made.path / "model.onnx")
    given = tokenizer("The capital of France is [MASK].", return_tensors="np")
    logits = session.run(["logits"], dict(given))[0]
    place = given["input_ids"][0].tolist().index(tokenizer.mask_token_id)
    best = tokenizer.convert_ids_to_tokens(logits[0, place].argsort()[-10:].tolist())
    assert "paris" in best


def test_the_shipped_recipe_is_the_documented_one():
    assert load(Quantization, "int8") == Quantization()
