"""From training to report without a cluster: the rows that say what a teacher adds, by the real stages."""

import json
from pathlib import Path
from typing import Any

import pytest
import tokens_artifact
from finetune_tasks import QUICK, sentiment
from train_processes import RECIPE

from cluster.artifacts import registry
from cluster.storage import filesystem

pytestmark = pytest.mark.long

ALONE = {"soft": 0.0, "cosine": 0.0}
STUDENTS: dict[str, dict[str, Any]] = {
    "student": {},
    "untrained": {"steps": 0},
    "words-only": {"loss": ALONE},
    "alone": {"loss": ALONE, "student": {"start": "random"}},
}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The report of four students, scored on one task."""
    folder = tmp_path_factory.mktemp("made")
    out, data = folder / "out", sentiment(folder / "data")
    tokens_artifact.make(folder)
    out.mkdir()
    (folder / "teacher").rename(out / "teacher")
    for name, changes in STUDENTS.items():
        given = {"tokens": folder / "tokens", "teacher": out / "teacher"}
        registry.execute("distill.train", {**RECIPE, **changes}, given, out / "runs" / name)
        registry.execute("distill.export", {}, {"run": out / "runs" / name}, out / "students" / name)
    registry.execute("eval.bag_of_words", {"task": "sst2"}, {"data": data}, out / "bag_of_words" / "sst2")
    for name in ("teacher", *STUDENTS):
        given = {"model": out / "teacher" if name == "teacher" else out / "students" / name, "data": data}
        values = {**QUICK, "task": "sst2", "epochs": 1}
        registry.execute("eval.finetune", values, given, out / "finetune" / name / "sst2")
    ablations = {"reference": "student", "students": ["untrained", "words-only", "alone"]}
    models = {"teacher": "teacher", **{name: f"students/{name}" for name in STUDENTS}}
    filesystem.write_json(out / "suite.json", {"models": models, "ablations": ablations, "second_step": None})
    registry.execute("eval.report", {}, {"results": out}, out / "report")
    found: dict[str, Any] = json.loads((out / "report" / "report.json").read_text(encoding="utf-8"))
    return found | {"markdown": (out / "report" / "report.md").read_text(encoding="utf-8"), "folder": str(folder)}


def test_rows_are_known_by_their_recipe(report: dict[str, Any]) -> None:
    kinds = {model["name"]: model["kind"] for model in report["models"]}
    assert kinds == {
        "teacher": "teacher",
        "student": "distilled",
        "untrained": "untrained",
        "words-only": "masked-only",
        "alone": "no-teacher",
    }
    titles = {row["student"]: row["title"] for row in report["tables"]["4"]["rows"]}
    assert titles["untrained"] == "the teacher's layers, untrained"
    assert titles["words-only"] == "the teacher's layers, masked words only"
    assert titles["alone"] == "no teacher at all"


def test_the_student_is_compared_with_every_row_on_the_same_held_out_rows(report: dict[str, Any]) -> None:
    compared = {one["kind"]: one for one in report["heldout"]["comparisons"]}
    assert set(compared) == {"untrained", "masked-only", "no-teacher"}
    models = {model["name"]: model for model in report["models"]}
    for one in compared.values():
        difference = models["student"]["hidden_loss"] - models[one["model"]]["hidden_loss"]
        assert one["loss"]["difference"] == pytest.approx(difference, abs=1e-5)
        assert one["loss"]["error"] > 0
    assert [one["same_tokens"] for one in compared.values()] == [
        True if kind != "untrained" else None for kind in compared
    ]


def test_scores_are_compared_with_the_bag_of_words_in_pairs(report: dict[str, Any]) -> None:
    row = next(row for row in report["tables"]["1"]["rows"] if row["task"] == "sst2")
    others = ("teacher", "untrained", "words-only", "alone", "bag_of_words")
    assert {name: against["pairing"] for name, against in row["versus"].items()} == dict.fromkeys(others, "paired")
    assert row["bag_of_words"]["score"] > 90.0
    assert row["student"]["one_seed"]
    assert not row["bag_of_words"]["one_seed"]


def test_a_teacher_that_knows_nothing_is_named(report: dict[str, Any]) -> None:
    teacher = report["models"][0]
    assert teacher["hardly_better"]
    assert teacher["counts"]["hidden_loss"] > 0
    assert "The teacher knows little" in report["markdown"]
    assert Path(report["folder"], "out", "students", "untrained", "heldout.parquet").is_file()
