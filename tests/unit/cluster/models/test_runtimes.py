"""Runtimes of exports, and the descriptions of exports."""

import model_exports
import models_with_heads
import numpy as np
import pytest

from cluster.artifacts import errors
from cluster.models import export_spec, runtimes
from cluster.models.export_spec import Exported


def description(**changes) -> Exported:
    values = {
        "format": "litert-int8",
        "runtime": "litert",
        "files": {"8": "model_8.tflite", "16": "model_16.tflite"},
        "head": "question-answering",
        "inputs": ("input_ids", "attention_mask"),
        "outputs": {"start_logits": "positions", "end_logits": "positions"},
        "positions": 16,
        "pad": 7,
        "vocab_size": 100,
        "parameters": 1,
        "rows": "one",
    }
    return Exported(**{**values, **changes})


def test_a_description_survives_its_file_in_order(tmp_path):
    written = description(outputs={"start_logits": "positions", "end_logits": "positions"})
    written.write(tmp_path)
    found = export_spec.read(tmp_path)
    assert found == written
    assert list(found.outputs) == ["start_logits", "end_logits"], "ExecuTorch identifies outputs by their order"
    assert found.lengths == (8, 16)
    assert description(files={"any": "model.onnx"}).lengths is None
    with pytest.raises(errors.StageError, match=r"it has no runtime\.json"):
        export_spec.read(tmp_path / "nothing")


def test_bytes_are_those_of_the_model_with_what_belongs_to_it(tmp_path):
    for name, size in (("model.xml", 3), ("model.bin", 40), ("config.json", 500)):
        (tmp_path / name).write_bytes(b"x" * size)
    assert description(files={"any": "model.xml"}).bytes(tmp_path) == 43
    for name, size in (("model[1].xml", 5), ("model[1].bin", 60), ("model1.bin", 700)):
        (tmp_path / name).write_bytes(b"x" * size)
    assert description(files={"any": "model[1].xml"}).bytes(tmp_path) == 65
    (tmp_path / "package.mlpackage" / "weights").mkdir(parents=True)
    (tmp_path / "package.mlpackage" / "weights" / "weight.bin").write_bytes(b"x" * 70)
    assert description(files={"any": "package.mlpackage"}).bytes(tmp_path) == 70


def test_rows_are_padded_to_the_shortest_length_that_holds_them_and_cut_back():
    seen = []

    def of_length(length):
        def call(feed):
            assert {values.shape for values in feed.values()} == {(1, length)}
            seen.append(feed)
            return {name: feed["input_ids"].astype(np.float32) for name in ("start_logits", "end_logits")}

        return call

    padded = runtimes.row_by_row(runtimes._padded(description(), {8: of_length(8), 16: of_length(16)}))
    ids = np.arange(20).reshape(2, 10)
    found = padded({"input_ids": ids, "attention_mask": np.ones_like(ids)})
    assert (found["start_logits"] == ids).all()
    assert [feed["input_ids"][0, 10:].tolist() for feed in seen] == [[7] * 6] * 2, "padded with the padding token"
    assert all(feed["attention_mask"].sum() == 10 for feed in seen)
    padded({"input_ids": ids[:, :8], "attention_mask": np.ones((2, 8), dtype=np.int64)})
    with pytest.raises(errors.StageError, match="17 tokens are more than this litert-int8 takes: at most 16"):
        padded({"input_ids": np.ones((1, 17), dtype=np.int64), "attention_mask": np.ones((1, 17), dtype=np.int64)})


def test_unavailable_runtimes_say_what_to_do(tmp_path, monkeypatch):
    description(format="coreml-int8", runtime="coreml").write(tmp_path)
    with pytest.raises(errors.StageError, match="runs on a Mac, iPhone or iPad only"):
        runtimes.open_export(tmp_path)
    with pytest.raises(errors.StageError, match=r"no-such-runtime is not installed: pip install 'stillhouse\[some\]'"):
        runtimes.require("no-such-runtime", "'stillhouse[some]'")


@pytest.mark.long
def test_a_batch_is_answered_as_its_rows_are(tmp_path):
    export = model_exports.onnx(
        models_with_heads.model_folder(tmp_path / "model", "distilbert", "question-answering"), tmp_path / "o"
    )
    call = runtimes.open_export(export)
    ids = np.random.default_rng(0).integers(5, 100, (3, 9))
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    whole, single = call(feed), runtimes.row_by_row(call)(feed)
    for name in ("start_logits", "end_logits"):
        np.testing.assert_allclose(whole[name], single[name], atol=1e-5)
