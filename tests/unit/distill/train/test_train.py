"""``python -m distill.train`` and ``distill.export``: files of a run, refused inputs, and exported students."""

import json
import re
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import hub_rules
import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny
import tokens_artifact
import torch
from card_snippets import snippet_output
from huggingface_hub import ModelCard
from ray_clusters import free_ports
from train_processes import RECIPE, curve, environment, train
from transformers import AutoModelForMaskedLM, AutoTokenizer

from cluster.artifacts import artifact, cli, registry, stage
from cluster.telemetry.metrics_log import read_metrics
from cluster.tokens.rows import open_tokens
from cluster.tokens.tokenizer import load_tokenizer, vocabulary_digest
from distill.checkpointing.checkpoint import CheckpointError
from distill.checkpointing.run_folder import Run, RunError
from distill.config import Distillation, Loss, Student
from distill.data.batches import Masker
from distill.modeling import masked_lm, student
from distill.train import export

TRAIN = registry.find("distill.train")


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    """A finished run of six steps."""
    execute(folder, folder / "run")
    return folder / "run"


def execute(folder: Path, out: Path, **changes: Any) -> None:
    recipe = Distillation.of({**RECIPE, **changes})
    stage.execute(TRAIN, recipe, {"tokens": folder / "tokens", "teacher": folder / "teacher"}, out)


def test_a_run_leaves_every_step_and_a_validation(run: Path) -> None:
    lines = read_metrics(run / "metrics.jsonl")
    steps = [line for line in lines if line["kind"] == "train"]
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5, 6]
    assert [line["tokens"] for line in steps] == [step * 8 * tokens_artifact.SEQ_LEN for step in range(1, 7)]
    for line in steps:
        terms = 5 * line["soft"] + 2 * line["masked"] + line["cosine"]
        assert line["total"] == pytest.approx(terms, rel=1e-5)
        assert line["gradient_norm"] > 0
    validations = [line for line in lines if line["kind"] == "validation"]
    assert [line["step"] for line in validations] == [3, 6]
    assert set(validations[0]) > {"soft", "masked", "cosine", "accuracy", "agreement", "teacher_masked"}


@torch.no_grad()
def test_validation_is_what_transformers_alone_measures(folder: Path, run: Path, tmp_path: Path) -> None:
    """Recompute losses and accuracies of teacher and student, and their agreement, on the same 13 rows and masks."""
    stage.execute(export.STAGE, export.Export(), {"run": run}, tmp_path / "student")
    tokens = open_tokens(folder / "tokens")
    rows = np.arange(13)
    masker = Masker(tokens, Distillation(steps=1, loss=Loss(soft=0.0), seed=1))
    batch = masker.mask(tokens.heldout.take(rows), rows, np.full(13, 2**31))
    logits = {}
    for name, path in (("teacher", folder / "teacher"), ("student", tmp_path / "student")):
        model = AutoModelForMaskedLM.from_pretrained(path).eval()
        logits[name] = model(input_ids=batch.input_ids).logits.flatten(0, 1)[batch.positions]
    last = read_metrics(run / "metrics.jsonl")[-1]
    shown = batch.input_ids.flatten()[batch.positions]
    hidden, visible = shown == tokens.mask_id, shown == batch.labels
    assert 0 < visible.sum() < hidden.sum() < len(shown)
    for name, prefix in (("teacher", "teacher_"), ("student", "")):
        losses = torch.nn.functional.cross_entropy(logits[name], batch.labels, reduction="none")
        assert last[f"{prefix}masked"] == pytest.approx(losses.mean().item(), rel=1e-5)
        assert last[f"{prefix}hidden_loss"] == pytest.approx(losses[hidden].mean().item(), rel=1e-5)
        right = (logits[name].argmax(-1) == batch.labels).float()
        kinds = {"accuracy": hidden, "visible_accuracy": visible, "replaced_accuracy": ~hidden & ~visible}
        for kind, words in kinds.items():
            assert last[f"{prefix}{kind}"] == pytest.approx(right[words].mean().item(), abs=1e-6)
    agreement = (logits["student"].argmax(-1) == logits["teacher"].argmax(-1))[hidden].float().mean()
    assert last["agreement"] == pytest.approx(agreement.item(), abs=1e-6)
    rows_of = pq.read_table(tmp_path / "student" / "heldout.parquet").to_pydict()
    assert rows_of["hidden"] == hidden.view(13, -1).sum(1).tolist()
    assert sum(rows_of["nats"]) / sum(rows_of["hidden"]) == pytest.approx(last["hidden_loss"], rel=1e-5)
    assert sum(rows_of["hits"]) / sum(rows_of["hidden"]) == pytest.approx(last["accuracy"])


