"""The students of a pipeline: what ablations change, and the untrained one that every pipeline has."""

from pathlib import Path
from typing import Any

import pytest
import tiny_pipeline

from cluster.artifacts.recipe import RecipeError
from distill.launch import pipeline_recipe
from distill.launch.pipeline_recipe import Pipeline, PipelinePlan


def plan(tmp_path: Path, **changes: Any) -> PipelinePlan:
    return PipelinePlan(Pipeline.of(tiny_pipeline.measured(tmp_path) | changes), tmp_path / "out")


def test_every_pipeline_has_its_students_layers_untrained(tmp_path: Path) -> None:
    found = plan(tmp_path)
    assert found.pipeline.students() == ("student", "untrained", "no-teacher")
    untrained, student = (found.distillation(name) for name in ("untrained", "student"))
    assert untrained.steps == 0
    assert untrained.student == student.student
    assert found.rows_of(untrained) == found.rows_of(student)


def test_the_untrained_student_can_be_left_out_or_be_ones_own(tmp_path: Path) -> None:
    assert plan(tmp_path, added_ablations=[]).pipeline.students() == ("student", "no-teacher")
    own = plan(tmp_path, ablations={"as-it-starts": {"steps": 0}})
    assert own.pipeline.students() == ("student", "as-it-starts")


def test_the_length_of_an_ablation_replaces_that_of_the_student(tmp_path: Path) -> None:
    train = {key: value for key, value in tiny_pipeline.values(tmp_path)["train"].items() if key != "steps"}
    phases = [{"seq_len": 32, "steps": 4}, {"seq_len": 64, "steps": 2}]
    for length in ({"epochs": 2.0}, {"phases": phases}):
        found = plan(tmp_path, train={**train, **length})
        untrained = found.distillation("untrained")
        assert (untrained.steps, untrained.epochs, untrained.phases) == (0, None, ())
    # It is validated on the rows on which the student is validated last.
    assert found.rows_of(untrained) == {"tokens": tmp_path / "out" / "tokens-64"}


def test_a_teacher_of_no_step_is_refused(tmp_path: Path) -> None:
    teacher = tiny_pipeline.values(tmp_path)["teacher"]
    with pytest.raises(RecipeError, match=r"steps = 0 is for students: leave the table \[train\] out"):
        plan(tmp_path, teacher={**teacher, "train": {**teacher["train"], "steps": 0}})


@pytest.mark.parametrize(
    ("reference", "line"),
    [
        ("latency", r"^latency is no pipeline, .*: stillhouse recipes lists pipelines, with the word launch$"),
        ("demo#train", r"^demo#train is no pipeline, .*: write demo$"),
        ("demos", r"did you mean demo\?$"),
        ("default", r"corpus is missing and has no default: write \[corpus\]"),
    ],
)
def test_what_is_no_pipeline_is_refused(reference: str, line: str) -> None:
    with pytest.raises(RecipeError, match=line):
        pipeline_recipe.load(reference)
