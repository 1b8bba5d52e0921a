"""A model is what its files say: hashes of the manifest, and weights that fit the configuration."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import altered_models
import models_with_heads
import pytest
import tiny
import torch
from altered_models import Weights, with_config, with_weights
from transformers import (
    AlbertConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertConfig,
    CamembertConfig,
    DistilBertConfig,
    ElectraConfig,
    RobertaConfig,
    XLMRobertaConfig,
)

from cluster.artifacts.commit import ArtifactError
from cluster.artifacts.errors import StageError
from cluster.models import model_folder
from cluster.models.model_check import check
from cluster.models.model_loading import load, load_whole
from cluster.storage import filesystem

BUILDERS = {"bert": tiny.bert_teacher, "distilbert": tiny.distilbert, "roberta": tiny.roberta_teacher}
LAYERS = {"bert": "num_hidden_layers", "distilbert": "n_layers", "roberta": "num_hidden_layers"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {family: build(root / family, layers=2) for family, build in BUILDERS.items()}


@pytest.fixture(scope="module")
def sharded(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The BERT in half precision, in several files."""
    folder = tmp_path_factory.mktemp("sharded") / "bert"
    shutil.copytree(folders["bert"], folder, ignore=shutil.ignore_patterns("*.safetensors"))
    AutoModelForMaskedLM.from_pretrained(folders["bert"]).half().save_pretrained(folder, max_shard_size="50KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    return folder


def test_changed_weights_of_an_artifact_are_refused(folders: dict[str, Path], sharded: Path, tmp_path: Path) -> None:
    whole = altered_models.as_artifact(folders["bert"], tmp_path / "whole", "student")
    shards = altered_models.as_artifact(sharded, tmp_path / "shards", "student")
    for made in (whole, shards):
        check(made)
        for path in made.glob("*.safetensors"):
            with pytest.raises(ArtifactError, match="changed"):
                check(altered_models.damaged(made, tmp_path / f"{made.name}-{path.stem}", path.name))


def test_a_file_is_hashed_once_unless_it_changes(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = altered_models.as_artifact(folders["bert"], tmp_path / "student", "student")
    hashed: list[str] = []
    sha256 = filesystem.file_sha256

    def noted(path: filesystem.Location) -> str:
        hashed.append(path.name)
        return sha256(path)

    monkeypatch.setattr(filesystem, "file_sha256", noted)
    check(made)
    assert hashed.count("model.safetensors") == 1
    hashed.clear()
    check(made)
    assert hashed == []
    # The same contents in a new file of the same time.
    before = (made / "model.safetensors").stat()
    shutil.copy(made / "model.safetensors", made / "other")
    (made / "other").replace(made / "model.safetensors")
    os.utime(made / "model.safetensors", ns=(before.st_atime_ns, before.st_mtime_ns))
    check(made)
    assert hashed == ["model.safetensors"]


@pytest.mark.parametrize("family", BUILDERS)
@pytest.mark.parametrize("layers", [1, 3])
def test_a_configuration_of_other_layers_is_refused(
    folders: dict[str, Path], tmp_path: Path, family: str, layers: int
) -> None:
    changed = with_config(folders[family], tmp_path / "changed", **{LAYERS[family]: layers})
    with pytest.raises(StageError, match=f"{changed}: config.json has {layers} layers?, the weights have 2"):
        check(changed)
    for kind in (AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoModel):
        with pytest.raises(StageError, match=r"layer\.[12]\."):
            load(kind, changed)


@pytest.mark.parametrize(("key", "value"), [("vocab_size", 300), ("max_position_embeddings", 32)])
def test_a_configuration_of_other_embeddings_is_refused(
    folders: dict[str, Path], tmp_path: Path, key: str, value: int
) -> None:
    changed = with_config(folders["bert"], tmp_path / "changed", **{key: value})
    with pytest.raises(StageError, match=key):
        check(changed)
    with pytest.raises(StageError, match="embeddings"):
        load(AutoModelForMaskedLM, changed)


@pytest.mark.parametrize(("key", "value"), [("num_hidden_layers", "2"), ("vocab_size", 4.5), ("pad_token_id", 99999)])
def test_numbers_that_no_model_can_have_are_refused(
    folders: dict[str, Path], tmp_path: Path, key: str, value: object
) -> None:
    changed = with_config(folders["bert"], tmp_path / "changed", **{key: value})
    with pytest.raises(StageError, match=str(value)):
        check(changed)


@pytest.mark.parametrize("contents", ["", "{", "[1]", "\x00"])
def test_files_that_are_not_json_are_named(
    folders: dict[str, Path], sharded: Path, tmp_path: Path, contents: str
) -> None:
    for source, name in ((folders["bert"], "config.json"), (sharded, "model.safetensors.index.json")):
        changed = shutil.copytree(source, tmp_path / name)
        (changed / name).write_text(contents)
        with pytest.raises(StageError, match=f"{name} is no"):
            check(changed)


def test_layers_are_counted_over_all_shards(sharded: Path, tmp_path: Path) -> None:
    check(sharded)
    with pytest.raises(StageError, match="has 1 layer, the weights have 2"):
        check(with_config(sharded, tmp_path / "changed", num_hidden_layers=1))
    lost = shutil.copytree(sharded, tmp_path / "lost")
    last = sorted(lost.glob("*.safetensors"))[-1]
    last.unlink()
    with pytest.raises(StageError, match=last.name):
        check(lost)


def test_half_precision_in_shards_loads_as_the_same_model_in_fp32(folders: dict[str, Path], sharded: Path) -> None:
    model, absent = load(AutoModelForMaskedLM, sharded)
    assert not absent
    wanted = AutoModelForMaskedLM.from_pretrained(folders["bert"]).state_dict()
    for name, values in model.state_dict().items():
        assert values.dtype == torch.float32
        torch.testing.assert_close(values, wanted[name].half().float(), rtol=0, atol=0)
    assert model_folder.facts(sharded)["parameters"] == model_folder.facts(folders["bert"])["parameters"]
    assert 0 < model_folder.weight_bytes(sharded) < model_folder.weight_bytes(folders["bert"])


def test_heads_and_poolers_may_be_left_over(folders: dict[str, Path], tmp_path: Path) -> None:
    def more(weights: Weights) -> Weights:
        return weights | {
            "bert.embeddings.position_ids": torch.arange(64)[None],
            "bert.pooler.dense.weight": torch.zeros(32, 32),
            "cls.seq_relationship.weight": torch.zeros(2, 32),
        }

    changed = with_weights(folders["bert"], tmp_path / "more", more)
    check(changed)
    load_whole(AutoModelForMaskedLM, changed)
    _, absent = load(AutoModelForSequenceClassification, changed)
    assert absent == {"bert.pooler.dense.bias", "classifier.weight", "classifier.bias"}


def test_a_dropped_head_of_a_task_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = models_with_heads.model_folder(tmp_path / "squad", "bert", "question-answering")
    with caplog.at_level("INFO", logger="stillhouse"):
        load(AutoModelForSequenceClassification, source)
    assert "qa_outputs" in caplog.text


@pytest.mark.parametrize("labels", [["a", "b"], list("abcd"), None])
def test_a_head_of_another_size_is_no_lack_of_weights(tmp_path: Path, labels: list[str] | None) -> None:
    source = models_with_heads.model_folder(tmp_path / "three", "bert", "classification", labels=("a", "b", "c"))
    names = labels and dict(enumerate(labels))
    changed = with_config(source, tmp_path / "changed", id2label=names, label2id=None)
    with pytest.raises(StageError, match=rf"{len(labels or 'ab')} labels.* size of classifier\.bias.*correct config"):
        load_whole(AutoModelForSequenceClassification, changed)


@pytest.mark.parametrize("name", ["embeddings.word_embeddings.weight", "encoder.layer.0.output.dense.bias"])
def test_missing_weights_of_an_encoder_without_a_prefix_are_named(
    folders: dict[str, Path], tmp_path: Path, name: str
) -> None:
    AutoModel.from_pretrained(folders["bert"]).save_pretrained(tmp_path / "encoder")

    def less(weights: Weights) -> Weights:
        return {key: values for key, values in weights.items() if key != name}

    with pytest.raises(StageError, match=name):
        load(AutoModelForMaskedLM, with_weights(tmp_path / "encoder", tmp_path / "less", less))


def test_a_second_output_embedding_is_refused_where_the_configuration_shares_one(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    """transformers 4 would take the word embeddings, and 5 the other one."""

    def two(weights: Weights) -> Weights:
        words, bias = weights["bert.embeddings.word_embeddings.weight"], weights["cls.predictions.bias"]
        return weights | {"cls.predictions.decoder.weight": words + 1, "cls.predictions.decoder.bias": bias.clone()}

    changed = with_weights(folders["bert"], tmp_path / "two", two)
    with pytest.raises(StageError, match="tie_word_embeddings"):
        load(AutoModelForMaskedLM, changed)
    load_whole(AutoModelForMaskedLM, with_config(changed, tmp_path / "untied", tie_word_embeddings=False))


def test_cut_weights_are_named(folders: dict[str, Path], tmp_path: Path) -> None:
    cut = shutil.copytree(folders["bert"], tmp_path / "cut")
    path = cut / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(StageError, match="not a whole file"):
        check(cut)


CONFIGS = (BertConfig, DistilBertConfig, ElectraConfig, AlbertConfig, RobertaConfig, XLMRobertaConfig, CamembertConfig)


@pytest.mark.parametrize("kind", CONFIGS, ids=lambda kind: str(kind.model_type))
@pytest.mark.parametrize("pad", [0, 1, 3])
@torch.no_grad()
def test_positions_are_what_the_model_reads(kind: Callable[..., object], pad: int) -> None:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    own = {"dim": 8, "n_layers": 1, "n_heads": 1, "hidden_dim": 8}
    more = own if kind is DistilBertConfig else {**sizes, "embedding_size": 8}
    config = kind(vocab_size=20, max_position_embeddings=12, pad_token_id=pad, **more)
    model, longest = AutoModel.from_config(config).eval(), model_folder.positions(config)
    assert model(torch.full((1, longest), 9)).last_hidden_state.isfinite().all()
    with pytest.raises((IndexError, RuntimeError)):
        model(torch.full((1, longest + 1), 9))


def test_a_family_whose_positions_are_not_known_is_refused_by_name() -> None:
    from transformers import MPNetConfig

    with pytest.raises(StageError, match="mpnet"):
        model_folder.positions(MPNetConfig())


def test_every_family_is_tried() -> None:
    assert {kind.model_type for kind in CONFIGS} == {*model_folder.FAMILIES}
