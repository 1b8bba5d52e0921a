"""The command ``distill``: whole pipelines on Ray, repeated, with dying workers and failing jobs, and on a cluster."""

import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray_clusters
import tiny_pipeline
from ray_clusters import training_workers
from train_processes import RECIPE, curve
from waiting import wait_until

from cluster.artifacts import artifact, commit, recipe
from cluster.artifacts.errors import StageError
from cluster.artifacts.stage import TrainingRun
from cluster.telemetry.metrics_log import read_metrics
from distill.checkpointing.run_folder import Run
from distill.config import Distillation
from distill.launch import run_pipeline
from distill.launch.elastic import LaunchError
from distill.launch.pipeline_recipe import Pipeline, PipelinePlan
from distill.launch.ray_train import Call, on_workers


def launched(pipeline: Path, out: Path, *settings: str) -> subprocess.CompletedProcess[str]:
    changes = [part for setting in settings for part in ("--set", setting)]
    command = [sys.executable, "-m", "distill.launch", str(pipeline), "--out", str(out), *changes]
    environment = tiny_pipeline.environment()
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output of a whole pipeline in which one job fails."""
    folder = tmp_path_factory.mktemp("pipeline")
    values = tiny_pipeline.measured(folder)
    values["suite"]["tasks"]["rte"] = {}
    values["suite"]["second_step"] = {"tasks": ["provenance"]}
    values["suite"]["sweep"] = {"tasks": ["provenance"]}
    values["suite"]["data"] = str(folder / "{task}")
    (folder / "rte").mkdir()
    (folder / "rte" / "train.jsonl").write_text('{"sentence1": "a", "sentence2": "b"}\n')
    (folder / "rte" / "dev.jsonl").write_text('{"sentence1": "a", "sentence2": "b"}\n')
    process = launched(tiny_pipeline.write(folder / "pipeline.toml", values), folder / "out")
    assert process.returncode == 1, process.stderr
    assert "3 jobs failed" in process.stderr, process.stderr
    return folder / "out"


def test_every_stage_left_its_artifact(done: Path) -> None:
    kinds = {
        "corpus": "corpus",
        "tokens": "tokens",
        "teacher": "teacher",
        "students/student": "student",
        "students/no-teacher": "student",
        "students/untrained": "student",
        "finetune/teacher/provenance": "finetune",
        "finetune/student/provenance": "finetune",
        "finetune/student-second-step/provenance": "finetune",
        "finetune/no-teacher/provenance": "finetune",
        "finetune/untrained/provenance": "finetune",
        "bag_of_words/provenance": "benchmark",
        "probes/student": "probes",
        "exports/student/onnx": "export",
        "exports/student/int8": "export",
        "exports/teacher/int8": "export",
        "latency": "benchmark",
        "report": "report",
    }
    for place, kind in kinds.items():
        artifact.verify(done / place, kind)
    assert artifact.read(done / "students/student").facts["layers"] == 2
    points = read_metrics(done / "runs" / "student" / "probes.jsonl")
    assert [(point["step"], point["task"]) for point in points] == [(2, "provenance"), (4, "provenance")]
    for point in points:
        assert commit.parse(done / point["artifact"] / "manifest.json")["facts"]["score"] == point["score"]
    assert not list((done / "probes").rglob("*.safetensors"))
    assert "model-index" in (done / "students" / "student" / "README.md").read_text()
    for name in ("report.html", "report.md", "report.json", "summary.txt"):
        assert (done / "report" / name).stat().st_size > 0


def test_a_failed_job_stops_no_other_and_the_report_names_it(done: Path) -> None:
    states = {job["name"]: job["state"] for job in json.loads((done / "jobs.json").read_text())}
    failed = {name for name, state in states.items() if state == "failed"}
    assert failed == {"finetune/teacher/rte", "finetune/student/rte", "bag_of_words/rte"}
    assert states["latency"] == "done"
    page = (done / "report" / "report.html").read_text()
    assert "finetune/student/rte" in page
    assert "label" in page


def test_the_report_says_what_the_teacher_adds(done: Path) -> None:
    report = tiny_pipeline.report(done)
    untrained = artifact.read(done / "students/untrained").facts
    assert (untrained["steps"], untrained["tokens"]) == (0, 0)
    kinds = {model["name"]: model["kind"] for model in report["models"]}
    assert kinds == {
        "teacher": "teacher", "student": "distilled", "no-teacher": "no-teacher", "untrained": "untrained"
    }  # fmt: skip
    compared = {one["kind"]: one for one in report["heldout"]["comparisons"]}
    assert set(compared) == {"untrained", "no-teacher"}
    assert all(one["loss"]["error"] > 0 and one["reason"] is None for one in compared.values())
    (row,) = (row for row in report["other_tasks"] if row["task"] == "provenance")
    assert row["bag_of_words"]["examples"] == row["student"]["examples"]
    assert {other: against["pairing"] for other, against in row["versus"].items()} == dict.fromkeys(
        ("teacher", "no-teacher", "untrained", "student-second-step", "bag_of_words"), "paired"
    )
    # The teacher of four steps knows nothing, and the report says so.
    assert report["models"][0]["hardly_better"]
    assert "The teacher knows little" in (done / "report" / "report.md").read_text()


@pytest.mark.long
def test_run_again_it_skips_what_is_complete(done: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in done.rglob("manifest.json")}
    process = launched(done.parent / "pipeline.toml", done)
    assert process.returncode == 1
    after = {path: path.stat().st_mtime_ns for path in done.rglob("manifest.json")}
    assert after == before
    for line in ("corpus: already complete", "runs/student: already complete", "latency: already complete"):
        assert line in process.stderr


@pytest.mark.long
def test_another_recipe_for_the_same_place_is_refused_and_nothing_lost(done: Path) -> None:
    process = launched(done.parent / "pipeline.toml", done, "tokens.seq_len=16")
    assert process.returncode == 1
    *lines, last = process.stderr.splitlines()
    (said,) = [line for line in lines if line.startswith("tokens: failed: ")]
    assert "recipe value seq_len: 32 there, 16 asked for" in said
    assert last == "error: tokens failed, as said above: correct that, and run the command again"
    artifact.verify(done / "tokens", "tokens")


def test_an_invalid_pipeline_is_refused_before_anything_runs(tmp_path: Path) -> None:
    values = tiny_pipeline.measured(tmp_path)
    values["train"]["loss"] = {"temprature": 3.0}
    process = launched(tiny_pipeline.write(tmp_path / "pipeline.toml", values), tmp_path / "out")
    assert process.returncode == 1
    assert process.stderr.count("\n") == 1
    assert "[train]: unknown key loss.temprature; did you mean loss.temperature?" in process.stderr
    assert not (tmp_path / "out").exists()


def test_a_pipeline_is_made_in_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    pipeline = tiny_pipeline.write(tmp_path / "pipeline.toml", tiny_pipeline.values(tmp_path))
    monkeypatch.setattr(sys, "argv", ["launch", str(pipeline), "--out", "s3://barrel/out"])
    with pytest.raises(SystemExit, match="1"):
        run_pipeline.main()
    assert "error: --out s3://barrel/out: a pipeline runs in a folder" in capsys.readouterr().err
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("s3")]


@pytest.mark.long
def test_a_pipeline_whose_driver_was_killed_resumes(tmp_path: Path) -> None:
    values = tiny_pipeline.values(tmp_path)
    values["train"] = {**values["train"], "steps": 120}
    values["train"]["placement"] = {**values["train"]["placement"], "save_every": 20}
    pipeline, out = tiny_pipeline.write(tmp_path / "pipeline.toml", values), tmp_path / "out"
    command = [sys.executable, "-m", "distill.launch", str(pipeline), "--out", str(out)]
    run = Run(out / "runs" / "student")
    with (tmp_path / "driver.log").open("wb") as log:
        driver = subprocess.Popen(command, env=tiny_pipeline.environment(), stdout=log, stderr=log)
        wait_until(lambda: saved(run, 40), driver)
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    teacher = artifact.read(out / "teacher").identity
    assert not (out / "students").exists()
    again = launched(pipeline, out)
    assert again.returncode == 0, again.stderr
    assert artifact.read(out / "teacher").identity == teacher
    assert "teacher is already complete" in again.stderr
    assert artifact.read(out / "students" / "student").facts["steps"] == 120
    assert [line["step"] for line in read_metrics(run.metrics) if line["kind"] == "train"] == list(range(1, 121))


@pytest.fixture(scope="module")
def folder(training_folder: Path) -> Path:
    return training_folder


def make_call(folder: Path, out: Path, **changes: object) -> tuple[Call, Distillation]:
    placement = {"workers": 2, "rows_per_device": 2, "log_every": 1, "save_every": 5, "validate_every": 20}
    values = {**RECIPE, "steps": 40, "placement": placement, **changes}
    inputs = {"tokens": folder / "tokens", "teacher": folder / "teacher"}
    return Call("distill.train", values, inputs, out), Distillation.of(values)


@pytest.mark.rare
@pytest.mark.long
def test_a_killed_worker_ends_in_a_finished_run_with_the_same_curve(
    folder: Path, tmp_path: Path, ray_of_three_cpus: None, curve_of_forty_steps: list[float]
) -> None:
    run = Run(tmp_path / "killed")
    killed: list[int] = []
    killer = threading.Thread(target=kill_a_worker_at, args=(run, 10, killed))
    killer.start()
    asked, training = make_call(folder, run.path)
    on_workers(asked, training, run)
    killer.join()
    assert killed
    assert not psutil.pid_exists(killed[0])
    assert curve(run.path) == pytest.approx(curve_of_forty_steps, rel=1e-6)


def saved(run: Run, step: int) -> bool:
    """Whether a checkpoint of this step or a later one exists."""
    newest = run.newest()
    return newest is not None and newest.step >= step


def kill_a_worker_at(run: Run, step: int, killed: list[int]) -> None:
    """SIGKILL one of the two training workers of a private cluster once a checkpoint of ``step`` exists."""
    wait_until(lambda: saved(run, step))
    workers = training_workers(psutil.Process().children(recursive=True))
    assert len(workers) == 2
    killed.append(workers[1].pid)
    workers[1].kill()


@pytest.mark.long
def test_user_errors_are_one_line_and_not_retried(folder: Path, tmp_path: Path, ray_of_three_cpus: None) -> None:
    asked, training = make_call(folder, tmp_path / "run", student={"layers": [0, 9]})
    with pytest.raises(LaunchError, match=r"student.layers \[0, 9\] does not fit a teacher of 4 layers"):
        on_workers(asked, training, Run(tmp_path / "run"))


def test_more_workers_than_the_cluster_has_are_refused(folder: Path, tmp_path: Path, ray_of_three_cpus: None) -> None:
    asked, training = make_call(folder, tmp_path / "run", placement={"workers": 64})
    with pytest.raises(LaunchError, match="asks for 64 workers, the cluster has room for 3"):
        on_workers(asked, training, Run(tmp_path / "run"))


@pytest.fixture
def head(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Start a Ray cluster with token authentication; returns the environment of its users."""
    with ray_clusters.running_cluster(tmp_path, head_cpus=2, dashboard=True) as cluster:
        yield cluster.environment