def test_word_counts_are_measured_on_the_same_words(folder: Path, run: Path) -> None:
    tokens, rows = open_tokens(folder / "tokens"), np.arange(13)
    batch = Masker(tokens, Distillation(steps=1, seed=1)).mask(tokens.heldout.take(rows), rows, np.full(13, 2**31))
    labels = batch.labels.numpy()
    hidden = batch.input_ids.flatten()[batch.positions[: len(labels)]].numpy() == tokens.mask_id
    chances = np.maximum(tokens.counts, 1) ** 0.3  # a word is masked count ** -0.7 times as often as it occurs
    chances[list(tokens.special_ids)] = 0
    nats = -np.log(chances[labels] / chances.sum())
    last = read_metrics(run / "metrics.jsonl")[-1]
    assert last["counts_masked"] == pytest.approx(nats.mean())
    assert last["counts_hidden_loss"] == pytest.approx(nats[hidden].mean())
    assert last["counts_accuracy"] == pytest.approx((labels[hidden] == chances.argmax()).mean())


def test_a_student_of_no_step_is_its_teachers_layers_untrained(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "stillhouse")
    execute(folder, tmp_path / "run", steps=0)
    execute(folder, tmp_path / "run", steps=0)  # a finished run is left as it is
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [(line["kind"], line["step"]) for line in lines] == [("validation", 0)]
    made = stage.execute(export.STAGE, export.Export(), {"run": tmp_path / "run"}, tmp_path / "student")
    assert made is not None
    assert (made.facts["steps"], made.facts["tokens"]) == (0, 0)
    assert (made.facts["start"], made.facts["loss"]["soft"]) == ("teacher", 5.0)
    assert "was not trained: the layers of its teacher" in (made.path / "README.md").read_text()
    teacher, _ = masked_lm.load(folder / "teacher")
    start = student.make(teacher, Student(), 1).state_dict()
    weights = AutoModelForMaskedLM.from_pretrained(made.path).state_dict()
    assert all(torch.equal(weights[name], start[name]) for name in start)
    # The teacher of these tests was never trained.
    assert "warning: the teacher knows hardly more than word counts" in caplog.text


def test_students_on_the_same_rows_and_masks_have_the_same_held_out_identity(
    folder: Path, run: Path, tmp_path: Path
) -> None:
    execute(folder, tmp_path / "alone", steps=2, loss={"soft": 0.0, "cosine": 0.0})
    execute(folder, tmp_path / "other", steps=0, seed=2)
    made = [
        stage.execute(export.STAGE, export.Export(), {"run": place}, tmp_path / f"student-{place.name}")
        for place in (run, tmp_path / "alone", tmp_path / "other")
    ]
    first, alone, other = (found.facts["heldout"] for found in made if found)
    assert first == alone != other


def test_training_learns(folder: Path, tmp_path: Path) -> None:
    plain = {"loss": {"soft": 0.0, "cosine": 0.0}, "masking": {"smoothing": 0.0}}
    execute(folder, tmp_path / "run", steps=100, optimizer={"learning_rate": 5e-3}, **plain)
    lines = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if line["kind"] == "train"]
    assert lines[-1]["masked"] < lines[0]["masked"] - 0.7


