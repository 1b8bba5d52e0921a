"""What a pipeline says in the terminal: its stages as they begin, and the last screen."""

from pathlib import Path

import pytest
import tiny_pipeline

from distill.launch.pipeline_recipe import Pipeline, PipelinePlan
from distill.launch.pipeline_stages import Stages
from distill.launch.run_pipeline import ending


def test_every_stage_says_its_number_and_what_it_makes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pipeline = Pipeline.of(tiny_pipeline.measured(tmp_path))
    names = ["corpus", "tokens", "teacher", "student", *pipeline.all_ablations(), "suite"]
    stages = Stages(PipelinePlan(pipeline, tmp_path / "out"))
    with caplog.at_level("INFO", "stillhouse"):
        for name in names:
            stages.begin(name)
    assert [line.partition(":")[0] for line in caplog.messages] == [
        f"{number} of {len(names)}  {name}" for number, name in enumerate(names, start=1)
    ]
    told = {line.split()[3].rstrip(":"): line.partition(": ")[2] for line in caplog.messages}
    assert told["corpus"] == "clean, deduplicated documents from 2 sources"
    assert told["tokens"] == "a vocabulary, and packed rows of 32 tokens"
    assert told["teacher"] == "a model from scratch, trained on masked words in 4 steps"
    assert told["student"] == "half the teacher's layers, distilled in 4 steps"
    assert told["no-teacher"].startswith("the same student with other values (loss soft 0, cosine 0")
    assert told["untrained"] == "the student as it starts, untrained"
    assert told["suite"].endswith("on provenance, exports and their speed, the report")


def test_the_last_screen_says_what_to_do_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "my runs" / "demo"
    (out / "report").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert ending(out) == f"no report: {out}/jobs.json says why"
    (out / "report" / "summary.txt").write_text("demo: done in 6 min 52 s\n\n  keeps  all of it\n")
    first, *_, report, ask, yours = ending(out).strip().splitlines()
    assert first == "demo: done in 6 min 52 s"
    assert report == f"report   {(out / 'report' / 'report.html').as_uri()}"
    assert ask == "ask it   stillhouse ask 'my runs/demo'"
    assert yours.startswith("yours    stillhouse new mine")
