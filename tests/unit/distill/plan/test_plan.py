"""Plans: formulas against published and counted numbers, the layout they choose, and what the command prints."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import tokens_artifact
import torch
from transformers import BertConfig, BertForMaskedLM, RobertaConfig, RobertaForMaskedLM

from distill.config import Distillation, Training
from distill.cost_model import costs, hardware, step_prediction
from distill.cost_model.forecast import PlannedRun, forecast, runs_on, scaled
from distill.cost_model.hardware import HardwareError
from distill.cost_model.step_prediction import Layout
from distill.modeling import fused_head, model_shape, student
from distill.modeling.model_shape import ModelShape, ShapeError
from distill.plan import cli as plan_cli

BERT = model_shape.KNOWN["bert-base-uncased"]
HALF = model_shape.student_shape(BERT, 6)
DEVICES = ("v100-16gb", "v100-32gb", "a100-40gb", "a100-80gb", "h100", "h200", "cpu")


def _training(**values: Any) -> Distillation:
    return Distillation.of({"steps": 1000, "precision": "fp16", **values})


def _planned(training: Training | None = None, seq_len: int = 512, teacher: ModelShape = BERT) -> PlannedRun:
    made = model_shape.student_shape(teacher, teacher.layers // 2)
    return PlannedRun("student", training or _training(), teacher, made, seq_len, prefix="train.")


# Counts


@pytest.mark.parametrize(
    ("seq_len", "positions", "of_teacher", "of_student", "together"),
    [
        (128, "all", 0.223, 0.406, 0.629),
        (512, "all", 0.237, 0.427, 0.664),
        (128, "masked", None, None, 0.465),
        (512, "masked", None, None, 0.501),
    ],
)
def test_operations_per_token_are_those_of_the_analysis(
    seq_len: int, positions: str, of_teacher: float | None, of_student: float | None, together: float
) -> None:
    training = _training(loss={"soft_positions": positions})
    share = costs.head_share(training, seq_len)
    if of_teacher is not None and of_student is not None:
        assert costs.teacher_flops(BERT, seq_len, share, training.loss) / 1e9 == pytest.approx(of_teacher, abs=5e-4)
        assert costs.student_flops(HALF, seq_len, share) / 1e9 == pytest.approx(of_student, abs=5e-4)
    found = costs.step_flops_per_token(training, BERT, HALF, seq_len) / 1e9
    # The analysis took exactly 15 %; a row has a whole number of labels.
    assert found == pytest.approx(together, abs=5e-4 if positions == "all" else 2e-3)


def test_a_teacher_without_a_soft_loss_needs_no_head() -> None:
    training = _training(loss={"soft": 0.0})
    operations = costs.teacher_flops(BERT, 128, costs.head_share(training, 128), training.loss)
    assert operations == costs.layers_flops(BERT, 128)


def test_memory_per_token_is_that_of_the_analysis() -> None:
    assert costs.activation_bytes_per_token(HALF, "fp16") / 2**10 == pytest.approx(153, abs=1)
    naive = _training(placement={"head": "naive"})
    assert costs.head_bytes(naive, HALF, 1, 2048, "gpu") / 2**10 == pytest.approx(715, abs=1)
    in_chunks = [costs.head_bytes(_training(), HALF, positions, 512, "gpu") for positions in (512, 8192, 65_536)]
    assert len({*in_chunks}) == 1, "a fused head takes the same for any number of tokens"


def test_the_fused_head_is_planned_with_the_memory_it_plans_with_itself() -> None:
    memory = 2**32
    chunk = fused_head.chunk_positions(BERT.vocabulary, 2, memory, "cuda")
    gradient = 2 * 4 * HALF.vocabulary * HALF.hidden
    planned = costs.head_bytes(_training(), HALF, 10**6, chunk, "gpu") - gradient
    assert 0.9 * memory / 32 < planned <= memory / 32


def test_parameters_are_those_of_the_models() -> None:
    assert BERT.parameters == 109_514_298
    assert HALF.parameters == 66_985_530
    numbers = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2}
    for kind, config in ((BertForMaskedLM, BertConfig), (RobertaForMaskedLM, RobertaConfig)):
        settings = config(**numbers, intermediate_size=40, max_position_embeddings=32, type_vocab_size=2)
        settings.type_vocab_size = 1 if kind is RobertaForMaskedLM else 2
        teacher = kind(settings)
        shape = model_shape.of_config(teacher.config.to_dict(), "teacher")
        assert shape.parameters == teacher.num_parameters()
        made = student.make(teacher, _training().student, seed=0)
        assert model_shape.student_shape(shape, 2).parameters == made.num_parameters()
        assert model_shape.of_config(made.config.to_dict(), "student").parameters == made.num_parameters()


@pytest.mark.parametrize(("stage", "times"), [(0, 2), (1, 2), (2, 2), (3, 1 + 2 * 4)])
def test_a_ring_carries_gradients_once_and_weights_as_often_as_they_are_gathered(stage: int, times: int) -> None:
    weights = 2 * HALF.parameters
    assert costs.network_bytes(HALF, "fp16", stage, 8, micros=4) == pytest.approx(7 / 8 * times * weights)
    assert costs.network_bytes(HALF, "fp16", stage, 1, micros=4) == 0


# Machines


@pytest.mark.parametrize("name", DEVICES)
def test_shipped_devices_can_be_planned_with(name: str) -> None:
    found = forecast(_planned(_training(precision="fp32", placement={"zero_stage": 1})), hardware.cluster(f"2x{name}"))
    assert found.chosen.fits
    assert 0 < found.hours < 1e6
    assert {*found.cluster.device.efficiency} == {*found.cluster.device.peak_tflops}


def test_hardware_is_counted_in_nodes_and_devices() -> None:
    assert [hardware.split(text) for text in ("V100-16GB", "8xV100-16GB", "4x8xmine.toml")] == [
        (1, 1, "V100-16GB"),
        (1, 8, "V100-16GB"),
        (4, 8, "mine.toml"),
    ]
    cluster = hardware.cluster("4x8xV100-16GB", "100GbE")
    assert (cluster.workers, cluster.name) == (32, "4x8xV100-16GB")
    assert cluster.gb_per_second == pytest.approx(0.8 * 12.5)
    assert hardware.cluster("8xV100-16GB", "100GbE").gb_per_second == cluster.device.link_gb_per_second


def test_networks_are_named_or_numbers() -> None:
    speeds = ("25GbE", "100gbe", "InfiniBand-HDR", "infiniband edr", "12.5", "12.5 GB/s")
    assert [hardware.network_gb_per_second(text) for text in speeds] == [3.125, 12.5, 25.0, 12.5, 12.5, 12.5]


@pytest.mark.parametrize(
    ("text", "network", "says"),
    [
        ("8xV100", "25GbE", "did you mean v100-16gb or v100-32gb?"),
        ("8xA10-80GB", "25GbE", "did you mean a100-80gb"),
        ("0xH100", "25GbE", "write COUNTxNAME"),
        ("8xmine.toml", "25GbE", "no such file"),
        ("8xH100", "fast", "write 25GbE"),
        ("8xH100", "0", "write 25GbE"),
    ],
)
def test_unknown_hardware_is_refused_with_what_is_known(text: str, network: str, says: str) -> None:
    with pytest.raises(HardwareError, match=says.replace("?", r"\?")):
        hardware.cluster(text, network)


def test_a_device_may_come_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    shipped = hardware._DEVICES / "h100.toml"
    path.write_text(shipped.read_text(encoding="utf-8").replace('"H100"', '"mine"'), encoding="utf-8")
    assert hardware.cluster(f"2x{path}").name == "2xmine"


# Predictions


def test_a_step_takes_its_operations_over_what_the_devices_sustain() -> None:
    cluster = hardware.cluster("8xV100-16GB")
    found = step_prediction.predict(_training(), BERT, HALF, 512, cluster)
    operations = 4096 * 512 * costs.step_flops_per_token(_training(), BERT, HALF, 512)
    assert found.compute_seconds == pytest.approx(operations / (8 * 125e12 * 0.35))
    assert found.micros == 4096 // 8 // 16
    assert found.overhead_seconds == pytest.approx(found.micros * cluster.device.overhead_seconds)
    assert found.network_seconds == pytest.approx(7 / 8 * 2 * 2 * HALF.parameters / 130e9)


@pytest.mark.parametrize("workers", [8, 64])
def test_more_workers_follow_the_formula(workers: int) -> None:
    planned, cluster = _planned(), hardware.cluster("8xV100-16GB")
    found = scaled(planned, cluster, workers)
    device = cluster.device
    link = device.link_gb_per_second if workers == 8 else 0.8 * 25 / 8
    expected = (
        found.flops / (workers * 125e12 * 0.35)
        + found.micros * device.overhead_seconds
        + found.update_seconds
        + 2 * (workers - 1) / workers * 2 * HALF.parameters / (link * 1e9)
    )
    assert found.layout.workers == workers
    assert found.step_seconds == pytest.approx(expected)


def test_zero_shards_what_its_stage_says() -> None:
    cluster = hardware.cluster("8xV100-16GB")
    memory = {
        stage: step_prediction.predict(_training(), BERT, HALF, 512, cluster, Layout(8, 16, stage)).memory
        for stage in (1, 2, 3)
    }
    assert memory[1]["optimizer state"] == 12 * HALF.parameters // 8
    assert memory[1]["weights"] == memory[2]["weights"] == 2 * HALF.parameters
    assert memory[3]["weights"] == 2 * HALF.parameters // 8


def test_a_teacher_too_large_for_a_card_is_sharded_then_offloaded() -> None:
    huge = ModelShape("huge", "bert", 48, 2560, 10240, 40, 30_522)
    enormous = ModelShape("enormous", "bert", 96, 8192, 32_768, 64, 30_522)
    few = model_shape.student_shape(BERT, 6)
    cluster = hardware.cluster("8xV100-16GB")
    placed = [
        step_prediction.best(_training(), teacher, few, 128, cluster).layout.teacher
        for teacher in (BERT, huge, enormous)
    ]
    # 48 x 2560 is 7.8 GB in half precision and fits once; eight cards hold 96 layers of 8192 in no way.
    assert placed == ["replica", "replica", "offloaded"]
    sharing = ModelShape("wide", "bert", 48, 5120, 20_480, 40, 30_522)
    assert step_prediction.best(_training(), sharing, few, 128, cluster).layout.teacher == "sharded"


def test_what_does_not_fit_says_what_to_write() -> None:
    written = _training(placement={"rows_per_device": 512})
    found = forecast(_planned(written), hardware.cluster("8xV100-16GB"))
    assert not found.written.fits
    assert found.chosen == found.best
    assert found.best.fits
    (line,) = found.refusals
    assert f"write train.placement.rows_per_device = {found.best.layout.micro_rows}" in line


def test_a_smaller_card_takes_a_smaller_micro_batch_of_the_naive_head() -> None:
    naive = _training(placement={"head": "naive"})
    best = {
        head: step_prediction.best(training, BERT, HALF, 512, hardware.cluster("8xV100-16GB")).layout.micro_rows
        for head, training in (("naive", naive), ("fused", _training()))
    }
    assert best["naive"] < best["fused"]


def test_rows_that_are_found_by_measuring_are_planned_as_the_best() -> None:
    automatic = _training(placement={"rows_per_device": "auto"})
    found = forecast(_planned(automatic), hardware.cluster("8xV100-16GB"))
    assert found.written.fits
    assert found.written.layout.micro_rows == found.best.layout.micro_rows


@pytest.mark.parametrize(
    ("values", "machines", "says"),
    [
        ({"precision": "bf16"}, "8xV100-16GB", 'write train.precision = "fp16"'),
        ({"precision": "fp16"}, "2xcpu", 'write train.precision = "bf16"'),
        ({"rows_per_step": 100}, "8xV100-16GB", "write train.rows_per_step = 96"),
        ({"placement": {"workers": 16}}, "8xV100-16GB", "asks for 16, there are 8"),
    ],
)
def test_what_a_run_will_be_refused_for(values: dict[str, Any], machines: str, says: str) -> None:
    found = forecast(_planned(_training(**values)), hardware.cluster(machines))
    assert any(says in line for line in found.refusals), found.refusals
    assert found.hours > 0


def test_rows_longer_than_the_model_reads_are_refused() -> None:
    found = forecast(_planned(seq_len=514), hardware.cluster("8xV100-16GB"))
    assert any("reads 512" in line for line in found.refusals)


def test_idle_devices_and_slow_networks_are_warned_of() -> None:
    found = forecast(_planned(_training(placement={"workers": 2})), hardware.cluster("8xV100-16GB"))
    assert any("leaves 6 of 8 idle" in line for line in found.warnings)
    slow = forecast(_planned(_training(rows_per_step=64)), hardware.cluster("8x8xV100-16GB", "10GbE"))
    assert any(line.startswith("network-bound:") for line in slow.warnings)
    assert slow.written.network_seconds > slow.written.compute_seconds


def test_network_bound_is_where_computing_takes_as_long() -> None:
    planned, cluster = _planned(), hardware.cluster("8xV100-16GB", "25GbE")
    bound = step_prediction.network_bound_above(planned.training, BERT, HALF, 512, cluster)
    assert bound is not None
    for workers, bounded in ((bound, False), (bound + 8, True)):
        step = planned.predict(cluster.of_workers(workers), Layout(workers, 1, 1))
        # Rows are rounded to the workers here; the bound divides them exactly.
        exact = step.compute_seconds * 4096 / (step.tokens / 512)
        assert (step.network_seconds > exact) is bounded
    faster = step_prediction.network_bound_above(
        planned.training, BERT, HALF, 512, hardware.cluster("8xV100-16GB", "100GbE")
    )
    assert faster is not None
    assert faster > 3 * bound


def test_kernels_run_on_their_major_version_and_ptx_on_anything_newer() -> None:
    built = ["sm_75", "sm_80", "sm_90a"]
    assert not runs_on((7, 0), built)
    assert runs_on((7, 5), built)
    assert runs_on((8, 6), built)
    assert runs_on((9, 0), built)
    assert not runs_on((9, 1), built)
    assert not runs_on((10, 0), built)
    assert runs_on((10, 0), [*built, "compute_90"])
    assert not runs_on((7, 0), [])


def test_checkpoints_on_disk_are_the_newest_the_kept_and_the_one_in_writing() -> None:
    placement = {"save_every": 100, "keep_checkpoints": 2, "keep_every": 250}
    found = forecast(_planned(_training(placement=placement)), hardware.cluster("8xV100-16GB"))
    assert found.disk["checkpoints"] == (2 + 4 + 1) * 12 * HALF.parameters


def test_shapes_come_from_folders_and_names(tmp_path: Path) -> None:
    folder = tiny.bert_teacher(tmp_path, layers=4)
    found = model_shape.find(str(folder))
    assert (found.family, found.layers) == ("bert", 4)
    assert model_shape.find("google-bert/bert-base-uncased") == BERT
    with pytest.raises(ShapeError, match="give --teacher DIR"):
        model_shape.find("someone/unheard-of")
    (tmp_path / "gpt").mkdir()
    (tmp_path / "gpt" / "config.json").write_text('{"model_type": "gpt2"}', encoding="utf-8")
    with pytest.raises(ShapeError, match="use a BERT or a RoBERTa"):
        model_shape.find(str(tmp_path / "gpt"))


# The command


def _printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    plan_cli.main(arguments)
    return capsys.readouterr().out


def test_the_shipped_recipe_is_planned_for_the_paper_s_machine() -> None:
    command = [sys.executable, "-m", "distill.plan", "distilbert", "--hardware", "8xV100-16GB"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for words in (
        "12 layers of 768, 109.5 M parameters",
        "DistilBERT 720, RoBERTa 24,576",
        "optimizer state",
        "sent by each GPU",
        "--set train.placement.rows_per_device=",
        "n = 64",
        "network-bound above",
        "kernels for sm_70" if not runs_on((7, 0), torch.cuda.get_arch_list()) else "GPU-hours",
        "a corpus of 4.0 G tokens, the paper's",
        "also: random-start",
    ):
        assert words in done.stdout, words
    assert max(map(len, done.stdout.splitlines())) <= 112


def test_a_pipeline_that_trains_its_teacher_plans_that_as_well(capsys: pytest.CaptureFixture[str]) -> None:
    (found,) = json.loads(_printed(capsys, "demo", "--hardware", "2xcpu", "--json"))
    assert [run["name"] for run in found["runs"]] == ["student", "no-teacher", "teacher"]
    assert [run["steps"] for run in found["runs"]] == [200, 200, 800]
    assert found["assumed"] == []
    student, alone, _ = found["runs"]
    assert alone["planned"]["memory_bytes"]["teacher"] == 0 < student["planned"]["memory_bytes"]["teacher"]
    assert alone["hours"] < student["hours"]


def test_a_plan_of_given_tokens_and_teacher_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokens = tokens_artifact.make(tmp_path)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("epochs = 2\nrows_per_step = 16\n", encoding="utf-8")
    given = ["--tokens", str(tokens), "--teacher", str(tmp_path / "teacher"), "--set", "placement.workers=2"]
    printed = _printed(capsys, str(recipe), "--hardware", "2xcpu", "--hardware", "2x8xA100-40GB", *given, "--json")
    first, second = json.loads(printed)
    rows = json.loads((tokens / "manifest.json").read_text(encoding="utf-8"))["facts"]["train_rows"]
    assert first["runs"][0]["steps"] == round(2 * rows / 16)
    assert first["assumed"] == []
    assert (first["hardware"], second["hardware"]) == ("2xcpu", "2x8xA100-40GB")
    assert second["network"] == "25GbE"
    assert any("leaves 14 of 16 idle" in line for line in second["runs"][0]["warnings"])
    planned = first["runs"][0]["planned"]
    assert planned["fits"]
    assert sum(planned["memory_bytes"].values()) < planned["device_memory_bytes"]


def test_machines_side_by_side_are_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("steps = 100\nprecision = 'fp16'\n", encoding="utf-8")
    machines = ("8xV100-16GB", "8xA100-80GB", "8xH100")
    printed = _printed(capsys, str(recipe), *(part for name in machines for part in ("--hardware", name)))
    heads = next(line for line in printed.splitlines() if "8xH100" in line)
    assert heads.split() == [*machines]
    line = next(line for line in printed.splitlines() if line.strip().startswith("tokens/s"))
    slow, medium, fast = (int(value.replace(",", "")) for value in line.split()[1:])
    assert slow < medium < fast
    assert "a teacher of the shape of bert-base-uncased" in printed


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["default", "--hardware", "8xV100-16GB"], "write steps = N or epochs = N"),
        (["default", "--hardware", "8xB100", "--set", "steps=5"], "no description of B100: did you mean"),
        (["default", "--hardware", "cpu", "--set", "steps=5", "--teacher", "nobody/knows"], "is not known here"),
        (["default", "--hardware", "cpu", "--set", "step=5"], "did you mean steps?"),
        (["nowhere.toml", "--hardware", "cpu"], "neither a file nor one that ships"),
    ],
)
def test_errors_are_one_line(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        plan_cli.main(arguments)
    assert stopped.value.code == 1
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert says in printed


def test_this_machine_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokens_artifact.make(tmp_path)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("steps = 5\nrows_per_step = 16\nplacement = { device = 'cpu' }\n", encoding="utf-8")
    given = ["--tokens", str(tmp_path / "tokens"), "--teacher", str(tmp_path / "teacher")]
    (found,) = json.loads(_printed(capsys, str(recipe), "--hardware", "here", *given, "--json"))
    assert found["hardware"] == "1xhere"
    step = found["runs"][0]["planned"]
    assert 0 < step["compute_seconds"] <= step["step_seconds"] < 60
    assert step["device_memory_bytes"] > 1e9
