"""Teachers too large for one device: sharded over the workers, or kept in CPU memory, with the outputs of a replica."""

from typing import Any

import pytest
import tiny
import torch
import torchrun_workers

from distill.config import Placement, Training
from distill.data.batches import Batch
from distill.engine import process_group
from distill.engine.teacher_engine import TeacherEngine
from distill.modeling import masked_lm
from distill.modeling.masked_lm import MaskedLM, Outputs

KINDS = ("sharded", "offloaded")
WORKERS = 2
# Wide enough for matrices above 100,000 numbers: DeepSpeed does not release smaller ones after gathering them.
HIDDEN = 320
TOLERANCE = {"fp32": 1e-6, "bf16": 4e-3}


def outputs_of(folder: str, precision: str, kind: str) -> tuple[TeacherEngine, Outputs]:
    """A teacher and its outputs for this worker's rows."""
    workers = process_group.join(1)
    placement = Placement(teacher=kind)
    teacher, _ = masked_lm.load(folder)
    teacher_engine = TeacherEngine(
        MaskedLM(teacher), Training(steps=1, precision=precision, placement=placement), workers
    )
    rows = torch.randint(5, 300, (4, 16), generator=torch.Generator().manual_seed(workers.rank))
    return teacher_engine, teacher_engine(Batch(rows, torch.arange(12), rows.flatten()[:12]))


def compare_with_replica(folder: str, precision: str, kind: str) -> dict[str, Any]:
    _, wanted = outputs_of(folder, precision, "replica")
    teacher_engine, found = outputs_of(folder, precision, kind)
    pairs = [(found.hidden, wanted.hidden), (found.features, wanted.features)]
    parameters = list(teacher_engine._module.parameters())
    return {
        "difference": max(float((mine - other).abs().max() / other.abs().max()) for mine, other in pairs),
        "numbers": sum(parameter.ds_numel for parameter in parameters),
        "kept": sum(parameter.ds_tensor.numel() for parameter in parameters),
        "whole": [parameter.ds_numel for parameter in parameters if parameter.numel() > 0],
        "where": sorted({str(parameter.ds_tensor.device) for parameter in parameters}),
        "kept by processor": str(getattr(teacher_engine._module._config.zero_config.offload_param, "device", None)),
    }


def compare_all_with_replicas(folder: str) -> dict[str, Any]:
    return {
        f"{kind} {precision}": compare_with_replica(folder, precision, kind)
        for kind in KINDS
        for precision in ("fp32", "bf16")
    }


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tiny.bert_teacher(tmp_path_factory.mktemp("teacher"), layers=1, hidden=HIDDEN)
    return torchrun_workers.run_on_workers(WORKERS, compare_all_with_replicas, str(folder))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_sharded_teacher_computes_the_outputs_of_a_replica(
    found: list[dict[str, Any]], kind: str, precision: str
) -> None:
    """Equal up to rounding, which depends on the addresses of the weights: up to 6e-7 in fp32, 0 in bf16."""
    for worker in found:
        assert worker[f"{kind} {precision}"]["difference"] < TOLERANCE[precision]


@pytest.mark.parametrize("kind", KINDS)
def test_every_worker_keeps_only_its_partition(found: list[dict[str, Any]], kind: str) -> None:
    for worker in found:
        case = worker[f"{kind} fp32"]
        assert case["kept"] == pytest.approx(case["numbers"] / WORKERS, rel=0.01)
        assert case["numbers"] > 1_000_000
        # Small parameters like biases stay gathered.
        assert sum(case["whole"]) < 0.05 * case["numbers"]


def test_an_offloaded_teacher_stays_in_cpu_memory(found: list[dict[str, Any]]) -> None:
    """Checked without a GPU: DeepSpeed's settings offload it, and the partitions are in CPU memory."""
    for worker in found:
        assert worker["offloaded fp32"]["kept by processor"].endswith("cpu")
        assert worker["offloaded fp32"]["where"] == ["cpu"]
        assert worker["sharded fp32"]["kept by processor"] == "None"
