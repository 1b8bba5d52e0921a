"""The development examples that a fine-tuned model offers to try it on."""

import json
from pathlib import Path

import finetune_tasks
import pytest

from cluster.artifacts import artifact
from cluster.artifacts.errors import StageError
from cluster.models import example_inputs
from cluster.models.example_inputs import ExampleInput
from eval.finetune.sample_inputs import CHARACTERS, COUNT, sample_inputs
from eval.tasks.definitions import TASKS
from eval.tasks.examples import dev_from_folder
from eval.tasks.questions import dev_questions_from_folder


def test_labels_take_turns_and_long_texts_stay_out(tmp_path: Path) -> None:
    rows = [{"sentence": f"good {number}", "label": 1} for number in range(9)]
    rows += [{"sentence": "long " * CHARACTERS, "label": 0}, {"sentence": "bad", "label": 0}]
    finetune_tasks.write_rows(tmp_path / "dev.jsonl", rows)
    task, (dev,) = dev_from_folder(TASKS["sst2"], tmp_path)
    found = sample_inputs(task, dev)
    assert [(one.text, one.answer) for one in found[:3]] == [
        ("good 0", "positive"),
        ("bad", "negative"),
        ("good 1", "positive"),
    ]
    assert len(found) == COUNT


def test_pairs_have_two_texts_and_scores_are_numbers(tmp_path: Path) -> None:
    finetune_tasks.write_rows(tmp_path / "dev.jsonl", [{"sentence1": "a b", "sentence2": "c", "label": 2.5}])
    task, (dev,) = dev_from_folder(TASKS["stsb"], tmp_path)
    assert sample_inputs(task, dev) == [ExampleInput("a b", "c", "2.5")]


def test_questions_come_with_their_passages(tmp_path: Path) -> None:
    asked = finetune_tasks.colours(30, silent=True)
    finetune_tasks.write_squad(tmp_path / "dev-v2.0.json", asked)
    found = sample_inputs(TASKS["squad2"], dev_questions_from_folder(TASKS["squad2"], tmp_path))
    known = {one["context"]: one["answers"][0][0] if one["answers"] else "" for one in asked}
    assert [(one.second, one.answer) for one in found] == [(one.second, known[one.second]) for one in found]
    assert len({one.second for one in found}) == COUNT
    assert "" in {one.answer for one in found}


def test_a_fine_tuned_model_has_its_examples(tmp_path: Path) -> None:
    import tiny

    data = finetune_tasks.sentiment(tmp_path / "data", rows=80)
    tiny.distilbert(tmp_path / "model", layers=1)
    finetune_tasks.finetune(tmp_path / "model", data, tmp_path / "out", task="sst2", epochs=1)
    dev = [json.loads(line) for line in (data / "dev.jsonl").read_text().splitlines()]
    found = example_inputs.read(tmp_path / "out")
    assert len(found) == COUNT
    assert {one.text for one in found} <= {row["sentence"] for row in dev}
    assert example_inputs.FILE in artifact.verify(tmp_path / "out", "finetune").files


def test_damaged_examples_are_refused_by_name(tmp_path: Path) -> None:
    assert example_inputs.read(tmp_path) == ()
    for damaged in ("[", '[{"label": 1}]', "[7]"):
        (tmp_path / example_inputs.FILE).write_text(damaged)
        with pytest.raises(StageError, match=r"examples\.json holds no examples"):
            example_inputs.read(tmp_path)
