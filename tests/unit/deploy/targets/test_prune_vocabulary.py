import json

import model_exports
import models_with_heads
import numpy as np
import pytest
import tiny
import tokens_artifact
import torch
from transformers import AutoTokenizer

from cluster.artifacts import artifact, errors
from cluster.tokens.rows import open_tokens
from deploy import predict

FEW = {"calibration": {"rows": 16, "lengths": [12]}}


def pruned(folder, family: str, head: str, **values) -> tuple[artifact.Artifact, dict]:
    model = models_with_heads.model_folder(folder / "model", family, head)
    tokens = tokens_artifact.of_length(folder / "tokens", model, 32, 30, 4)
    inputs = {"model": model, "tokens": tokens}
    return model_exports.make("deploy.prune_vocabulary", folder / "pruned", inputs, **FEW, **values), inputs


@pytest.mark.parametrize(
    ("family", "head"), [("bert", "masked-words"), ("distilbert", "masked-words"), ("distilbert", "classification")]
)
def test_remaining_words_give_the_same_outputs_and_the_rest_is_removed(tmp_path, family, head):
    made, inputs = pruned(tmp_path, family, head)
    facts = made.facts
    assert facts["pieces"] < facts["pieces_before"]
    before, after = models_with_heads.load(inputs["model"], head), models_with_heads.load(made.path, head)
    assert facts["parameters"] == after.num_parameters() < before.num_parameters()
    assert after.config.vocab_size == facts["pieces"] == len(AutoTokenizer.from_pretrained(made.path))
    old, new = (AutoTokenizer.from_pretrained(folder) for folder in (inputs["model"], made.path))
    counts = open_tokens(inputs["tokens"]).counts
    compared = 0
    for text in tiny.ENGLISH:
        encoded, again = old(text, return_tensors="pt"), new(text, return_tensors="pt")
        if (counts[encoded["input_ids"][0, 1:-1]] == 0).any():
            continue
        compared += 1
        assert old.convert_ids_to_tokens(encoded["input_ids"][0]) == new.convert_ids_to_tokens(again["input_ids"][0])
        with torch.no_grad():
            wanted, found = before(**encoded).logits, after(**again).logits
        if head == "masked-words":
            pieces = new.convert_ids_to_tokens(range(facts["pieces"]))
            wanted = wanted[..., old.convert_tokens_to_ids(pieces)]
        np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert compared >= 3


def test_special_tokens_are_those_of_the_tokenizer(tmp_path):
    """The config of the source numbers them as another tokenizer does."""
    model = models_with_heads.model_folder(tmp_path / "model", "bert", "classification")
    tokens = tokens_artifact.of_length(tmp_path / "tokens", model, 32, 30, 4)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "mask_token_id": 400, "cls_token_id": 401}))
    inputs = {"model": model, "tokens": tokens}
    made = model_exports.make("deploy.prune_vocabulary", tmp_path / "pruned", inputs, **FEW)
    written = json.loads((made.path / "config.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(made.path)
    assert (written["mask_token_id"], written["cls_token_id"]) == (tokenizer.mask_token_id, tokenizer.cls_token_id)


def test_any_text_can_still_be_read_and_specials_keep_their_meaning(tmp_path):
    made, _ = pruned(tmp_path, "bert", "classification", min_count=3)
    tokenizer = AutoTokenizer.from_pretrained(made.path)
    assert tokenizer.unk_token_id not in tokenizer("zebra quixotic 1234 ~ [] xylophone")["input_ids"]
    pair = tokenizer("the mill", "the river")
    assert pair["input_ids"][0] == tokenizer.cls_token_id
    assert pair["input_ids"].count(tokenizer.sep_token_id) == 2
    assert set(pair["token_type_ids"]) == {0, 1}
    assert tokenizer("[MASK]")["input_ids"][1] == tokenizer.mask_token_id
    assert json.loads((made.path / "config.json").read_text())["pad_token_id"] == tokenizer.pad_token_id
    said = json.loads((made.path / "parity.json").read_text())
    assert 0 < said["texts_cut_alike"] <= said["rows_of_kept_pieces"] < said["rows"] == 16


def test_words_added_to_a_vocabulary_stay_though_no_row_has_them(tmp_path):
    model = models_with_heads.model_folder(tmp_path / "model", "bert", "classification")
    tokenizer, loaded = AutoTokenizer.from_pretrained(model), models_with_heads.load(model, "classification")
    tokenizer.add_tokens(["stillhouse"])
    loaded.resize_token_embeddings(len(tokenizer))
    loaded.save_pretrained(model)
    tokenizer.save_pretrained(model)
    tokens = tokens_artifact.of_length(tmp_path / "tokens", model, 32, 30, 4)
    inputs = {"model": model, "tokens": tokens}
    made = model_exports.make("deploy.prune_vocabulary", tmp_path / "pruned", inputs, **FEW)
    after = AutoTokenizer.from_pretrained(made.path)
    assert after.tokenize("the stillhouse") == tokenizer.tokenize("the stillhouse")
    assert len(after) == made.facts["pieces"]


@pytest.mark.long
def test_it_is_a_model_folder_for_every_export(tmp_path):
    made, _ = pruned(tmp_path, "distilbert", "classification")
    onnx = model_exports.onnx(made.path, tmp_path / "onnx")
    text = tiny.ENGLISH[0]
    of_folder, of_export = predict.load(made.path)(text), predict.load(onnx)(text)
    assert [each.text for each in of_folder] == [each.text for each in of_export]
    assert artifact.read(onnx).facts["parameters"] == made.facts["parameters"]


def test_a_byte_level_vocabulary_is_refused(tmp_path):
    with pytest.raises(errors.StageError, match=r"no WordPiece vocabulary .* keep this one whole"):
        pruned(tmp_path, "roberta", "masked-words")
