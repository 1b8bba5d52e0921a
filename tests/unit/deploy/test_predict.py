import json
import shutil
from pathlib import Path

import altered_models
import finetune_tasks
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


def test_a_classifier_reads_no_passage(classifier, tmp_path, capsys):
    (tmp_path / "passage.txt").write_text("A passage.", encoding="utf-8")
    for given in (["--passage", "abc"], ["--passage-file", str(tmp_path / "passage.txt")]):
        with pytest.raises(SystemExit, match="1"):
            predict.main([str(classifier[1]), "What?", *given])
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.startswith("error: this model reads no passage: --passage is for question answering")


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
    assert list(model("What?", "")) == []
    assert found.no_answer is None
    long = " ".join(tiny.ENGLISH[:12] * 20)
    assert model("What?", long).tokens_read == model("What?", long).tokens > 64, "windows cover the passage"


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
        found = span_decoding.answer(sure, export_description("question-answering"), tokenizer, "what", passage)
        best, probability = found.ranked(nullable=True)[0]
        assert (best.text, best.begin) == ("copper", passage.index("copper"))
        assert probability > 0.99
    with pytest.raises(errors.StageError, match="fills all 64 tokens"):
        span_decoding.answer(sure, export_description("question-answering"), tokenizer, "what " * 80, "copper")


@pytest.fixture(scope="module")
def silent(tmp_path_factory):
    """A model of SQuAD 2.0 that learned that no passage holds an answer, its data, its scores, and its ONNX export."""
    root = tmp_path_factory.mktemp("silent")
    asked = [{**question, "answers": []} for question in finetune_tasks.colours(60)]
    for split in ("train", "dev"):
        finetune_tasks.write_squad(root / "data" / f"{split}-v2.0.json", asked)
    tiny.bert_teacher(root / "teacher", layers=1)
    finetune_tasks.finetune(root / "teacher", root / "data", root / "model", task="squad2")
    odds = json.loads((root / "model" / "null_odds.json").read_text())
    return root / "model", model_exports.onnx(root / "model", root / "onnx"), asked, odds


def test_a_model_of_squad_2_says_that_there_is_no_answer(silent, capsys, tmp_path):
    model, export, asked, odds = silent
    plain = Path(shutil.copytree(model, tmp_path / "plain"))
    (plain / "manifest.json").unlink()
    for folder in (model, export, plain):
        predictor = predict.load(folder)
        for question in asked[:3]:
            found = predictor(question["question"], question["context"])
            assert found[0].text == ""
            assert found[0].begin is None
            assert found.no_answer.chosen
            assert found.no_answer.margin == pytest.approx(odds[question["id"]], abs=1e-3)
            assert found.no_answer.threshold == 0.0
            assert sum(each.probability for each in predictor(question["question"], question["context"], top=99)) == (
                pytest.approx(1.0)
            )
    arguments = [str(export), asked[0]["question"], "--passage", asked[0]["context"], "--top", "1"]
    predict.main(arguments)
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("(no answer)")
    assert f"{odds['q0']:+.2f} logits" in second
    predict.main([*arguments, "--json"])
    said = json.loads(capsys.readouterr().out)
    assert said["no_answer"] == {"chosen": True, "margin": pytest.approx(odds["q0"], abs=1e-3), "threshold": 0.0}
    predict.main([str(export), "what is it?", "--passage", ""])
    assert capsys.readouterr().out.startswith("(no answer)"), "an empty passage has none"


def test_no_answer_is_one_only_for_a_model_that_learned_it(silent, tmp_path):
    """The same weights, said to be of SQuAD 1.1, or of no task, give the best span."""
    model, _, asked, _ = silent
    plain = Path(shutil.copytree(model, tmp_path / "plain"))
    (plain / "manifest.json").unlink()
    config = json.loads((plain / "config.json").read_text())
    for task, nullable in (("squad", False), (None, False), ("squad_v2", True)):
        (plain / "config.json").write_text(json.dumps({**config, "finetuning_task": task}))
        found = predict.load(plain)(asked[0]["question"], asked[0]["context"])
        assert (found.no_answer is not None) == nullable
        assert (found[0].text == "") == nullable


def test_several_labels_have_probabilities_of_their_own(classifier, tmp_path):
    folders = [Path(shutil.copytree(classifier[0], tmp_path / "model"))]
    config = json.loads((folders[0] / "config.json").read_text())
    (folders[0] / "config.json").write_text(json.dumps({**config, "problem_type": "multi_label_classification"}))
    folders.append(model_exports.onnx(folders[0], tmp_path / "onnx"))
    loaded, tokenizer = models_with_heads.load(folders[0], "classification"), AutoTokenizer.from_pretrained(folders[0])
    with torch.no_grad():
        shares = loaded(**tokenizer("The mill", return_tensors="pt")).logits.sigmoid()[0]
    for folder in folders:
        found = {each.text: each.probability for each in predict.load(folder)("The mill")}
        assert found == pytest.approx({"bad": float(shares[0]), "good": float(shares[1])}, abs=1e-5)


