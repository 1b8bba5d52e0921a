"""Seventeen short text files and a BERT become a student, int8 and a report, by the recipe that ``new`` writes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import tiny_pipeline

from cluster.artifacts import artifact
from cluster.telemetry.metrics_log import newest_metrics

QUICK = {
    "tokens.seq_len": "32",
    "train.rows_per_step": "2",
    "train.placement.log_every": "1",
    "suite.exports.latency": "{ lengths = [8], threads = [1], repeats = 5, warmup = 1 }",
}


@pytest.mark.long
def test_the_written_recipe_runs_beside_a_folder_of_text(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    for number, line in enumerate(tiny.ENGLISH[:17]):
        (tmp_path / "text" / f"{number}.txt").write_text(line, encoding="utf-8")
    tiny.bert_teacher(tmp_path / "bert")
    settings = {"teacher.source": "bert", **QUICK}
    changes = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    for words in (["new", "my.toml"], ["launch", "my.toml", "--out", "my", *changes]):
        command = [sys.executable, "-m", "cluster.console", *words]
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=tmp_path, env=tiny_pipeline.environment(), check=False
        )
        assert done.returncode == 0, done.stderr
    out = tmp_path / "my"
    assert artifact.read(out / "tokens").facts["heldout_rows"] >= 1
    found = newest_metrics(out / "runs/student/metrics.jsonl", "validation")
    assert found is not None
    assert {"masked", "agreement", "teacher_masked"} <= {*found}
    for model in ("teacher", "student"):
        assert artifact.read(out / "exports" / model / "int8").kind == "export"
    rows = json.loads((out / "latency/latency.json").read_text(encoding="utf-8"))["rows"]
    assert {(row["model"], row["form"]) for row in rows} >= {("student", "int8"), ("teacher", "int8")}
    assert (out / "report/report.html").is_file()
