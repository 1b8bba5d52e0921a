import json
import shutil
from pathlib import Path

import models_with_heads
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from transformers import BertConfig, BertForTokenClassification, DistilBertConfig, DistilBertForSequenceClassification

from cluster.artifacts import artifact, errors, stage
from cluster.artifacts.recipe import load
from deploy.conversion import finalize, source_model
from deploy.conversion.parity import Probe, Tolerance
from deploy.targets import onnx_export
from deploy.targets.onnx_export import STAGE, Export

SHORT = Probe(lengths=(8, 24), rows=2)
# Each takes seconds: the default tests cover the exports of a pipeline, the long tests all other combinations.
USUAL = [
    ("distilbert", "masked-words"),
    ("distilbert", "classification"),
    ("distilbert", "question-answering"),
    ("bert", "classification"),
    ("roberta", "masked-words"),
]
CASES = [
    pytest.param(family, head, marks=() if (family, head) in USUAL else pytest.mark.long)
    for family in source_model.FAMILIES
    for head in ("masked-words", "classification", "question-answering")
]


def export(model: Path, out: Path, **changes) -> artifact.Artifact:
    made = stage.execute(STAGE, Export(probe=SHORT, **changes), {"model": model}, out)
    assert made is not None
    return made


def both_outputs(
    model: Path, exported: Path, head: str, batch: int, length: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Outputs of the model in transformers and of the export in ONNX Runtime, on fixed ids."""
    loaded = models_with_heads.load(model, head)
    generator = torch.Generator().manual_seed(batch * 1000 + length)
    feed = {"input_ids": torch.randint(5, 100, (batch, length), generator=generator)}
    feed["attention_mask"] = torch.ones_like(feed["input_ids"])
    feed["attention_mask"][-1, length - length // 3 :] = 0
    session = onnxruntime.InferenceSession(exported / "model.onnx")
    if "token_type_ids" in [given.name for given in session.get_inputs()]:
        feed["token_type_ids"] = torch.arange(length).expand(batch, length) // max(1, length // 2) % 2
    with torch.no_grad():
        wanted = loaded(**feed)
    names = [output.name for output in session.get_outputs()]
    found = session.run(names, {name: values.numpy() for name, values in feed.items()})
    return [(wanted[name].numpy(), values) for name, values in zip(names, found, strict=True)]


@pytest.mark.parametrize(("family", "head"), CASES)
def test_every_family_and_head_is_exported_with_free_batch_and_length(tmp_path, family, head):
    model = models_with_heads.model_folder(tmp_path / "model", family, head)
    exported = export(model, tmp_path / "export")
    for batch, length in ((1, 1), (1, 5), (3, 41), (2, 64)):
        pairs = both_outputs(model, exported.path, head, batch, length)
        assert len(pairs) == (2 if head == "question-answering" else 1)
        for wanted, found in pairs:
            assert wanted.shape == found.shape
            np.testing.assert_allclose(found, wanted, atol=1e-4)
    facts = exported.facts
    assert (facts["format"], facts["head"], facts["model_name"]) == ("onnx", head, "model")
    assert facts["parameters"] == models_with_heads.load(model, head).num_parameters()
    assert facts["bytes"] == (exported.path / "model.onnx").stat().st_size
    assert facts["parity"]["relative"] < 1e-5


def test_token_types_are_an_input_only_of_models_that_tell_them_apart(tmp_path):
    for family, expected in (("bert", 3), ("distilbert", 2), ("roberta", 2)):
        source = source_model.open_source_model(
            models_with_heads.model_folder(tmp_path / family, family, "classification")
        )
        assert len(source.inputs) == expected
        assert source.positions == 64, "RoBERTa's two unused positions are not offered"


def test_a_regression_student_is_named_and_known_again(tmp_path):
    with artifact.create(tmp_path / "student", kind="student", inputs={}, recipe={}) as draft:
        models_with_heads.model_folder(draft.path, "bert", "regression")
    exported = export(tmp_path / "student", tmp_path / "export", opset=18)
    assert exported.facts["head"] == "regression"
    assert exported.facts["parity"]["agreement"] is None, "one value, nothing to choose"
    assert exported.facts["source"] == artifact.read(tmp_path / "student").identity == exported.inputs["model"]
    graph = onnx.load(exported.path / "model.onnx")
    assert graph.opset_import[0].version == exported.facts["opset"] == 18
    everything = (exported.path / "model.onnx").read_bytes()
    assert str(Path(onnx_export.__file__).parent).encode() not in everything, "the graph contains local paths"


def test_an_export_further_than_the_tolerance_is_refused_and_leaves_nothing(tmp_path):
    model = models_with_heads.model_folder(tmp_path / "model", "distilbert", "question-answering")
    with pytest.raises(errors.StageError, match=r"start_logits differs by .* tolerance\.relative allows 1e-12"):
        export(model, tmp_path / "export", tolerance=Tolerance(relative=1e-12))
    assert not (tmp_path / "export").exists()
    assert export(model, tmp_path / "export").facts["format"] == "onnx", (
        "the same place works with a tolerance that can be met"
    )


def test_a_model_without_an_export_is_refused_by_name(tmp_path):
    config = BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        architectures=[],
    )
    BertForTokenClassification(config).save_pretrained(tmp_path / "tagger")
    with pytest.raises(errors.StageError, match="BertForTokenClassification"):
        export(tmp_path / "tagger", tmp_path / "export")
    (tmp_path / "empty").mkdir()
    with pytest.raises(errors.StageError, match=r"it has no config\.json"):
        export(tmp_path / "empty", tmp_path / "export")


def test_another_family_is_refused(tmp_path):
    model = models_with_heads.model_folder(tmp_path / "model", "bert", "classification")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"model_type": "electra"}))
    with pytest.raises(errors.StageError, match=r"BertForSequenceClassification \(electra\)"):
        export(model, tmp_path / "export")


def test_a_model_without_a_saved_head_is_refused(tmp_path):
    model = models_with_heads.model_folder(tmp_path / "model", "bert", "masked-words")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"architectures": ["BertForSequenceClassification"]}))
    with pytest.raises(errors.StageError, match=r"weights lack bert\.pooler"):
        export(model, tmp_path / "export")


def test_a_tokenizer_must_be_there_and_fit(tmp_path):
    model = models_with_heads.model_folder(tmp_path / "model", "distilbert", "classification")
    shutil.copytree(model, tmp_path / "mute")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "mute" / name).unlink()
    with pytest.raises(errors.StageError, match="has no tokenizer"):
        export(tmp_path / "mute", tmp_path / "export")
    small = DistilBertConfig(vocab_size=20, dim=16, n_layers=1, n_heads=2, hidden_dim=16)
    DistilBertForSequenceClassification(small).save_pretrained(model)
    with pytest.raises(errors.StageError, match="its model 20: save the tokenizer"):
        export(model, tmp_path / "export")


def test_libraries_may_warn_again_after_an_export(caplog):
    with finalize.quiet():
        finalize.logger.warning("nobody can act upon this")
    finalize.logger.warning("this matters")
    assert [record.message for record in caplog.records] == ["this matters"]


def test_the_shipped_recipe_is_the_documented_one():
    assert load(Export, "onnx") == Export()
