"""Which models ``stillhouse ask`` finds, and which of them it puts side by side."""

import shutil
from pathlib import Path

import altered_models
import ask_setup
import models_with_heads
import pytest
import tiny

from cluster.artifacts.commit import ArtifactError
from cluster.artifacts.errors import StageError
from deploy.ask.found_models import Comparison, find


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ask_setup.pipeline(tmp_path_factory.mktemp("pipeline") / "demo")


def places(comparison: Comparison, below: Path) -> dict[str, str]:
    return {model.role: str(model.folder.relative_to(below)) for model in comparison.models}


def test_a_pipeline_s_models_are_paired_for_each_task_and_form(pipeline: Path) -> None:
    found = {(one.title, one.form): places(one, pipeline) for one in find([pipeline])}
    assert found == {
        ("Masked words", "PyTorch"): {"teacher": "teacher", "student": "students/student"},
        ("sst2", "PyTorch"): {"teacher": "finetune/teacher/sst2", "student": "finetune/student/sst2"},
        ("sst2", "onnx"): {"teacher": "exports/teacher/onnx", "student": "exports/student/onnx"},
        ("mrpc", "PyTorch"): {"teacher": "finetune/teacher/mrpc", "student": "finetune/student/mrpc"},
        ("squad", "PyTorch"): {"teacher": "finetune/teacher/squad", "student": "finetune/student/squad"},
    }
    assert find([pipeline])[0].head == "masked-words", "what a page shows first"


def test_manifests_decide_and_not_names(pipeline: Path, tmp_path: Path) -> None:
    renamed = Path(shutil.copytree(pipeline, tmp_path / "out"))
    (renamed / "finetune" / "teacher").rename(renamed / "finetune" / "x")
    (renamed / "finetune" / "student").rename(renamed / "finetune" / "teacher")
    (renamed / "exports" / "teacher").rename(renamed / "exports" / "y")
    found = {(one.title, one.form): places(one, renamed) for one in find([renamed])}
    assert found["sst2", "PyTorch"] == {"teacher": "finetune/x/sst2", "student": "finetune/teacher/sst2"}
    assert found["sst2", "onnx"] == {"teacher": "exports/y/onnx", "student": "exports/student/onnx"}


def test_without_the_models_themselves_the_folders_of_a_suite_decide(pipeline: Path, tmp_path: Path) -> None:
    shutil.copytree(pipeline / "finetune", tmp_path / "finetune")
    found = {one.title: places(one, tmp_path) for one in find([tmp_path])}
    assert found["sst2"] == {"teacher": "finetune/teacher/sst2", "student": "finetune/student/sst2"}


def test_a_second_step_of_fine_tuning_does_not_replace_the_first(pipeline: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(pipeline, tmp_path / "out"))
    student = ask_setup.artifact.read(out / "students" / "student")
    model = models_with_heads.model_folder(tmp_path / "model", "distilbert", "classification")
    ask_setup.tuned(out / "finetune" / "a-second-step" / "sst2", student, model, "sst2", second_step={"soft": 1.0})
    found = {(one.title, one.form): places(one, out) for one in find([out])}
    assert found["sst2", "PyTorch"]["student"] == "finetune/student/sst2"


def test_examples_come_from_the_folder(pipeline: Path) -> None:
    found = {one.title: one for one in find([pipeline]) if one.form == "PyTorch"}
    assert found["sst2"].examples == tuple(ask_setup.SST2)
    assert "development set of sst2" in found["sst2"].examples_from
    assert found["mrpc"].examples == ()
    masked = found["Masked words"].examples
    assert len(masked) == 6
    assert {one.text for one in masked} == {ask_setup.HIDDEN.replace(masked[0].answer or "", "[MASK]")}
    assert "held out" in found["Masked words"].examples_from


def test_what_a_model_was_fine_tuned_on_is_said(pipeline: Path) -> None:
    found = {(one.title, one.form): one.models[0].tuning for one in find([pipeline])}
    assert found["sst2", "PyTorch"] == "fine-tuned on sst2: 180 examples, accuracy 91.5 on 60 others"
    assert found["sst2", "onnx"] == found["sst2", "PyTorch"]
    assert found["Masked words", "PyTorch"].startswith("not fine-tuned")


def test_models_named_one_by_one_stand_side_by_side(pipeline: Path, tmp_path: Path) -> None:
    plain = tiny.bert_teacher(tmp_path / "my-bert", layers=1)
    (one,) = find([pipeline / "teacher", plain])
    assert [(model.role, model.title) for model in one.models] == [("teacher", "Teacher"), ("student", "my-bert")]
    assert one.examples == ()
    (one,) = find([pipeline / "finetune" / "student" / "sst2", pipeline / "exports" / "student" / "onnx"])
    assert one.form == "PyTorch and onnx"
    assert [model.title for model in one.models] == ["student/sst2", "student/onnx"]
    assert one.examples == tuple(ask_setup.SST2)
    titles = [one.title for one in find([plain, pipeline / "finetune" / "teacher" / "squad"])]
    assert titles == ["Masked words", "squad"]


def test_a_folder_without_models_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="holds no models: name the output folder"):
        find([tmp_path])
    with pytest.raises(StageError, match="does not exist: name the output folder"):
        find([tmp_path / "absent"])


def test_a_cut_model_is_refused_by_name(pipeline: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(pipeline, tmp_path / "out"))
    weights = out / "students" / "student" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match=r"students/student/model\.safetensors has"):
        find([out])


def test_a_model_without_a_head_is_refused(tmp_path: Path) -> None:
    folder = altered_models.with_config(
        tiny.bert_teacher(tmp_path / "bert", layers=1), tmp_path / "bare", architectures=["BertModel"]
    )
    with pytest.raises(StageError, match="has no head that answers"):
        find([folder])
