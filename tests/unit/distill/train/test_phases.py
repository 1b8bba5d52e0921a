"""Training phases with rows of several lengths: rows of each phase, one curve across phases, and refused recipes."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import tiny_pipeline
import tokens_artifact
import torch
from train_processes import RECIPE, command, curve, environment, toml

from cluster.artifacts import artifact, cli, recipe, registry, stage
from cluster.telemetry.metrics_log import read_metrics
from cluster.tokens.rows import open_tokens
from distill.checkpointing.run_folder import Run
from distill.config import Distillation, Training
from distill.cost_model import hardware, step_prediction
from distill.cost_model.forecast import forecast
from distill.data.schedule import Schedule
from distill.launch import run_pipeline
from distill.launch.pipeline_recipe import Pipeline, PipelinePlan
from distill.modeling import model_shape
from distill.plan import cli as plan_cli
from distill.train import export
from distill.train.teacher import STAGE as TEACHER
from distill.train.teacher import Teacher

TRAIN = registry.find("distill.train")
SHORT, LONG = 16, tokens_artifact.SEQ_LEN
TOLERANCE = 1e-6
PHASES = [{"seq_len": SHORT, "steps": 4}, {"seq_len": LONG, "steps": 4, "rows_per_step": 4}]
PLACEMENT = {"rows_per_device": 4, "log_every": 1, "save_every": 1, "validate_every": 3, "keep_checkpoints": 9}
VALUES: dict[str, Any] = {
    **{key: value for key, value in RECIPE.items() if key != "steps"},
    "phases": PHASES,
    "placement": PLACEMENT,
}


@pytest.fixture(scope="module")
def folder(training_folder: Path) -> Path:
    """A folder with rows of several lengths."""
    found = training_folder
    tokens_artifact.of_length(found / "short", found / "bert", SHORT)
    for name, length in (("again", LONG), ("longer", 24), ("wide", 128)):
        tokens_artifact.of_length(found / name, found / "bert", length)
    tokens_artifact.of_length(found / "foreign", tiny.roberta_teacher(found / "roberta"), LONG)
    return found


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    """Four steps of eight short rows, then four of four long ones."""
    execute(folder, folder / "run")
    return folder / "run"


def inputs(folder: Path) -> dict[str, Path]:
    return {f"tokens-{LONG}": folder / "tokens", f"tokens-{SHORT}": folder / "short"}


def execute(folder: Path, out: Path, **changes: Any) -> None:
    stage.execute(TRAIN, Distillation.of({**VALUES, **changes}), {**inputs(folder), "teacher": folder / "teacher"}, out)


def schedule(folder: Path, *phases: dict[str, Any]) -> Schedule:
    training = Training.of({"rows_per_step": 8, "phases": phases})
    lengths = {phase.seq_len for phase in training.phases}
    paths = {SHORT: folder / "short", LONG: folder / "tokens"}
    return Schedule(training, [open_tokens(paths[length]) for length in lengths])


def test_steps_lie_phase_after_phase(folder: Path) -> None:
    rows = {length: len(open_tokens(folder / name).train) for length, name in ((SHORT, "short"), (LONG, "tokens"))}
    found = schedule(
        folder,
        {"seq_len": SHORT, "epochs": 2.0},
        {"seq_len": LONG, "steps": 3, "rows_per_step": 5},
        {"seq_len": SHORT, "steps": 2},
    )
    border = round(2 * rows[SHORT] / 8)
    assert [(phase.first_step, phase.end) for phase in found.phases] == [
        (0, border),
        (border, border + 3),
        (border + 3, border + 5),
    ]
    assert found.steps == border + 5
    assert [found.at(step).number for step in (0, border - 1, border, border + 2, border + 3, border + 4)] == [
        *(0, 0, 1, 1, 2, 2)
    ]
    seen = 0
    for step in range(found.steps):
        assert found.tokens_after(step) == seen
        seen += len(found.at(step).batches.rows(step, 0, found.at(step).training.rows_per_step)[0]) * (
            found.at(step).seq_len
        )
    assert found.tokens_after(found.steps) == seen


def test_every_phase_sees_each_of_its_rows_once_an_epoch(folder: Path) -> None:
    found = schedule(folder, {"seq_len": SHORT, "epochs": 1.5}, {"seq_len": LONG, "epochs": 2.5})
    epochs_of = []
    for phase, whole in zip(found.phases, (1, 2), strict=True):
        steps = [phase.batches.rows(step, 0, 8) for step in range(phase.first_step, phase.end)]
        rows, epochs = (np.concatenate(part) for part in zip(*steps, strict=True))
        numbers = np.unique(epochs).tolist()
        for epoch in numbers[:whole]:
            assert sorted(rows[epochs == epoch]) == list(range(len(phase.tokens.train)))
        assert len(numbers) == whole + 1
        epochs_of.append(set(numbers))
    assert epochs_of[0].isdisjoint(epochs_of[1])


def test_phases_over_the_same_rows_repeat_neither_order_nor_masks(folder: Path) -> None:
    found = schedule(folder, {"seq_len": SHORT, "steps": 2}, {"seq_len": SHORT, "steps": 2})
    first, second = found.phases
    assert not np.array_equal(first.batches.rows(0, 0, 8)[0], second.batches.rows(2, 0, 8)[0])
    rows = first.tokens.train.take(np.arange(8))
    masked = [
        phase.batches._masker.mask(rows, np.arange(8), phase.batches.rows(phase.first_step, 0, 8)[1])
        for phase in found.phases
    ]
    assert not torch.equal(masked[0].positions, masked[1].positions)


def test_a_single_phase_is_the_run_without_phases(folder: Path) -> None:
    alone = Training.of({"rows_per_step": 8, "steps": 5})
    plain = Schedule(alone, [open_tokens(folder / "tokens")])
    phased = schedule(folder, {"seq_len": LONG, "steps": 5})
    assert plain.steps == phased.steps == 5
    for step in range(5):
        ours, theirs = (found.at(step).batches.take(step, 0, 8) for found in (plain, phased))
        assert torch.equal(ours.input_ids, theirs.input_ids)
        assert torch.equal(ours.positions, theirs.positions)


def test_a_phase_of_longer_rows_has_micro_batches_of_no_more_tokens() -> None:
    training = Training.of(
        {
            "rows_per_step": 64,
            "phases": [
                {"seq_len": 128, "steps": 1},
                {"seq_len": 512, "steps": 1, "rows_per_step": 32},
                {"seq_len": 96, "steps": 1},
            ],
            "placement": {"rows_per_device": 8},
        }
    )
    assert [phase.micro_rows(2) for phase in training.by_phase()] == [8, 2, 8]
    with pytest.raises(recipe.RecipeError, match=r"rows_per_step 32 and 64 .* from 3 to 3"):
        Training.of({**training.resolved(), "placement": {"workers": {"min": 3, "max": 3}}})


def test_a_run_says_which_rows_it_read_and_validates_at_the_end_of_a_phase(folder: Path, run: Path) -> None:
    lines = read_metrics(run / "metrics.jsonl")
    steps = [line for line in lines if line["kind"] == "train"]
    assert [line["seq_len"] for line in steps] == [SHORT] * 4 + [LONG] * 4
    assert [line["tokens"] for line in steps] == [*(128 * step for step in range(1, 9))]
    rates = [Distillation.of(VALUES).optimizer.learning_rate_at(step, 8) for step in range(8)]
    assert [line["learning_rate"] for line in steps] == pytest.approx(rates)
    for line in steps:
        assert line["tokens_per_second"] == pytest.approx(128 / line["step_seconds"])
    validations = [(line["step"], line["seq_len"]) for line in lines if line["kind"] == "validation"]
    assert validations == [(3, SHORT), (4, SHORT), (6, LONG), (8, LONG)]


def test_the_student_has_the_values_of_the_last_phase(folder: Path, run: Path, tmp_path: Path) -> None:
    made = stage.execute(export.STAGE, export.Export(), {"run": run}, tmp_path / "student")
    assert made is not None
    last = read_metrics(run / "metrics.jsonl")[-1]
    assert made.facts["validation"]["seq_len"] == LONG
    assert made.facts["validation"]["masked"] == last["masked"]
    assert made.facts["tokens"] == 8 * 128
    lineage = made.facts["lineage"]
    assert {role: lineage[role] for role in inputs(folder)} == {
        role: artifact.read(path).identity for role, path in inputs(folder).items()
    }
    card = (made.path / "README.md").read_text()
    assert "| 8 of 8 rows of 16 tokens, then 4 rows of 32 tokens |" in card
    assert all(artifact.read(path).identity[:12] in card for path in inputs(folder).values())
    assert "13 at most, of 32 tokens" in card


@pytest.mark.parametrize("step", [2, 4, 6])
def test_a_run_resumes_within_a_phase_and_at_the_border(folder: Path, run: Path, tmp_path: Path, step: int) -> None:
    """Another placement after the stop, in the middle of the first phase, between both, in the middle of the second."""
    shutil.copytree(run, tmp_path / "run")
    for checkpoint in Run(tmp_path / "run").checkpoints():
        if checkpoint.step > step:
            shutil.rmtree(checkpoint.path)
    execute(folder, tmp_path / "run", placement={**PLACEMENT, "rows_per_device": 8})
    assert curve(tmp_path / "run") == pytest.approx(curve(run), rel=TOLERANCE)


@pytest.mark.long
def test_two_workers_under_another_zero_stage_go_on_across_the_border(folder: Path, run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    for checkpoint in Run(tmp_path / "run").checkpoints():
        if checkpoint.step > 3:
            shutil.rmtree(checkpoint.path)
    (folder / "recipe.toml").write_text(toml(VALUES), encoding="utf-8")
    given = command(folder, tmp_path / "run", 2, "placement.zero_stage=2", "placement.rows_per_device=2")
    given.insert(given.index("--tokens") + 1, str(folder / "short"))
    done = subprocess.run(given, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert curve(tmp_path / "run") == pytest.approx(curve(run), rel=TOLERANCE)


def test_a_teacher_trains_in_phases(folder: Path, tmp_path: Path) -> None:
    shape = {"layers": 2, "hidden": 32, "heads": 2, "feed_forward": 64, "positions": 64}
    train = {**VALUES, "phases": [{**phase, "steps": 2} for phase in PHASES], "loss": {"soft": 0.0, "cosine": 0.0}}
    made = stage.execute(
        TEACHER, Teacher.of({"architecture": shape, "train": train}), inputs(folder), tmp_path / "made"
    )
    assert made is not None
    assert set(made.inputs) == set(inputs(folder))
    assert made.facts["validation"]["seq_len"] == LONG
    steps = [line["seq_len"] for line in read_metrics(made.path / "metrics.jsonl") if line["kind"] == "train"]
    assert steps == [SHORT, SHORT, LONG, LONG]


REFUSALS: dict[str, tuple[list[str], list[str], str]] = {
    "length missing": (["tokens"], [], "phase 1 reads rows of 16 tokens, and --tokens has rows of 32: add an artifact"),
    "same length": (["short", "tokens", "again"], [], "have the same seq_len: leave one of them out"),
    "unused": (["short", "tokens", "longer"], [], "no phase reads the rows of 24 tokens of "),
    "no phases": (
        ["short", "tokens"],
        ["phases=[]", "steps=2"],
        "tokens of 2 lengths (16, 32) for a run without phases",
    ),
    "words": (["short", "foreign"], [], "have different vocabularies: make the second with --tokenizer"),
    "positions": (
        ["short", "wide"],
        ["phases=[{seq_len=16,steps=1},{seq_len=128,steps=1}]"],
        "rows of 128 tokens, but",
    ),
    "steps too": (["short", "tokens"], ["steps=2"], "steps and phases exclude each other: write steps in every phase"),
    "no steps": (
        ["short"],
        ["phases=[{seq_len=16}]"],
        "write steps = N or epochs = N, exactly one of them, in every phase",
    ),
    "rows": (["short", "tokens"], ["phases=[{seq_len=16,step=1}]"], "did you mean phases.0.steps?"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_tokens_and_phases_that_do_not_go_together_are_refused_in_one_line(
    folder: Path, tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    names, settings, line = REFUSALS[case]
    paths = [str(folder / name) for name in names]
    (tmp_path / "recipe.toml").write_text(toml(VALUES), encoding="utf-8")
    given = [part for setting in settings for part in ("--set", setting)]
    arguments = [str(tmp_path / "recipe.toml"), "--tokens", *paths, "--teacher", str(folder / "teacher")]
    with pytest.raises(SystemExit) as stopped:
        cli.main(TRAIN.name, [*arguments, "--out", str(tmp_path / "run"), *given])
    assert stopped.value.code == 1
    output = capsys.readouterr().err
    assert output.count("\n") == 1, output
    assert line in output
    assert not (tmp_path / "run").exists()


def test_the_order_of_tokens_does_not_matter_and_another_artifact_is_named(
    folder: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.toml").write_text(toml(VALUES), encoding="utf-8")
    arguments = [str(tmp_path / "recipe.toml"), "--teacher", str(folder / "teacher"), "--out", str(run)]
    for first, second in ((folder / "short", folder / "tokens"), (folder / "tokens", folder / "short")):
        cli.main(TRAIN.name, [*arguments, "--tokens", str(first), str(second)])
    tokens_artifact.of_length(tmp_path / "other", folder / "bert", SHORT, documents=900)
    capsys.readouterr()
    with pytest.raises(SystemExit):
        cli.main(TRAIN.name, [*arguments, "--tokens", str(tmp_path / "other"), str(folder / "tokens")])
    assert "holds another run (inputs.tokens-16: " in capsys.readouterr().err


def test_a_pipeline_makes_the_rows_its_phases_read(tmp_path: Path) -> None:
    values = tiny_pipeline.values(tmp_path)
    training = {key: value for key, value in values["train"].items() if key != "steps"}
    phases = [{"seq_len": 32, "steps": 2}, {"seq_len": 48, "steps": 2}]
    values["train"] = {**training, "phases": phases}
    values["teacher"]["train"] |= {"phases": [{"seq_len": 16, "steps": 2}]}
    del values["teacher"]["train"]["steps"]
    made = PipelinePlan(Pipeline.of(values), tmp_path / "out")
    jobs = {job.name: job for job in made.text()}
    assert list(jobs) == ["corpus", "tokens", "tokens-16", "tokens-48"]
    extra = jobs["tokens-48"]
    assert extra.recipe == {**{k: v for k, v in values["tokens"].items() if k != "tokenizer"}, "seq_len": 48}
    assert extra.inputs == {"corpus": jobs["corpus"].out, "tokenizer": jobs["tokens"].out}
    assert extra.after == ("corpus", "tokens")
    out = tmp_path / "out"
    assert made.rows_of(made.distillation("student")) == {"tokens-32": out / "tokens", "tokens-48": out / "tokens-48"}
    alone = Training.of(values["teacher"]["train"])
    assert made.rows_of(alone) == {"tokens": out / "tokens-16"}
    plain = PipelinePlan(Pipeline.of(tiny_pipeline.values(tmp_path)), out)
    assert [job.name for job in plain.text()] == ["corpus", "tokens"]
    assert plain.rows_of(plain.distillation("student")) == {"tokens": out / "tokens"}


@pytest.mark.rare
@pytest.mark.long
def test_a_pipeline_in_phases_runs_from_text_to_report_and_is_complete_then(tmp_path: Path) -> None:
    values = tiny_pipeline.values(tmp_path)
    for training in (values["train"], values["teacher"]["train"]):
        del training["steps"]
        training["phases"] = [{"seq_len": 32, "epochs": 0.2}, {"seq_len": 48, "steps": 2}]
    out = tmp_path / "out"
    for _ in range(2):
        assert run_pipeline.launch(Pipeline.of(values), out) == []
    short, long = (artifact.read(out / name, "tokens") for name in ("tokens", "tokens-48"))
    assert short.facts["vocabulary"] == long.facts["vocabulary"]
    assert set(artifact.read(out / "teacher").inputs) == {"tokens-32", "tokens-48"}
    lines = read_metrics(out / "runs" / "student" / "metrics.jsonl")
    assert [line["seq_len"] for line in lines if line["kind"] == "train"][-3:] == [32, 48, 48]
    places = [found["path"] for found in tiny_pipeline.report(out)["descent"]]
    assert {"tokens", "tokens-48"} < set(places)


def test_a_plan_counts_the_hours_of_every_phase(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Equal to two runs of one length each with the same layout, including validations."""
    path = tmp_path / "recipe.toml"
    phases = [{"seq_len": 128, "epochs": 2.0}, {"seq_len": 512, "steps": 500, "rows_per_step": 1024}]
    path.write_text(toml({"precision": "fp16", "phases": phases}), encoding="utf-8")
    plan_cli.main([str(path), "--hardware", "8xV100-32GB", "--rows", "1000000", "--seq-len", "128"])
    printed = capsys.readouterr().out
    assert "488 steps of 4,096 rows of 128 tokens (2 passes over 1,000,000 rows), fp16" in printed
    assert "500 steps of 1,024 rows of 512 tokens, fp16" in printed
    options = plan_cli._parser("plan").parse_args(
        [str(path), "--hardware", "8xV100-32GB", "--rows", "1000000", "--seq-len", "128"]
    )
    (planned,) = plan_cli.read_request(options).runs
    cluster = hardware.cluster("8xV100-32GB")
    found = forecast(planned, cluster)
    teacher = model_shape.KNOWN[model_shape.DEFAULT]
    alone = Training.of({"precision": "fp16", "steps": 500, "rows_per_step": 1024, "placement": {"rows_per_device": 4}})
    layout = step_prediction.Layout(8, 4, 1)
    long = step_prediction.predict(alone, teacher, model_shape.student_shape(teacher, 6), 512, cluster, layout)
    seconds = 488 * found.chosen.step_seconds + 500 * long.step_seconds + found.validation_seconds
    assert found.written.layout.micro_rows == 16
    assert found.hours == pytest.approx(seconds / 3600)
    assert planned.all_steps == 988