@pytest.mark.long
def test_a_pipeline_submitted_to_a_cluster(head: dict[str, str], tmp_path: Path) -> None:
    pipeline = tiny_pipeline.write(tmp_path / "pipeline.toml", tiny_pipeline.values(tmp_path))
    ray = str(Path(sys.executable).with_name("ray"))
    command = [ray, "job", "submit", "--", sys.executable, "-m", "distill.launch"]
    command += [str(pipeline), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, env=head, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "report   file:" in done.stdout
    artifact.verify(tmp_path / "out" / "students" / "student", "student")
    artifact.verify(tmp_path / "out" / "report", "report")
    stranger = {key: value for key, value in head.items() if not key.startswith("RAY_AUTH")}
    refused = subprocess.run(command, capture_output=True, text=True, env=stranger, check=False)
    assert refused.returncode != 0


def test_a_pipeline_uses_the_ledger_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = PipelinePlan(Pipeline.of(tiny_pipeline.measured(tmp_path)), tmp_path / "out")
    monkeypatch.delenv("STILLHOUSE_JOBS", raising=False)
    assert plan.ledger == tmp_path / "out" / "queue"
    monkeypatch.setenv("STILLHOUSE_JOBS", str(tmp_path / "jobs"))
    assert plan.ledger == tmp_path / "jobs"


def test_trainings_of_a_pipeline_follow_from_its_recipe(tmp_path: Path) -> None:
    plan = PipelinePlan(Pipeline.of(tiny_pipeline.measured(tmp_path)), tmp_path / "out")
    assert [job.name for job in plan.text()] == ["corpus", "tokens", "datasets/provenance"]
    assert plan.distillation("no-teacher").student.start == "random"
    assert plan.distillation("no-teacher").steps == plan.distillation("student").steps
    (probes,) = plan.side_jobs(TrainingRun("student", 4))
    assert probes.recipe["steps"] == 4
    assert probes.inputs == {"run": tmp_path / "out" / "runs" / "student"}
    assert plan.side_jobs(TrainingRun("no-teacher", 4)) == []


def test_a_missing_task_folder_is_found_before_anything_runs(tmp_path: Path) -> None:
    values = tiny_pipeline.values(tmp_path)
    values["suite"] = {"tasks": {"rte": {}}, "data": str(tmp_path / "nowhere" / "{task}")}
    with pytest.raises(StageError, match=r"rte: no folder .*nowhere/rte"):
        run_pipeline.launch(Pipeline.of(values), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missing_reference_of_a_sweep_is_found_before_anything_runs(tmp_path: Path) -> None:
    values = tiny_pipeline.measured(tmp_path)
    values["suite"]["sweep"] = {"reference": "all-losses"}
    with pytest.raises(StageError, match=r"sweep\.reference needs the model all-losses"):
        run_pipeline.launch(Pipeline.of(values), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.rare
@pytest.mark.long
def test_an_ablation_that_diverges_stops_nothing_else(tmp_path: Path) -> None:
    values = tiny_pipeline.values(tmp_path)
    values["ablations"] = {"wild": {"optimizer": {"learning_rate": 1e38, "clip": 1e38}}}
    process = launched(tiny_pipeline.write(tmp_path / "pipeline.toml", values), tmp_path / "out")
    assert process.returncode == 1, process.stderr
    assert re.search(r"runs/wild: failed: .* is not finite", process.stderr)
    assert "1 job failed" in process.stderr
    artifact.verify(tmp_path / "out" / "students" / "student", "student")
    assert "runs/wild" in (tmp_path / "out" / "report" / "report.md").read_text()


def test_the_tokenizer_is_the_teachers_where_none_is_named(tmp_path: Path) -> None:
    values = tiny_pipeline.values(tmp_path)
    values["teacher"] = {"source": "some/model"}
    del values["tokens"]["tokenizer"]
    plan = PipelinePlan(Pipeline.of(values), tmp_path)
    assert plan.text()[1].recipe["tokenizer"] == {"kind": "pretrained", "name": "some/model"}


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"suite": {"tasks": {"rte": {}}}}, "no data for rte"),
        ({"ablations": {"teacher": {}}}, "an ablation cannot be called student or teacher"),
        ({"ablations": {"x": {"loss": {"sofd": 1.0}}}}, r"\[ablations.x\]: unknown key loss.sofd"),
        ({"ablations": {"a/b": {}}}, r"ablations\.a/b: a folder is called after it"),
        ({"suite": {"tasks": {"rted": {}}, "data": "x"}}, "no task rted: did you mean rte?"),
    ],
)
def test_pipelines_that_are_refused(tmp_path: Path, change: dict[str, object], line: str) -> None:
    with pytest.raises(recipe.RecipeError, match=line):
        Pipeline.of(tiny_pipeline.values(tmp_path) | change)
