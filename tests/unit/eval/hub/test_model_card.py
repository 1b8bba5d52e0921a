"""Model cards: filled from a real report, and read back by the Hub's own library and rules."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import hub_rules
import numpy
import pytest
import s3_server
import yaml
from huggingface_hub import ModelCard, ModelCardData
from result_folders import make, pipeline, suite
from safetensors.numpy import save_file
from upath import UPath

from cluster.artifacts import artifact, stage
from cluster.artifacts.commit import CARD, ArtifactError
from cluster.artifacts.recipe import RecipeError
from cluster.storage import filesystem
from eval.hub import card_metadata, finetuned_card
from eval.hub.card_metadata import CardFacts
from eval.hub.model_card import default_name, fill, say_missing
from eval.report.stage import STAGE, Report

BEFORE = """---
library_name: transformers
pipeline_tag: fill-mask
tags:
- distillation
license: mit
---

# DistilBertForMaskedLM, 3 layers

A student.

## Results

Not measured yet.

## Limits

What a person wrote.
"""


def reported(out: Path) -> Path:
    made = stage.execute(STAGE, Report(), {"results": out}, out / "report")
    assert made is not None
    return made.path


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = suite(tmp_path_factory.mktemp("card") / "out")
    reported(folder)
    return folder


@pytest.fixture
def student(out: Path) -> Path:
    (out / "students/student" / CARD).write_text(BEFORE)
    return out / "students/student"


def test_the_model_index_has_what_this_folder_is(out: Path, student: Path) -> None:
    """Masked words as a share of 1; scores of fine-tuned models are in the table, and in their own cards."""
    assert fill(out / "report", student, CardFacts()).place == student / CARD
    data = ModelCard.load(student / CARD).data
    values = {(each.task_type, each.metric_type): each.metric_value for each in data.eval_results}
    facts = artifact.read(student).facts["validation"]
    assert values == {
        ("fill-mask", "accuracy"): round(facts["accuracy"], 4),
        ("fill-mask", "loss"): round(facts["hidden_loss"], 4),
    }
    assert 0 < values["fill-mask", "accuracy"] < 1
    assert data.model_name == "out-student"
    assert (data.library_name, data.pipeline_tag, data.language) == ("transformers", "fill-mask", None)
    assert data.metrics == ["accuracy"]
    # Again, without the library that wrote it.
    front = yaml.safe_load((student / CARD).read_text().split("---\n")[1])
    (result,) = front["model-index"][0]["results"]
    assert len(result["metrics"]) == 2
    assert hub_rules.problems(front) == []


def test_the_card_of_a_fine_tuned_model_has_its_own_scores(out: Path) -> None:
    folder = out / "finetune/student/mrpc"
    filled = fill(out / "report", folder, CardFacts(license="mit", language=("en",), base_model="a/teacher"))
    card = ModelCard.load(filled.place)
    facts = artifact.read(folder).facts
    values = {each.metric_type: each.metric_value for each in card.data.eval_results}
    assert values == {name: round(each["median"] / 100, 4) for name, each in facts["metrics"].items()}
    assert (card.data.pipeline_tag, card.data.datasets) == ("text-classification", ["nyu-mll/glue"])
    assert card.data.model_name == "out-student-mrpc"
    assert card.data.base_model is None, "the stated base is the teacher's"
    assert hub_rules.problems(card.data.to_dict()) == []
    assert "'text_pair'" in card.text
    assert filled.missing == ("base_model",)


def test_the_hub_s_squad_is_in_percent(out: Path) -> None:
    facts = artifact.read(out / "finetune/student/squad").facts
    values = {each.metric_type: each.metric_value for each in finetuned_card.results(facts)}
    assert values["exact_match"] == 68.0


def test_scores_at_thresholds_tuned_on_the_dev_set_are_left_out() -> None:
    spread = {"median": -2.25, "low": -2.5, "high": -2.0}
    facts: dict[str, Any] = {"task": "squad2", "subset": False}
    facts["metrics"] = {"best_f1": {"median": 71.5, "low": 71.0, "high": 72.0}, "best_f1_threshold": spread}
    facts["metrics"]["f1"] = {"median": 70.5, "low": 70.0, "high": 71.0}
    assert [(each.metric_type, each.metric_value) for each in finetuned_card.results(facts)] == [("f1", 70.5)]


def test_the_training_text_and_its_licenses_come_from_the_corpus(out: Path, student: Path) -> None:
    fill(out / "report", student, CardFacts())
    text = (student / CARD).read_text()
    assert "| wiki | CC BY-SA 4.0 | 1,200 | 56 MB |" in text
    assert "| notes | not stated | 34 | 700 kB |" in text
    assert "Together 1,234 documents, 56.7 MB" in text


def test_what_nobody_stated_is_left_out_and_named_once(
    out: Path, student: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (student / CARD).write_text(BEFORE.replace("license: mit\n", ""))
    cards = [fill(out / "report", student, CardFacts()), fill(out / "report", out / "students/no-soft", CardFacts())]
    front = yaml.safe_load((student / CARD).read_text().split("---\n")[1])
    assert not {"license", "language", "base_model", "datasets"} & {*front}
    with caplog.at_level("INFO", logger="stillhouse"):
        say_missing(cards)
    (line,) = caplog.messages
    assert line == (
        "2 model cards lack license, language, base_model: write them in [suite.card] of the pipeline and run it "
        "again, or give stillhouse card --license ID --language CODE --base-model ID"
    )


@pytest.mark.parametrize(
    ("origin", "asked"),
    [("google-bert/bert-base-uncased", ("base_model",)), ("small-english", ()), ("trained here", ())],
)
def test_a_base_model_is_asked_for_where_the_hub_has_one(origin: str, asked: tuple[str, ...]) -> None:
    report = {"models": [{"name": "teacher", "origin": origin}]}
    assert card_metadata.missing(report, ModelCardData(license="mit", language="en")) == asked


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"license": "Apache 2.0"}, "apache-2.0"),
        ({"base_model": "models/my/bert"}, "owner/name"),
        ({"datasets": ["not a name"]}, "owner/name"),
        ({"widget": ["No mask."]}, "[MASK]"),
        ({"language": ["English"]}, "ISO 639"),
        ({"name": "two\n## lines"}, "one line"),
        ({"name": " "}, "one line"),
    ],
)
def test_facts_that_the_hub_would_refuse_are_refused(values: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(says)):
        CardFacts.of(values, "[suite.card]")


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("build/demo/students/student", "demo-student"),
        ("build/demo/finetune/student/rte", "demo-student-rte"),
        ("students/student", "student"),
        ("somewhere/small-bert", "small-bert"),
    ],
)
def test_a_card_is_called_like_its_pipeline_and_folder(folder: str, name: str) -> None:
    assert default_name(Path(folder)) == name


def test_a_stated_name_is_the_title_and_stays(out: Path, student: Path) -> None:
    stated = CardFacts(name="tiny-wiki-bert", widget=("Paris is in [MASK].",), language=("fr",))
    fill(out / "report", student, stated)
    fill(out / "report", student, CardFacts())
    card = ModelCard.load(student / CARD)
    assert card.text.strip().startswith("# tiny-wiki-bert\n")
    assert card.data.model_name == "tiny-wiki-bert"
    assert card.data.widget == [{"text": "Paris is in [MASK]."}]
    assert "fill_mask('Paris is in [MASK].'" in card.text


@pytest.mark.parametrize(
    "text",
    [
        "a: b",
        'it\'s "quoted"',
        "# hash",
        "- x",
        "{{braces}}",
        "&anchor *star",
        "null",
        "no",
        "1.0",
        "é日本語🚀",
        "a\\b",
    ],
)
def test_odd_characters_make_no_invalid_card(out: Path, student: Path, text: str) -> None:
    stated = CardFacts(name=text, widget=(f"{text}\n---\n[MASK]",), language=("no",))
    place = fill(out / "report", student, stated).place
    card = ModelCard(place.read_text(encoding="utf-8"))
    assert hub_rules.problems(card.data.to_dict()) == []
    assert (card.data.model_name, card.data.language) == (text, ["no"])
    assert card.data.widget == [{"text": f"{text}\n---\n[MASK]"}]
    assert card.text.strip().splitlines()[0] == f"# {text}"
    code = card.text.partition("```python\n")[2].partition("```")[0]
    compile(code, "card", "exec")


def test_a_student_that_is_not_there_is_refused_by_name(out: Path, student: Path) -> None:
    for place in (student.with_name("studen"), UPath("memory://nowhere/student")):
        with pytest.raises(ArtifactError, match=rf"^{place} does not exist: --student takes the folder of a student"):
            fill(out / "report", place, CardFacts())
        assert not place.exists()


def test_a_new_card_lists_what_differs_from_the_paper(out: Path, student: Path) -> None:
    (student / CARD).unlink()
    fill(out / "report", student, CardFacts())
    assert "| student.dropout | 0.1 | 0 |" in (student / CARD).read_text(encoding="utf-8")


def test_text_and_metadata_of_the_user_are_kept(out: Path, student: Path) -> None:
    fill(out / "report", student, CardFacts())
    card = ModelCard.load(student / CARD)
    assert (card.data.license, card.data.tags) == ("mit", ["distillation"])
    assert "base_model" not in card.data.to_dict()
    assert "Not measured yet" not in card.text
    assert card.text.index("A student.") < card.text.index("## Results") < card.text.index("What a person wrote.")
    stated = CardFacts(
        license="apache-2.0",
        language=("en", "de"),
        base_model="google-bert/bert-base-uncased",
        datasets=("wikimedia/wikipedia",),
    )
    fill(out / "report", student, stated)
    data = ModelCard.load(student / CARD).data
    assert (data.license, data.language) == ("apache-2.0", ["en", "de"])
    assert (data.base_model, data.datasets) == ("google-bert/bert-base-uncased", ["wikimedia/wikipedia"])
    first = (student / CARD).read_text()
    fill(out / "report", student, CardFacts())
    assert (student / CARD).read_text() == first


def test_the_card_shows_the_teacher_s_scores_too(out: Path, student: Path) -> None:
    fill(out / "report", student, CardFacts())
    text = (student / CARD).read_text()
    assert "| RTE | accuracy | 64.0 | 63.0–66.0 | 67.0 | 95.5 % | 5,000 |" in text
    assert "| SQuAD 1.1, EM | exact | 68.0 | 67.4–68.5 | 72.4 | 93.9 % | 5,000 |" in text
    assert "| **Mean, all nine** | **9 tasks** | **73.7** | **–** | **76.4** | **96.4 %** | **–** |" in text
    assert (
        "| STS-B pairs | 1 | student | ONNX int8 | 2.07 | 2.48 | 167.4 MB (17 MB the model) | 17.4 MB | 1.91× | 8.70× |"
        in text
    )
    assert "processor AMD EPYC 9R14" in text


def test_filling_the_card_keeps_the_artifact_valid(out: Path, student: Path) -> None:
    before = artifact.verify(student).identity
    fill(out / "report", student, CardFacts())
    assert artifact.verify(student).identity == before
    assert CARD not in artifact.read(student).files
    # The report still belongs to these results.
    reported(out)


def test_the_card_of_a_student_in_an_object_store_is_filled(
    out: Path, student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = artifact.read(student)
    with s3_server.serving(tmp_path / "requests.log") as port:
        files = s3_server.use(port, monkeypatch)
        place = UPath(f"s3://{s3_server.BUCKET}/student")
        with artifact.publishing(place, kind=made.kind, inputs=made.inputs, recipe=made.recipe) as publish:
            publish(made)
        assert files.cat(f"{s3_server.BUCKET}/student/{CARD}").decode() == BEFORE
        fill(out / "report", place, CardFacts())
        assert "| RTE | accuracy | 64.0 |" in files.cat(f"{s3_server.BUCKET}/student/{CARD}").decode()
        assert artifact.verify(place).identity == made.identity


def test_another_student_has_its_own_numbers(out: Path) -> None:
    fill(out / "report", out / "students/no-soft", CardFacts())
    card = ModelCard.load(out / "students/no-soft" / CARD)
    assert "| RTE | accuracy | 53.9 |" in card.text
    assert card.data.license is None
    assert "### Speed" not in card.text


def test_a_plain_folder_gets_a_new_card(tmp_path: Path) -> None:
    out = pipeline(tmp_path / "out")
    folder = tmp_path / "small-bert"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architectures": ["DistilBertForMaskedLM"], "n_layers": 3}))
    save_file({"weight": numpy.zeros((30, 7), numpy.float32)}, folder / "model.safetensors")
    models = {"teacher": "teacher", "student": str(folder)}
    filesystem.write_json(out / "suite.json", {"models": models, "ablations": None, "second_step": None})
    fill(reported(out), folder, CardFacts())
    card = ModelCard.load(folder / CARD)
    assert card.data.eval_results is None, "nothing was measured"
    assert card.text.strip().startswith("# small-bert\n\nA DistilBertForMaskedLM of 3 layers")


def test_a_report_of_another_student_is_refused(out: Path, student: Path, tmp_path: Path) -> None:
    make(tmp_path / "other", "student", {"parameters": 1}, {"config.json": {}, "model.safetensors": b"1"})
    with pytest.raises(ArtifactError, match=r"other is not in the report"):
        fill(out / "report", tmp_path / "other", CardFacts())
    assert not (tmp_path / "other" / CARD).exists()
    with pytest.raises(ArtifactError, match="expected a report artifact"):
        fill(student, student, CardFacts())


@pytest.mark.parametrize(
    ("card", "says"),
    [
        ("---\nlicense: mit\nmodel-index:\n- name: a\n  results: x: y\n---\n\nMine.\n", "line 5: .*YAML"),
        ("---\nlicense: [mit\n---\n\nMine.\n", "line [23]: .*YAML"),
        ("---\n- mit\n---\n\nMine.\n", "metadata"),
        ("---\n2: 3\n---\n\nMine.\n", "metadata"),
        ("---\nlicense: mit\n\n# No end\n", "no line --- ends"),
        (b"---\nlicense: mit\n---\n\ncaf\xe9\n", "UTF-8"),
    ],
)
def test_a_card_that_cannot_be_read_is_refused_and_kept(out: Path, student: Path, card: str | bytes, says: str) -> None:
    content = card if isinstance(card, bytes) else card.encode()
    (student / CARD).write_bytes(content)
    with pytest.raises(ArtifactError, match=says) as refused:
        fill(out / "report", student, CardFacts())
    assert str(refused.value).startswith(str(student / CARD))
    assert "\n" not in str(refused.value)
    assert (student / CARD).read_bytes() == content


def test_a_wrong_model_index_is_replaced(out: Path, student: Path) -> None:
    (student / CARD).write_text("---\nlicense: mit\nmodel-index: 5\n---\n\nMine.\n")
    fill(out / "report", student, CardFacts())
    data = ModelCard.load(student / CARD).data
    assert data.license == "mit"
    assert len(data.eval_results) == 2


def test_command_line(out: Path, student: Path, tmp_path: Path) -> None:
    copied = tmp_path / "copied"
    shutil.copytree(student, copied)
    command = [
        sys.executable,
        "-m",
        "cluster.console",
        "card",
        str(out / "report"),
        "--student",
        str(copied),
        "--license",
        "apache-2.0",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(copied / CARD)
    assert ModelCard.load(copied / CARD).data.license == "apache-2.0"