def test_a_finished_run_is_left_as_it_is(folder: Path, run: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*.safetensors")}
    known = curve(run)
    execute(folder, run)
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*.safetensors")} == before
    assert curve(run) == known


def test_placement_may_change_between_starts_and_identity_may_not(folder: Path, run: Path) -> None:
    execute(folder, run, placement={**RECIPE["placement"], "zero_stage": 2})
    with pytest.raises(RunError, match=r"recipe.loss.temperature: 2.0 there, 3.0"):
        execute(folder, run, loss={"temperature": 3.0})


def test_a_folder_of_something_else_is_not_touched(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("ten years of work")
    with pytest.raises(RunError, match="not a run"):
        execute(folder, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_old_checkpoints_are_dropped(folder: Path, tmp_path: Path) -> None:
    execute(folder, tmp_path / "run", placement={**RECIPE["placement"], "save_every": 1, "keep_checkpoints": 2})
    assert [checkpoint.step for checkpoint in Run(tmp_path / "run").checkpoints()] == [5, 6]


def test_export_refuses_a_damaged_checkpoint_by_name(folder: Path, tmp_path: Path) -> None:
    execute(folder, tmp_path / "run")
    weights = tmp_path / "run" / "checkpoints" / "step_00000006" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8] + b"\0" * 8)
    with pytest.raises(CheckpointError, match=r"weights.safetensors was .* delete .*step_00000006"):
        stage.execute(export.STAGE, export.Export(), {"run": tmp_path / "run"}, tmp_path / "student")


def test_an_exported_student_loads_with_transformers_alone(folder: Path, run: Path, tmp_path: Path) -> None:
    made = stage.execute(export.STAGE, export.Export(), {"run": run}, tmp_path / "student")
    assert made is not None
    model = AutoModelForMaskedLM.from_pretrained(made.path)
    tokenizer = AutoTokenizer.from_pretrained(made.path)
    assert type(model).__name__ == "DistilBertForMaskedLM"
    assert model.config.dropout == 0.1
    weights = Run(run).checkpoints()[-1].load().weights
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, weights[f"model.{name}"])
    assert len(tokenizer) == model.config.vocab_size
    assert made.facts["steps"] == 6
    assert made.facts["lineage"]["teacher"] == artifact.read(folder / "teacher").identity
    card = (made.path / "README.md").read_text()
    assert f"{made.facts['validation']['accuracy']:.4f}" in card
    data = ModelCard(card).data
    assert hub_rules.problems(data.to_dict()) == []
    assert data.model_name == "student"
    assert "(https://arxiv.org/abs/1910.01108)" in card
    assert "0.002, linear warm-up over 5% of the steps" in card
    assert re.fullmatch(r"(\d\.\d{3}  .+\n){5}", snippet_output(card, tmp_path))
    for difference in made.facts["differences"]:
        assert f"| {difference['what']} | {difference['paper']} | {difference['here']} |" in card


def test_a_student_of_an_earlier_step(run: Path, tmp_path: Path) -> None:
    made = stage.execute(export.STAGE, export.Export(step=3), {"run": run}, tmp_path / "early")
    assert made is not None
    assert made.facts["steps"] == 3
    with pytest.raises(RunError, match="has no checkpoint of step 4: it has 3, 6"):
        stage.execute(export.STAGE, export.Export(step=4), {"run": run}, tmp_path / "none")


def test_exporting_a_folder_that_is_not_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"is not a run: it has no recipe.json"):
        stage.execute(export.STAGE, export.Export(), {"run": tmp_path}, tmp_path / "student")