def test_predict_says_when_it_cut_the_input(classifier, capsys):
    for folder in classifier:
        model = predict.load(folder)
        found = model("mill " * 200)
        assert found.tokens > 200
        assert found.tokens_read == 64
        assert model("The mill").tokens_read == model("The mill").tokens
    predict.main([str(classifier[1]), "mill " * 200])
    printed = capsys.readouterr()
    assert f"read 64 of {found.tokens} tokens" in printed.err
    assert "tokens" not in printed.out
    predict.main([str(classifier[1]), "mill " * 200, "--json"])
    said = json.loads(capsys.readouterr().out)
    assert (said["tokens"], said["tokens_read"]) == (found.tokens, 64)


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        (("",), "no words"),
        (("  \n\t ",), "no words"),
        (("\u200b\x01",), "no words"),
        (("mill", ""), "second text has no words"),
        (("mill\0race",), "NUL"),
        (("mill", "ra\0ce"), "NUL"),
        (("mill \udcff",), "UTF-8"),
        ((5,), "not text"),
    ],
)
def test_a_text_that_a_model_cannot_use_is_refused(classifier, texts, says):
    for folder in classifier:
        with pytest.raises(errors.StageError, match=says):
            predict.load(folder)(*texts)


def test_a_question_without_words_is_refused(silent):
    for folder in silent[:2]:
        model = predict.load(folder)
        with pytest.raises(errors.StageError, match="question has no words"):
            model(" ", "The mill.")
        with pytest.raises(errors.StageError, match="passage has a NUL"):
            model("What?", "The \0 mill.")
        with pytest.raises(errors.StageError, match="fills all 64 tokens"):
            model("what " * 80, "The mill.")


@pytest.mark.parametrize(("task", "texts"), [("sst2", 1), ("rte", 2)])
def test_single_texts_and_pairs_are_told_apart(tmp_path, task, texts):
    columns = ["sentence"] if texts == 1 else ["sentence1", "sentence2"]
    rows = [{**dict.fromkeys(columns, word), "label": place % 2} for place, word in enumerate(tiny.ENGLISH[:8])]
    for split in ("train", "dev"):
        finetune_tasks.write_rows(tmp_path / "data" / f"{split}.jsonl", rows)
    tiny.bert_teacher(tmp_path / "teacher", layers=1)
    finetune_tasks.finetune(tmp_path / "teacher", tmp_path / "data", tmp_path / "model", task=task, epochs=1)
    for folder in (tmp_path / "model", model_exports.onnx(tmp_path / "model", tmp_path / "onnx")):
        model = predict.load(folder)
        given = ("mill", "river")
        assert len(model(*given[:texts])) == 2
        with pytest.raises(errors.StageError, match="single texts" if texts == 1 else "pairs"):
            model(*given[: 3 - texts])


def test_labels_without_a_name_have_a_number(tmp_path):
    source = models_with_heads.model_folder(tmp_path / "source", "bert", "classification", labels=("a", "b", "c"))
    names = {"0": 2019, "2": "later", "5": "never"}
    model = altered_models.with_config(source, tmp_path / "model", id2label=names, label2id=None)
    for folder in (model, model_exports.onnx(model, tmp_path / "onnx")):
        assert {each.text for each in predict.load(folder)("a mill")} == {"2019", "LABEL_1", "later"}


@pytest.mark.parametrize("names", [["a", "b", "c"], {"a": 0}])
def test_labels_in_a_form_that_transformers_cannot_read_are_refused(tmp_path, names):
    source = models_with_heads.model_folder(tmp_path / "source", "bert", "classification")
    model = altered_models.with_config(source, tmp_path / "model", id2label=names)
    with pytest.raises(errors.StageError, match=r"config\.json cannot be used.*correct it"):
        predict.load(model)


@pytest.mark.parametrize(
    ("task", "nullable"),
    [("squad_v2", True), ("rajpurkar/squad_v2", True), ("SQuAD2.0", True), ("squad", False), ("squad_it", False)],
)
def test_a_model_from_elsewhere_says_that_it_learned_squad_2(tmp_path, task, nullable):
    source = models_with_heads.model_folder(tmp_path / "source", "bert", "question-answering")
    model = altered_models.with_config(source, tmp_path / "model", finetuning_task=task)
    assert (predict.load(model)("what is it?", "a mill").no_answer is not None) == nullable
