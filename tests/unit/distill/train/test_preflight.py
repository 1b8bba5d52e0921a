"""Checks of a worker before training, on described machines and in a started training."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tokens_artifact
import torch

from cluster.artifacts.commit import ArtifactError
from cluster.models.precision import PrecisionError
from distill.config import Distillation
from distill.cost_model import costs
from distill.cost_model.hardware import Cluster
from distill.engine.process_group import Workers
from distill.modeling import model_shape
from distill.train import loop, preflight
from distill.train.preflight import Machine, PreflightError

BERT = model_shape.KNOWN["bert-base-uncased"]
HALF = model_shape.student_shape(BERT, 6)
V100 = Cluster(preflight.device_of("gpu", "Tesla V100-SXM2-16GB", 16 * 2**30, 2**30, (7, 0)), 8)
CPU = Cluster(preflight.device_of("cpu", "this machine's CPU", 16 * 2**30), 8)
MACHINE = Machine(CPU.device, 10**12, 0)


def _training(**values: Any) -> Distillation:
    return Distillation.of({"steps": 1000, "rows_per_step": 1024, "precision": "bf16", **values})


def test_a_run_that_fits_has_no_warnings() -> None:
    assert preflight.check(_training(), BERT, HALF, CPU, 512) == []
    assert preflight.check_disk(_training(), HALF, MACHINE, 1000) == []


def test_a_gpu_this_torch_has_no_kernels_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_80"])
    with pytest.raises(PreflightError, match=r"V100.*no kernels for sm_70: .*cu126"):
        preflight.check(_training(precision="fp16"), BERT, HALF, V100, 512)


def test_a_recipe_for_the_cpu_does_not_take_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_70"])
    with pytest.raises(PreflightError, match=r"CUDA_VISIBLE_DEVICES= .*placement.device = \"auto\""):
        preflight.check(_training(precision="fp16", placement={"device": "cpu"}), BERT, HALF, V100, 512)


def test_bf16_on_a_v100_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_70"])
    assert preflight.check(_training(precision="fp16"), BERT, HALF, V100, 512) == []
    with pytest.raises(PrecisionError, match='write precision = "fp16"'):
        preflight.check(_training(), BERT, HALF, V100, 512)


def test_micro_batches_that_may_not_fit_are_warned_of_with_smaller_ones() -> None:
    wide = _training(placement={"rows_per_device": 128, "head": "naive"})
    (warning,) = preflight.check(wide, BERT, HALF, CPU, 512)
    assert "write placement.rows_per_device = 64" in warning
    automatic = _training(placement={"rows_per_device": "auto", "head": "naive"})
    assert preflight.check(automatic, BERT, HALF, CPU, 512) == []


@pytest.mark.parametrize(
    ("placement", "says"),
    [({}, 'placement.teacher = "sharded"'), ({"teacher": "offloaded"}, "placement.zero_stage = 3")],
)
def test_a_run_that_fits_with_no_micro_batch_is_refused(placement: dict[str, Any], says: str) -> None:
    small = Cluster(preflight.device_of("cpu", "this machine's CPU", 2**28), 8)
    with pytest.raises(PreflightError, match=f"one row at a time still takes .*{says}"):
        preflight.check(_training(placement=placement), BERT, HALF, small, 128)


def test_a_disk_without_room_for_a_checkpoint_is_refused_and_a_tight_one_warned_of() -> None:
    each = costs.checkpoint_bytes(HALF)
    with pytest.raises(PreflightError, match=r"a checkpoint takes 804 MB, and 402 MB are free"):
        preflight.check_disk(_training(), HALF, replace(MACHINE, free_disk_bytes=each // 2), 1000)
    tight = replace(MACHINE, free_disk_bytes=each * 2)
    (warning,) = preflight.check_disk(_training(), HALF, tight, 1000)
    assert "3 more checkpoints take 2.41 GB, and 1.61 GB are free" in warning
    assert preflight.check_disk(_training(), HALF, replace(tight, checkpoints=2), 1000) == []


def test_the_checks_read_this_machine(tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints" / "step_00000005").mkdir(parents=True)
    alone = Workers(0, 0, 1, torch.device("cpu"))
    found = Machine.of(alone, tmp_path / "run")
    assert found.device.kind == "cpu"
    assert found.device.memory_bytes > 0
    assert found.free_disk_bytes > 0
    assert found.checkpoints == 1
    assert Machine.of(alone, tmp_path / "not" / "yet").checkpoints == 0


def test_the_checks_come_before_the_folder_is_claimed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = tokens_artifact.make(tmp_path)
    inputs = {"tokens": tokens, "teacher": tmp_path / "teacher"}
    recipe = Distillation.of({"steps": 2, "rows_per_step": 8, "placement": {"device": "cpu"}})
    full = type(shutil.disk_usage(tmp_path))(10**9, 10**9, 0)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    with pytest.raises(PreflightError, match=r"0 bytes are free at --out"):
        loop.run(recipe, inputs, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_placement_verify_hashes_every_row_before_training(tmp_path: Path) -> None:
    tokens = tokens_artifact.make(tmp_path, documents=400)
    inputs = {"tokens": tokens, "teacher": tmp_path / "teacher"}
    rows = tokens / "train-00000.arrow"
    content = bytearray(rows.read_bytes())
    content[len(content) // 2] ^= 1
    rows.write_bytes(content)
    recipe = {"steps": 1, "rows_per_step": 8, "placement": {"device": "cpu", "verify": "hashes"}}
    with pytest.raises(ArtifactError, match=f"{rows} was changed after it was made"):
        loop.run(Distillation.of(recipe), inputs, tmp_path / "run")
    assert not (tmp_path / "run").exists()
