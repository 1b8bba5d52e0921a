import json
import os
from pathlib import Path

import headed
import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from cluster import artifact, stage
from cluster.recipe import load
from eval.latency import STAGE, Latency, summarise
from eval.runners import ExportRunner, PyTorchRunner, runner_for

QUICK = Latency(lengths=(8, 20), warmup=1, repeats=7)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """A teacher, a student, and the student's exports, made as anybody would: through the command line's stages."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("models")
    found = {
        "teacher": headed.model_folder(root / "teacher", "bert", "classification", layers=4),
        "student": headed.model_folder(root / "student", "bert", "classification", layers=2),
    }
    export, quantize = stage.find("deploy.onnx_export"), stage.find("deploy.quantize")
    given = {"model": found["student"]}
    found["onnx"] = stage.execute(export, export.recipe(), given, root / "onnx").path
    loose = quantize.recipe.of({"tolerance": {"relative": 1.0, "agreement": 0.0}})
    found["int8"] = stage.execute(quantize, loose, {**given, "export": found["onnx"]}, root / "int8").path
    return found


@pytest.fixture(scope="module")
def measured(folders) -> artifact.Artifact:
    out = folders["teacher"].parent / "latency"
    return stage.execute(STAGE, QUICK, folders, out)


def test_there_is_one_complete_row_for_each_model_and_length(folders, measured):
    rows = measured.facts["rows"]
    assert [(row["length"], row["model"]) for row in rows] == [(length, name) for length in (8, 20) for name in folders]
    runtimes = {row["model"]: row["runtime"] for row in rows}
    assert [runtimes[name].split()[0] for name in folders] == ["PyTorch", "PyTorch", "ONNX", "ONNX"]
    assert (runtimes["onnx"].split()[-1], runtimes["int8"].split()[-1]) == ("fp32", "int8")
    for row in rows:
        assert 0 < row["min_ms"] <= row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"]
        assert row["min_ms"] <= row["mean_ms"]
        assert min(row["first_ms"], row["load_seconds"]) > 0
    sizes = {row["model"]: (row["parameters"], row["bytes"]) for row in rows}
    assert sizes["onnx"][0] == sizes["int8"][0] == sizes["student"][0] < sizes["teacher"][0]
    assert sizes["int8"][1] < sizes["onnx"][1] == (folders["onnx"] / "model.onnx").stat().st_size
    assert sizes["teacher"][1] == (folders["teacher"] / "model.safetensors").stat().st_size


def test_ratios_are_against_the_teacher_at_the_same_length(measured):
    rows = measured.facts["rows"]
    teacher = {row["length"]: row["p50_ms"] for row in rows if row["model"] == "teacher"}
    for row in rows:
        assert row["ratio_to_teacher"] == teacher[row["length"]] / row["p50_ms"]


def test_the_file_holds_the_conditions(measured):
    said = json.loads((measured.path / "latency.json").read_text())
    assert said["rows"] == measured.facts["rows"]
    assert said["settings"] == QUICK.resolved()
    about = said["machine"]
    assert about == measured.facts["machine"]
    assert about["cores"] == os.cpu_count()
    assert about["libraries"]["torch"] == torch.__version__
    assert about["processor"]
    assert len(about["load_average"]) == 2
    assert said["fit"] == (said["unfit"] is None)
    assert [said[key] for key in ("fit", "unfit")] == [measured.facts[key] for key in ("fit", "unfit")]
    assert about["others_share_of_machine"] is None or 0 <= about["others_share_of_machine"] <= 1
    if hasattr(os, "sched_getaffinity"):
        assert len(about["pinned_cores"]) == QUICK.threads


def test_without_a_teacher_there_is_no_ratio_and_threads_are_put_back(folders, tmp_path):
    torch.set_num_threads(2)
    try:
        made = stage.execute(STAGE, QUICK, {"student": folders["student"]}, tmp_path / "latency")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert [row["ratio_to_teacher"] for row in made.facts["rows"]] == [None, None]


def test_a_length_beyond_the_positions_is_refused(folders, tmp_path):
    recipe = QUICK.model_copy(update={"lengths": (8, 65)})
    with pytest.raises(stage.StageError, match=r"65 tokens are more than student has positions \(64\)"):
        stage.execute(STAGE, recipe, {"student": folders["student"]}, tmp_path / "latency")
    assert not (tmp_path / "latency").exists()


def test_an_export_in_the_place_of_a_model_is_refused(folders, tmp_path):
    with pytest.raises(stage.StageError, match=r"--student .* is an export: .* --onnx"):
        stage.execute(STAGE, QUICK, {"student": folders["onnx"]}, tmp_path / "latency")


def test_percentiles_by_hand():
    times = [50.0, 40.0, 30.0, *range(1, 102)]
    numbers = summarise([float(value) for value in times], warmup=2)
    assert numbers == {"p50_ms": 51, "p90_ms": 91, "p99_ms": 100, "mean_ms": 51, "min_ms": 1, "first_ms": 50}


def test_both_runners_answer_as_the_model_does(folders):
    ids = np.random.default_rng(0).integers(5, 100, (2, 13))
    mask = np.ones_like(ids)
    mask[1, 9:] = 0
    types = (np.arange(13) >= 6).astype(np.int64)[None, :].repeat(2, axis=0)
    model = AutoModelForSequenceClassification.from_pretrained(folders["student"]).eval()
    eager, onnx = runner_for(folders["student"]), runner_for(folders["onnx"])
    assert (type(eager), type(onnx)) == (PyTorchRunner, ExportRunner)
    given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
    for arrays in (given, {"input_ids": ids, "attention_mask": mask}):
        with torch.no_grad():
            wanted = model(**{name: torch.from_numpy(values) for name, values in arrays.items()}).logits.numpy()
        for runner in (eager, onnx):
            (found,) = runner(**arrays)
            np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_a_folder_that_is_no_whole_model_is_refused(folders, tmp_path):
    with pytest.raises(stage.StageError, match=r"it has no config\.json"):
        runner_for(tmp_path)
    body = headed.model_folder(tmp_path / "body", "bert", "masked-words")
    config = json.loads((body / "config.json").read_text())
    (body / "config.json").write_text(json.dumps(config | {"architectures": ["BertForSequenceClassification"]}))
    with pytest.raises(stage.StageError, match=r"weights lack bert\.pooler"):
        runner_for(body)
    (body / "config.json").write_text(json.dumps(config | {"architectures": ["BertForEverything"]}))
    with pytest.raises(stage.StageError, match="architectures names BertForEverything"):
        runner_for(body)


def test_the_shipped_recipe_is_the_documented_one():
    assert load(Latency, "latency") == Latency()