REFUSALS = {
    "misspelled key": (["--set", "loss.temprature=3"], "unknown key loss.temprature; did you mean loss.temperature?"),
    "layers": (["--set", "student.layers=[0,4]"], "student.layers [0, 4] does not fit a teacher of 4 layers"),
    "missing": (["--tokens", "{folder}/nowhere"], "nowhere does not exist: expected a tokens artifact there"),
    "kind": (["--teacher", "{folder}/tokens"], "tokens is a tokens artifact, expected a teacher artifact"),
    "workers": (["--set", "rows_per_step=0"], "rows_per_step: input should be greater than 0"),
    "length": (["--set", "epochs=1"], "write steps = N or epochs = N, exactly one of them"),
    # Its pins exclude our lock file's, so it is never installed beside these tests.
    "tracker": (
        ["--set", 'placement.follow=["trackio"]'],
        "trackio is not installed: pip install 'stillhouse[trackio]'",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_bad_input_is_one_line_and_exit_code_1(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], case: str
) -> None:
    arguments, line = REFUSALS[case]
    check_refused(capfd, folder, arguments, line, tmp_path / "run")


def test_a_fresh_process_prints_the_same_line(folder: Path, tmp_path: Path) -> None:
    arguments, line = REFUSALS["layers"]
    done = subprocess.run(
        [sys.executable, "-m", "distill.train", *arguments_of(folder, arguments), "--out", str(tmp_path / "run")],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(f"error: .*{re.escape(line)}.*\n", done.stderr)
    assert not (tmp_path / "run").exists()


def test_tokens_of_another_vocabulary_are_refused(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    other = tiny.roberta_teacher(tmp_path / "roberta")
    tokenizer = load_tokenizer(other)
    with artifact.create(tmp_path / "teacher", kind="teacher", inputs={}, recipe={}) as draft:
        shutil.copytree(other, draft.path, dirs_exist_ok=True)
        draft.facts["vocabulary"] = vocabulary_digest(tokenizer)
    line = "have different vocabularies: make the tokens with --tokenizer"
    check_refused(capfd, folder, ["--teacher", str(tmp_path / "teacher")], line, tmp_path / "run")


def test_truncated_rows_are_refused_by_name(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(folder / "tokens", tmp_path / "tokens")
    rows = tmp_path / "tokens" / "train-00000.arrow"
    rows.write_bytes(rows.read_bytes()[:-100])
    check_refused(capfd, folder, ["--tokens", str(tmp_path / "tokens")], "train-00000.arrow has", tmp_path / "run")


def test_an_out_that_cannot_be_written_is_refused(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    check_refused(capfd, folder, [], "Not a directory", tmp_path / "file" / "run")
    assert (tmp_path / "file").read_text() == "in the way"


def check_refused(capfd: pytest.CaptureFixture[str], folder: Path, arguments: list[str], line: str, out: Path) -> None:
    """Run the command in this process: a new process takes seconds for its imports."""
    capfd.readouterr()
    with pytest.raises(SystemExit) as ended:
        cli.main("distill.train", [*arguments_of(folder, arguments), "--out", str(out)])
    printed = capfd.readouterr()
    assert (ended.value.code, printed.out) == (1, "")
    assert re.fullmatch(f"error: .*{re.escape(line)}.*\n", printed.err)
    assert not out.exists()


def arguments_of(folder: Path, changed: list[str]) -> list[str]:
    """A small recipe and its inputs, and the ``changed`` arguments after or instead of them."""
    recipe = folder / "refused.toml"
    recipe.write_text("steps = 2\nrows_per_step = 8\n")
    inputs = {"--tokens": folder / "tokens", "--teacher": folder / "teacher"}
    changed = [part.format(folder=folder) for part in changed]
    kept = [part for flag, path in inputs.items() if flag not in changed for part in (flag, str(path))]
    return [str(recipe), *kept, *changed]


def test_a_diverging_loss_stops_the_run(folder: Path, tmp_path: Path) -> None:
    done = train(folder, tmp_path / "run", 1, "optimizer.learning_rate=1e38", "optimizer.clip=1e38")
    assert done.returncode == 1
    line = done.stderr.splitlines()[-1]
    found = re.search(r"of step (\d+) is not finite", line)
    assert found, line
    last = int(found[1]) - 1
    assert [checkpoint.step for checkpoint in Run(tmp_path / "run").checkpoints()] == ([last] if last else [])


def test_prometheus_sees_what_the_metrics_file_says(folder: Path, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    # A unique name: other runs of this process count in the same registry.
    execute(folder, tmp_path / "watched", placement={**RECIPE["placement"], "metrics_port": port})
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        shown = dict(line.rsplit(" ", 1) for line in answer.read().decode().splitlines() if not line.startswith("#"))
    steps = [line for line in read_metrics(tmp_path / "watched" / "metrics.jsonl") if line["kind"] == "train"]
    of_run = {
        re.sub(r',run="watched"|run="watched",|\{run="watched"\}', "", name): float(value)
        for name, value in shown.items()
    }
    assert of_run["stillhouse_step"] == of_run["stillhouse_steps"] == 6
    assert of_run['stillhouse_loss_nats{term="soft"}'] == pytest.approx(steps[-1]["soft"])
    assert of_run["stillhouse_gradient_norm"] == pytest.approx(
        max(line["gradient_norm"] for line in steps[-RECIPE["placement"].get("log_every", 10) :])
    )
    assert of_run["stillhouse_tokens_total"] == steps[-1]["tokens"]
    assert of_run["stillhouse_rows_total"] == 6 * RECIPE["rows_per_step"]
    assert of_run["stillhouse_remaining_seconds"] == 0
    assert of_run["stillhouse_node_workers"] == of_run["stillhouse_workers"] == 1
    assert of_run["stillhouse_last_checkpoint_timestamp_seconds"] >= of_run["stillhouse_last_step_timestamp_seconds"]
    assert of_run["stillhouse_run_start_timestamp_seconds"] > 1e9
    (newest,) = Run(tmp_path / "watched").checkpoints()[-1:]
    assert of_run["stillhouse_checkpoint_bytes"] == sum(file.stat().st_size for file in newest.path.iterdir())
    assert of_run['stillhouse_restarts_total{cause="death"}'] == 0
    assert "stillhouse_loss_scale" not in of_run, "only fp16 has a loss scale"
    assert any(name.startswith("stillhouse_run_info{") and 'precision="fp32"' in name for name in of_run)


def test_the_card_of_an_unvalidated_checkpoint_says_so(folder: Path, tmp_path: Path) -> None:
    placement = {**RECIPE["placement"], "save_every": 2, "validate_every": 3}
    execute(folder, tmp_path / "run", placement=placement)
    made = stage.execute(export.STAGE, export.Export(step=4), {"run": tmp_path / "run"}, tmp_path / "student")
    assert made is not None
    assert made.facts["validation"]["masked"] is None
    assert (
        "| accuracy on hidden words | not measured | not measured | not measured |"
        in (made.path / "README.md").read_text()
    )


def test_time_is_counted_once_however_logs_and_validations_fall(folder: Path, tmp_path: Path) -> None:
    placement = {**RECIPE["placement"], "log_every": 4, "validate_every": 3, "save_every": 5}
    execute(folder, tmp_path / "run", placement=placement)
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [(line["kind"], line["step"]) for line in lines] == [
        *(("train", step) for step in (1, 2, 3)),
        ("validation", 3),
        *(("train", step) for step in (4, 5, 6)),
        ("validation", 6),
    ]
    seconds = sum(line["step_seconds"] for line in lines if line["kind"] == "train")
    last = Run(tmp_path / "run").newest()
    assert last is not None
    assert last.facts["device_seconds"] == pytest.approx(seconds)


def test_two_processes_do_not_train_in_one_folder(folder: Path, tmp_path: Path) -> None:
    execute(folder, tmp_path / "run", steps=2)
    with Run(tmp_path / "run").held():
        done = train(folder, tmp_path / "run", 1, "steps=2")
    assert done.returncode == 1
    assert "another process is training" in done.stderr


def test_a_cut_recipe_of_a_run_is_named(folder: Path, tmp_path: Path) -> None:
    execute(folder, tmp_path / "run", steps=2)
    (tmp_path / "run" / "recipe.json").write_text('{"recipe": {')
    with pytest.raises(RunError, match=r"recipe.json cannot be read") as refused:
        execute(folder, tmp_path / "run", steps=2)
    assert "delete" not in str(refused.value)  # the checkpoints are there


def test_a_roberta_teacher_gives_a_roberta_student(tmp_path: Path) -> None:
    teacher, _ = masked_lm.load(tiny.roberta_teacher(tmp_path / "roberta", layers=4))
    made = student.make(teacher, Student(), seed=1)
    assert type(made).__name__ == "RobertaForMaskedLM"
    assert made.config.num_hidden_layers == 2
    assert json.loads(made.config.to_json_string())["type_vocab_size"] == teacher.config.type_vocab_size
