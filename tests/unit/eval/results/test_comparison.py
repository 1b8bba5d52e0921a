"""The models and the lineage in a comparison."""

import json
import shutil
from pathlib import Path

import numpy
from result_folders import compared
from safetensors.numpy import save_file

from cluster.artifacts import artifact
from eval.results.collect import identity


def test_models_outside_the_results_are_described_by_their_folders(small_results: Path, tmp_path: Path) -> None:
    folder = tmp_path / "given/bert-something"
    folder.mkdir(parents=True)
    config = {"architectures": ["BertForMaskedLM"], "num_hidden_layers": 12, "hidden_size": 768}
    (folder / "config.json").write_text(json.dumps(config))
    save_file({"weight": numpy.zeros((30, 7), numpy.float32)}, folder / "model.safetensors")
    shutil.rmtree(small_results / "teacher")
    models = {"teacher": str(folder), "student": "students/student"}
    (small_results / "suite.json").write_text(json.dumps({"models": models, "ablations": None, "second_step": None}))
    before = identity(small_results)
    teacher = compared(small_results)["models"][0]
    told = {key: teacher[key] for key in ("architecture", "layers", "hidden", "parameters", "origin", "source")}
    assert told == {
        "architecture": "BertForMaskedLM",
        "layers": 12,
        "hidden": 768,
        "parameters": 210,
        "origin": "bert-something",
        "source": None,
    }
    assert str(tmp_path) not in json.dumps(compared(small_results))
    (folder / "README.md").write_text("words")
    assert identity(small_results) == before
    save_file({"weight": numpy.ones((30, 7), numpy.float32)}, folder / "model.safetensors")
    assert identity(small_results) != before


def test_lineage_lists_the_inputs_of_each_artifact(small_results: Path) -> None:
    found = compared(small_results)
    rows = {row["path"]: row for row in found["descent"]}
    assert len(rows) == 13
    assert {given["role"]: given["path"] for given in rows["students/student"]["inputs"]} == {
        "teacher": "teacher",
        "tokens": "tokens",
    }
    assert rows["corpus"]["identity"] == artifact.read(small_results / "corpus").identity
    assert str(small_results) not in json.dumps(found)
