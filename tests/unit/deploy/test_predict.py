import json
import shutil
from pathlib import Path

import model_exports
import models_with_heads
import numpy as np
import pytest
import tiny
import torch
from transformers import AutoTokenizer

from cluster.artifacts import errors
from cluster.models import export_spec, span_decoding
from deploy import predict


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    root = tmp_path_factory.mktemp("predict")
    model = models_with_heads.model_folder(root / "model", "bert", "classification", labels=("bad", "good"))
    return model, model_exports.onnx(model, root / "onnx")


def export_description(head: str, **changes) -> export_spec.Exported:
    values = {
        "format": "onnx",
        "runtime": "onnxruntime",
        "files": {"any": "model.onnx"},
        "head": head,
        "inputs": ("input_ids", "attention_mask"),
        "outputs": {"start_logits": "positions", "end_logits": "positions"},
        "positions": 64,
        "pad": 0,
        "vocab_size": 100,
        "parameters": 1,
    }
    return export_spec.Exported(**{**values, **changes})


def test_an_export_predicts_like_its_model(classifier):
    model, export = classifier
    loaded, tokenizer = models_with_heads.load(model, "classification"), AutoTokenizer.from_pretrained(model)
    with torch.no_grad():
        shares = loaded(**tokenizer("The mill", "the river", return_tensors="pt")).logits.softmax(-1)[0]
    for folder in (model, export):
        found = predict.load(folder)("The mill", "the river")
        assert [each.text for each in found] == [["bad", "good"][place] for place in shares.argsort(descending=True)]
        assert {each.text: each.probability for each in found} == pytest.approx(
            {"bad": float(shares[0]), "good": float(shares[1])}, abs=1e-5
        )


def test_the_command_line_prints_one_line_for_each_label_or_json(classifier, capsys):
    _, export = classifier
    predict.main([str(export), "The mill.", "The train.", "--top", "1", "--json"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["input"] for line in lines] == ["The mill.", "The train."]
    assert all(len(line["predictions"]) == 1 for line in lines)
    predict.main([str(export), "The mill.", "--second", "x"])
    printed = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in printed} == {"bad", "good"}
    assert sum(float(line.split()[1].rstrip("%")) for line in printed) == pytest.approx(100.0, abs=0.11)


def test_an_empty_folder_is_a_one_line_error(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        predict.main([str(tmp_path), "text"])
    assert stopped.value.code == 1
    assert capsys.readouterr().err.startswith(f"error: {tmp_path} is not a model folder")


@pytest.mark.parametrize("damage", [lambda whole: whole[:-100], lambda whole: whole[:-1] + bytes([whole[-1] ^ 1])])
def test_an_export_that_was_damaged_is_refused_by_name(classifier, tmp_path, capsys, damage):
    export = Path(shutil.copytree(classifier[1], tmp_path / "export"))
    (export / "model.onnx").write_bytes(damage((export / "model.onnx").read_bytes()))
    with pytest.raises(SystemExit, match="1"):
        predict.main([str(export), "some text"])
    said = capsys.readouterr().err
    assert said.startswith(f"error: {export / 'model.onnx'} ")
    assert said.count("\n") == 1


@pytest.mark.parametrize("option", ["--top", "--threads"])
def test_top_k_below_one_is_refused(classifier, capsys, option):
    with pytest.raises(SystemExit, match="2"):
        predict.main([str(classifier[1]), "some text", option, "0"])
    assert "0: write a whole number" in capsys.readouterr().err


def test_predict_fills_only_mask_tokens(tmp_path, capsys):
    model = predict.load(models_with_heads.model_folder(tmp_path / "model", "roberta", "masked-words"))
    found = model("The [MASK] by the [MASK] stands.", top=3)
    assert [each.mask for each in found] == [1, 1, 1, 2, 2, 2]
    predict._print("", found, as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["[MASK] 1"] * 3 + ["[MASK] 2"] * 3
    assert len(found) == 6
    assert all(0.0 < each.probability <= 1.0 for each in found)
    assert found[0].probability >= found[1].probability >= found[2].probability
    with pytest.raises(errors.StageError, match=r"write \[MASK\] in the text"):
        model("The mill stands.")
    with pytest.raises(errors.StageError, match="leave the second one out"):
        model("[MASK]", "more")
    with pytest.raises(errors.StageError, match="shorten the text"):
        model("The mill stands. " * 200 + "[MASK]")


def test_a_passage_that_is_not_text_is_refused_by_name(classifier, tmp_path, capsys):
    (tmp_path / "passage.pdf").write_bytes(b"%PDF-1.7 \xff\xfe")
    with pytest.raises(SystemExit, match="1"):
        predict.main([str(classifier[1]), "What?", "--passage-file", str(tmp_path / "passage.pdf")])
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'passage.pdf'} is not UTF-8 text: ")


def test_a_model_folder_uses_the_requested_threads(classifier):
    predict.load(classifier[0], threads=2)
    assert torch.get_num_threads() == 2


def test_a_regression_gives_a_number(tmp_path):
    folder = models_with_heads.model_folder(tmp_path / "model", "distilbert", "regression")
    found = predict.load(folder)("The mill", "the river")
    assert len(found) == 1
    assert float(found[0].text) == pytest.approx(float(found[0].text))
    assert found[0].probability is None


def test_a_question_needs_a_passage_that_contains_the_answer(tmp_path):
    model = predict.load(models_with_heads.model_folder(tmp_path / "model", "bert", "question-answering"))
    with pytest.raises(errors.StageError, match="give one with --passage"):
        model("What?")
    passage = " ".join(tiny.ENGLISH[:12])
    found = model("What did she pour into the copper still?", passage, top=4)
    assert len(found) == 4
    assert [each.probability for each in found] == sorted((each.probability for each in found), reverse=True)
    assert all(passage[each.begin : each.end] == each.text for each in found)
    assert model("What?", "") == []


def test_the_answer_is_found_in_whichever_window_holds_it(tmp_path):
    """The model is certain of one word of a passage of six windows, at any position."""
    tokenizer = tiny.wordpiece(tmp_path)
    target = tokenizer("copper", add_special_tokens=False)["input_ids"][0]

    def sure(feed):
        logits = np.where(feed["input_ids"] == target, 9.0, 0.0).astype(np.float32)
        return {"start_logits": logits, "end_logits": logits}

    words = ["river"] * 200
    for place in (0, 31, 77, 142, 199):
        passage = " ".join([*words[:place], "copper", *words[place:]])
        ((best, probability),) = span_decoding.best_answers(
            sure, export_description("question-answering"), tokenizer, "what", passage, 1
        )
        assert (best.text, best.begin) == ("copper", passage.index("copper"))
        assert probability > 0.99
    with pytest.raises(errors.StageError, match="fills all 64 tokens"):
        span_decoding.best_answers(sure, export_description("question-answering"), tokenizer, "what " * 80, "copper", 1)
