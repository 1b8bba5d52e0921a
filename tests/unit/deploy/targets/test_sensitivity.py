import model_exports
import models_with_heads
import numpy as np
import onnx
import pytest
import tokens_artifact
import torch

from cluster.artifacts import artifact, errors
from cluster.tokens.rows import open_tokens
from deploy.conversion.source_model import open_source_model
from deploy.targets import calibration_rows, quantize


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("sensitivity")
    model = models_with_heads.model_folder(root / "model", "bert", "classification")
    # One layer has a far larger rounding error than the others: an outlier in every row stretches the scale.
    loaded = models_with_heads.load(model, "classification")
    with torch.no_grad():
        loaded.bert.encoder.layer[0].output.dense.weight[:, 0] *= 300
    loaded.save_pretrained(model)
    tokens = tokens_artifact.of_length(root / "tokens", model, 32, 100, 4)
    return {"model": model, "export": model_exports.onnx(model, root / "onnx"), "tokens": tokens}


def given(folders, *roles):
    return {role: folders[role] for role in roles}


@pytest.fixture(scope="module")
def measured(folders):
    out = folders["model"].parent / "sensitivity"
    values = {"calibration": {"rows": 6, "lengths": [12]}, "keep": 1}
    return model_exports.make("deploy.sensitivity", out, folders, **values)


def test_the_most_sensitive_layer_is_found_and_keeping_it_helps(folders, measured, tmp_path):
    rows = measured.facts["layers"]
    assert measured.facts["keep"] == [rows[0]["layer"]]
    assert {row["layer"] for row in rows} >= {"classifier", "bert.pooler.dense"}
    # Without VNNI, the sums of ONNX Runtime saturate, which may harm the classifier more than any rounding.
    outlier, *others = [row for row in rows if ".encoder." in row["layer"]]
    assert outlier["layer"] == "bert.encoder.layer.0.output.dense"
    assert outlier["bytes_saved"] == 3 * 128 * 32
    assert outlier["relative"] > 5 * others[0]["relative"]
    inputs = given(folders, "model", "export")
    plain = artifact.read(model_exports.int8(inputs["export"], inputs["model"], tmp_path / "plain"))
    kept = artifact.read(
        model_exports.int8(inputs["export"], inputs["model"], tmp_path / "kept", keep=measured.facts["keep"])
    )
    assert kept.facts["parity"]["relative"] < 0.5 * plain.facts["parity"]["relative"]
    assert kept.facts["float_layers"] == measured.facts["keep"]


def test_kept_layers_stay_float_in_the_file(folders, tmp_path):
    inputs = given(folders, "model", "export")
    for pattern, layers in (("classifier", 1), ("*.layer.0.attention.*", 4), ("*", 11)):
        made = model_exports.int8(inputs["export"], inputs["model"], tmp_path / str(layers), keep=[pattern])
        floats = [
            values.name
            for values in onnx.load(made / "model.onnx").graph.initializer
            if values.data_type == onnx.TensorProto.FLOAT and len(values.dims) == 2
        ]
        assert len(floats) == layers
    with pytest.raises(errors.StageError, match=r"keep: no layer is named layer\.0: write one of .*classifier"):
        model_exports.int8(inputs["export"], inputs["model"], tmp_path / "none", keep=["layer.0"])


def test_static_ranges_come_from_rows_and_need_them(folders, tmp_path):
    inputs = given(folders, "model", "export", "tokens")
    loose = {"tolerance": model_exports.LOOSE, "calibration": {"rows": 8, "lengths": [12]}}
    made = model_exports.make("deploy.quantize", tmp_path / "static", inputs, activations="static", **loose)
    assert made.facts["format"] == "int8-static"
    assert made.facts["float_layers"] == ["bert.pooler.dense", "classifier"], "the head's ranges are the task's own"
    operators = {node.op_type for node in onnx.load(made.path / "model.onnx").graph.node}
    assert "QuantizeLinear" in operators
    assert "DynamicQuantizeLinear" not in operators
    for wrong, activations in ((given(folders, "model", "export"), "static"), (inputs, "dynamic")):
        with pytest.raises(errors.StageError, match="give both or neither"):
            model_exports.make("deploy.quantize", tmp_path / "no", wrong, activations=activations, **loose)


def test_calibration_inputs_are_texts_and_pairs_cut_from_the_rows(folders, tmp_path):
    source = open_source_model(folders["model"])
    settings = calibration_rows.Calibration(rows=6, lengths=(12, 20))
    feeds = calibration_rows.feeds(settings, folders["tokens"], source)
    again = calibration_rows.feeds(settings, folders["tokens"], source)
    assert all((one["input_ids"] == two["input_ids"]).all() for one, two in zip(feeds, again, strict=True))
    rows = {tuple(row[~np.isin(row, source.tokenizer.all_special_ids)][:4]) for row in _rows(folders)}
    for number, feed in enumerate(feeds):
        ids = feed["input_ids"][0]
        assert len(ids) <= (12, 20)[number // 2 % 2]
        separators = np.flatnonzero(ids == source.tokenizer.sep_token_id)
        assert len(separators) == 1 + number % 2
        assert ids[0] == source.tokenizer.cls_token_id
        assert feed["token_type_ids"].sum() == (len(ids) - separators[0] - 1)
        assert tuple(ids[1:5]) in rows
    other = models_with_heads.model_folder(tmp_path / "other", "roberta", "classification")
    with pytest.raises(errors.StageError, match="another vocabulary"):
        calibration_rows.feeds(settings, folders["tokens"], open_source_model(other))


def _rows(folders):
    opened = open_tokens(folders["tokens"])
    return opened.train.take(np.arange(len(opened.train)))


def test_an_int8_export_has_nothing_left_to_measure(folders, tmp_path):
    inputs = given(folders, "model", "export")
    int8 = model_exports.int8(inputs["export"], inputs["model"], tmp_path / "int8")
    with pytest.raises(errors.StageError, match="is int8 already"):
        model_exports.make("deploy.sensitivity", tmp_path / "s", {**inputs, "export": int8})


def test_layers_are_named_as_in_the_model(folders):
    known = quantize.layers(quantize.load(folders["export"] / "model.onnx"))
    modules = {name for name, _ in models_with_heads.load(folders["model"], "classification").named_modules()}
    assert set(known) <= modules
    assert all(len(nodes) == 1 for nodes in known.values())
