"""Question answering with the real stage: tiny models learn to find answers, and to recognize that there is none."""

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import tiny
import torch
from finetune_tasks import colours, finetune, write_squad
from transformers import AutoModelForQuestionAnswering

from cluster.artifacts import artifact
from eval.finetune.question_answering import prepare_questions
from eval.finetune.task_distillation import TaskDistillation, Teaching
from eval.finetune.task_model import open_source
from eval.tasks.definitions import TASKS
from eval.tasks.questions import questions_from_folder

LEARNS: dict[str, Any] = {"task": "squad", "epochs": 8, "learning_rate": 4e-3, "batch": 16, "max_length": 40}


def data(folder: Path, count: int = 200, version: str = "1.1", **values: Any) -> Path:
    asked = colours(count + 40, silent=version == "2.0", **values)
    write_squad(folder / f"train-v{version}.json", asked[:count])
    write_squad(folder / f"dev-v{version}.json", asked[count:])
    return folder


@pytest.mark.parametrize(
    "build",
    [tiny.distilbert, pytest.param(tiny.roberta_teacher, marks=pytest.mark.long)],
    ids=lambda build: build.__name__,
)
def test_a_model_learns_to_find_answers(build: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    scores = finetune(build(tmp_path / "model", layers=2), data(tmp_path / "data"), out, **LEARNS)
    assert scores["score"] == scores["metrics"]["f1"]["median"] > 80.0
    assert set(scores["metrics"]) == {"exact", "f1"}
    assert (scores["train_examples"], scores["dev_examples"], scores["metric"]) == (200, 40, "f1")
    predictions = json.loads((out / "predictions.json").read_text())
    asked = {question["id"]: question for question in colours(240)[200:]}
    assert set(predictions) == set(asked)
    exact = sum(predictions[name] == asked[name]["answers"][0][0] for name in asked)
    assert scores["metrics"]["exact"]["median"] == pytest.approx(100.0 * exact / len(asked))
    nbest = json.loads((out / "nbest_predictions.json").read_text())
    assert all(nbest[name][0]["text"] == text for name, text in predictions.items())
    found = artifact.verify(out, "finetune")
    assert found.facts["parameters"] == sum(
        p.numel() for p in AutoModelForQuestionAnswering.from_pretrained(out).parameters()
    )


@pytest.mark.long
def test_long_passages_are_read_through_windows(tmp_path: Path) -> None:
    folder = data(tmp_path / "data", 120, filler=60)
    model = tiny.distilbert(tmp_path / "model")
    scores = finetune(model, folder, tmp_path / "out", **{**LEARNS, "epochs": 5}, stride=16)
    assert scores["score"] > 60.0
    assert scores["train_examples"] == 120


def test_a_model_learns_when_there_is_no_answer(tmp_path: Path) -> None:
    out = tmp_path / "out"
    folder = data(tmp_path / "data", version="2.0")
    scores = finetune(tiny.distilbert(tmp_path / "model"), folder, out, **{**LEARNS, "task": "squad2"})
    metrics = {name: each["median"] for name, each in scores["metrics"].items()}
    assert scores["majority"] < metrics["exact"] <= metrics["best_exact"]
    assert metrics["answerable_exact"] > 60.0
    assert metrics["unanswerable_exact"] > 60.0
    predictions = json.loads((out / "predictions.json").read_text())
    odds = json.loads((out / "null_odds.json").read_text())
    assert all((text == "") == (odds[name] > 0.0) for name, text in predictions.items())
    nbest = json.loads((out / "nbest_predictions.json").read_text())
    assert all(nbest[name][0]["text"] == text for name, text in predictions.items())
    assert all([each["begin"] for each in best if not each["text"]] == [None] for best in nbest.values())


@pytest.mark.long
def test_a_student_learns_answer_spans_from_its_teacher(tmp_path: Path) -> None:
    folder = data(tmp_path / "data")
    teacher = tmp_path / "teacher"
    finetune(tiny.bert_teacher(tmp_path / "bert", layers=2), folder, teacher, **LEARNS)
    # The student's own labels are always the first word.
    wrong = [{**each, "answers": [(each["context"].split()[0], 0)]} for each in colours(200)]
    write_squad(tmp_path / "wrong" / "train-v1.1.json", wrong)
    (tmp_path / "wrong" / "dev-v1.1.json").write_text((folder / "dev-v1.1.json").read_text())
    student = tiny.distilbert(tmp_path / "model")
    step = {"soft": 1.0, "task": 0.0}
    taught = finetune(student, tmp_path / "wrong", tmp_path / "taught", teacher, **LEARNS, second_step=step)
    alone = finetune(student, tmp_path / "wrong", tmp_path / "alone", **LEARNS)
    assert taught["score"] > 75.0
    assert alone["score"] < 30.0
    other = tiny.roberta_teacher(tmp_path / "roberta", layers=2)
    with pytest.raises(ValueError, match=r"has another vocabulary than"):
        finetune(other, folder, tmp_path / "out", teacher, **LEARNS, second_step={})


def test_micro_batches_of_windows_change_nothing(tmp_path: Path) -> None:
    model = tiny.bert_teacher(tmp_path / "model", layers=2)
    config = json.loads((model / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (model / "config.json").write_text(json.dumps(config))
    folder = data(tmp_path / "data", 60)
    for name, micro_batch in (("whole", None), ("parts", 3)):
        values = {**LEARNS, "epochs": 1, "learning_rate": 1e-3, "placement": {"micro_batch": micro_batch}}
        finetune(model, folder, tmp_path / name, **values)
    whole, parts = (safetensors.torch.load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    # A bias common to all positions changes no softmax: its gradient is rounding noise, which AdamW amplifies.
    for name in whole.keys() - {"qa_outputs.bias"}:
        torch.testing.assert_close(whole[name], parts[name], atol=2e-4, rtol=0.0)


def test_early_stopping_and_limits_count_questions(tmp_path: Path) -> None:
    folder = data(tmp_path / "data", 60, filler=60)
    values = {**LEARNS, "epochs": 2, "stride": 16, "train_limit": 30, "dev_limit": 10}
    scores = finetune(tiny.distilbert(tmp_path / "model"), folder, tmp_path / "out", early_stopping={}, **values)
    assert (scores["train_examples"], scores["dev_examples"], scores["subset"]) == (30, 10, True)
    assert scores["seeds"][0]["epochs"] in {1, 2}


def test_only_question_answering_takes_a_stride(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"stride is for .* not for rte"):
        finetune(tiny.distilbert(tmp_path / "model"), tmp_path, tmp_path / "out", task="rte", stride=16)


def test_a_teacher_gets_token_types_that_the_student_does_not_take(tmp_path: Path) -> None:
    folder, teacher, student = data(tmp_path / "data", 20), tmp_path / "teacher", tmp_path / "model"
    finetune(tiny.bert_teacher(tmp_path / "bert", layers=1), folder, teacher, **{**LEARNS, "epochs": 1})
    tiny.distilbert(student)
    asked = questions_from_folder(TASKS["squad"], folder)
    teaching = Teaching(TaskDistillation(), open_source(teacher), 8)
    said = []
    # Whatever the tokenizer's files say, a model gets only what it takes.
    for names in (["input_ids", "attention_mask"], ["input_ids", "token_type_ids", "attention_mask"]):
        config = json.loads((student / "tokenizer_config.json").read_text())
        (student / "tokenizer_config.json").write_text(json.dumps({**config, "model_input_names": names}))
        prepared = prepare_questions(open_source(student), asked, 40, 16, teaching)
        assert prepared.train.types is None
        said.append(prepared.loss.taught)
    torch.testing.assert_close(*said)


def test_a_teacher_with_another_tokenizer_is_refused(tmp_path: Path) -> None:
    folder, teacher = data(tmp_path / "data", 20), tmp_path / "teacher"
    finetune(tiny.bert_teacher(tmp_path / "bert", layers=1), folder, teacher, **{**LEARNS, "epochs": 1})
    student = tiny.distilbert(tmp_path / "model")
    core = json.loads((student / "tokenizer.json").read_text())
    core["pre_tokenizer"] = {"type": "WhitespaceSplit"}
    core["normalizer"] = {"type": "Prepend", "prepend": "."}
    (student / "tokenizer.json").write_text(json.dumps(core))
    with pytest.raises(ValueError, match="its tokenizer splits the texts"):
        finetune(student, folder, tmp_path / "out", teacher, **LEARNS, second_step={})
