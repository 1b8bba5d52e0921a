"""The demo shows what it claims: what the student owes to its teacher, and that the teacher knows more than words."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_pipeline

from eval.results.schema import STUDENT, TEACHER


@pytest.mark.rare
def test_the_demo_shows_what_the_teacher_is_worth(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "distill.launch", "demo", "--out", str(tmp_path / "demo")]
    done = subprocess.run(command, capture_output=True, text=True, env=tiny_pipeline.environment(), check=False)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads((tmp_path / "demo/report/report.json").read_text(encoding="utf-8"))
    compared = {row["kind"]: row for row in report["heldout"]["comparisons"] if row["student"] == STUDENT}
    for kind in ("untrained", "masked-only", "no-teacher"):
        assert compared[kind]["loss"]["word"] == "better", kind
        assert compared[kind]["accuracy"]["difference"] > 0, kind
    assert compared["masked-only"]["same_tokens"]
    (task,) = report["other_tasks"]
    assert task["teacher_versus_bag"]["word"] == "better"
    models = {model["name"]: model for model in report["models"]}
    assert models[TEACHER]["hidden_loss"] < models[STUDENT]["hidden_loss"] < models[STUDENT]["counts"]["hidden_loss"]
    assert "hidden words of held-out text" in " ".join(done.stdout.split())
    assert "stillhouse ask" in done.stdout
