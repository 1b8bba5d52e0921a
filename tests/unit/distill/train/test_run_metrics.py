"""Prometheus metrics of a run: parts of a step, utilization, and a port in use."""

import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import tokens_artifact
import torch
from prometheus_client import REGISTRY

from cluster.telemetry.loss_terms import LOSS_TERMS
from cluster.tokens.rows import open_tokens
from distill.config import Distillation
from distill.cost_model import costs, hardware
from distill.data.schedule import Schedule
from distill.engine import step_timer
from distill.engine.process_group import Workers
from distill.engine.step_timer import PARTS, StepTimer
from distill.modeling.model_shape import ModelShape
from distill.train.run_metrics import RunMetrics

STUDENT = ModelShape("student", "distilbert", 2, 64, 128, 4, 1000)
CPU = torch.device("cpu")


def value(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(name, labels)


class Clock:
    """Replaces the module ``time``; tests move its clock."""

    def __init__(self) -> None:
        self._now = 100.0

    def perf_counter(self) -> float:
        return self._now

    def pass_time(self, seconds: float) -> None:
        self._now += seconds


def test_a_stopwatch_attributes_time_to_parts_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(step_timer, "time", clock)
    watch = StepTimer(CPU)
    for _ in range(2):
        watch.begin("data")
        clock.pass_time(2)
        watch.begin("backward")
        with watch.within("communication"):
            clock.pass_time(4)
        clock.pass_time(1)
        watch.begin("")
        clock.pass_time(5)  # a validation
        with watch.within("communication"):
            clock.pass_time(5)  # not part of a step
    seconds = watch.read()
    assert tuple(seconds) == PARTS
    wanted = {"data": 4, "communication": 8, "backward": 2}
    assert seconds == pytest.approx({part: wanted.get(part, 0) for part in PARTS})
    assert not any(watch.read().values()), "values are read once"


def test_a_stopwatch_costs_next_to_nothing() -> None:
    """Five marks per micro-batch, which takes milliseconds at least."""
    watch = StepTimer(CPU)
    started = time.process_time()
    for _ in range(10_000):
        watch.begin("data")
    watch.read()
    assert (time.process_time() - started) / 10_000 < 20e-6


def test_the_peak_is_that_of_the_card_the_driver_names() -> None:
    v100 = hardware.peak_flops("Tesla V100-SXM2-16GB", 16_935_682_048, "fp16")
    assert v100 == 125e12
    assert hardware.peak_flops("Tesla V100-SXM2-32GB", 34_079_637_504, "fp32") == 15.7e12
    assert hardware.peak_flops("NVIDIA A100-SXM4-80GB", 84_987_740_160, "bf16") == 312e12
    assert hardware.peak_flops("NVIDIA H100 80GB HBM3", 84_929_347_584, "bf16") == 989e12
    assert hardware.peak_flops("Tesla V100-SXM2-16GB", 16_935_682_048, "bf16") is None, "it has none"
    assert hardware.peak_flops("Tesla T4", 15_843_721_216, "fp16") == 65e12
    for unknown in ("NVIDIA H100 PCIe", "Tesla P40", "NVIDIA A1000", "cpu"):
        assert hardware.peak_flops(unknown, 16_935_682_048, "fp16") is None, unknown


class Card(Workers):
    """Two GPUs that this machine does not have."""

    device_name = "Tesla V100-SXM2-16GB"  # type: ignore[assignment]
    memory = 16_935_682_048  # type: ignore[assignment]


@pytest.fixture(scope="module")
def schedule(tmp_path_factory: pytest.TempPathFactory) -> Schedule:
    folder = tmp_path_factory.mktemp("live")
    tokens_artifact.make(folder)
    return Schedule(recipe(), [open_tokens(folder / "tokens")])


def recipe(**placement: Any) -> Distillation:
    return Distillation.of(
        {"steps": 100, "rows_per_step": 8, "precision": "fp16", "placement": {"rows_per_device": 2, **placement}}
    )


def line(step: int, schedule: Schedule, **changes: Any) -> Mapping[str, Any]:
    tokens = schedule.first.tokens_per_step
    losses = {"total": 8.0, **dict.fromkeys(LOSS_TERMS, 1.0)}
    pace = {"tokens": step * tokens, "tokens_per_second": tokens / 0.5, "step_seconds": 0.5}
    return {"step": step, "learning_rate": 1e-4, "gradient_norm": 1.0, "loss_scale": 64.0, **losses, **pace, **changes}


def test_what_was_logged_is_shown(schedule: Schedule) -> None:
    live = RunMetrics("shown", recipe(), schedule, (None, STUDENT), Card(0, 0, 2, CPU))
    live.begin(10)
    live.show_steps([line(11, schedule, gradient_norm=70.0), line(12, schedule, gradient_norm=float("inf"))])
    assert value("stillhouse_step", run="shown") == 12
    assert value("stillhouse_gradient_norm", run="shown") == 70, "the largest finite value"
    assert value("stillhouse_loss_scale", run="shown") == 64
    assert value("stillhouse_rows_total", run="shown") == 16
    assert value("stillhouse_tokens_total", run="shown") == 2 * schedule.first.tokens_per_step
    assert value("stillhouse_remaining_seconds", run="shown") == pytest.approx(88 * 0.5)
    needed = costs.step_flops_per_token(recipe(), None, STUDENT, schedule.first.seq_len)
    share = needed * schedule.first.tokens_per_step / 0.5 / (2 * 125e12)
    assert value("stillhouse_model_flops_utilization_ratio", run="shown") == pytest.approx(share)
    live.show_parts([1.0, 2, 3, 4, 5, 6, 3.0, 2, 3, 4, 5, 6])
    assert value("stillhouse_step_part_seconds", run="shown", part="data", worker="mean") == 2
    assert value("stillhouse_step_part_seconds", run="shown", part="data", worker="slowest") == 3


def test_a_run_continues_when_its_port_is_in_use(schedule: Schedule, caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = int(taken.getsockname()[1])
        live = RunMetrics("taken", recipe(metrics_port=port), schedule, (None, STUDENT), Workers(0, 0, 1, CPU))
        with caplog.at_level("INFO", "stillhouse"):
            live.begin(0)
            live.serve()
        assert [record.message for record in caplog.records] == [
            f"warning: placement.metrics_port {port}: Address already in use: no metrics until it is free"
        ]
    live.serve()
    with socket.create_connection(("127.0.0.1", port), timeout=5):
        pass


def test_every_node_has_an_endpoint_and_only_the_first_worker_speaks_for_the_run(
    schedule: Schedule, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    RunMetrics("second node", recipe(), schedule, (None, STUDENT), Workers(4, 0, 8, CPU)).begin(0)
    assert value("stillhouse_node_workers", run="second node") == 4
    assert value("stillhouse_workers", run="second node") is None
    RunMetrics("other worker", recipe(), schedule, (None, STUDENT), Workers(5, 1, 8, CPU)).begin(0)
    assert value("stillhouse_node_workers", run="other worker") is None


def test_a_loss_that_is_not_finite_is_counted_once_however_many_workers_find_it(schedule: Schedule) -> None:
    for rank in range(4):
        RunMetrics("refused", recipe(), schedule, (None, STUDENT), Workers(rank, rank % 2, 4, CPU)).count_nonfinite()
    assert value("stillhouse_nonfinite_total", run="refused") == 1


def test_a_run_on_unknown_devices_has_no_utilization(schedule: Schedule, tmp_path: Path) -> None:
    live = RunMetrics("unknown", recipe(), schedule, (None, STUDENT), Workers(0, 0, 1, CPU))
    live.begin(0)
    live.show_steps([line(1, schedule)])
    assert value("stillhouse_step", run="unknown") == 1
    assert value("stillhouse_model_flops_utilization_ratio", run="unknown") is None
