"""Forecasts of whole runs: scaling, refusals, warnings and disk space."""

from typing import Any

import pytest
from planned_runs import HALF, make_run, make_training

from distill.cost_model import hardware
from distill.cost_model.forecast import forecast, runs_on, scaled


@pytest.mark.parametrize("workers", [8, 64])
def test_more_workers_follow_the_formula(workers: int) -> None:
    planned, cluster = make_run(), hardware.cluster("8xV100-16GB")
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


def test_the_refusal_of_a_run_that_does_not_fit_says_what_to_write() -> None:
    written = make_training(placement={"rows_per_device": 512})
    found = forecast(make_run(written), hardware.cluster("8xV100-16GB"))
    assert not found.written.fits
    assert found.chosen == found.best
    assert found.best.fits
    (line,) = found.refusals
    assert f"write train.placement.rows_per_device = {found.best.layout.micro_rows}" in line


def test_rows_that_are_found_by_measuring_are_planned_as_the_best() -> None:
    automatic = make_training(placement={"rows_per_device": "auto"})
    found = forecast(make_run(automatic), hardware.cluster("8xV100-16GB"))
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
def test_forecasts_list_reasons_for_a_refusal(values: dict[str, Any], machines: str, says: str) -> None:
    found = forecast(make_run(make_training(**values)), hardware.cluster(machines))
    assert any(says in line for line in found.refusals), found.refusals
    assert found.hours > 0


def test_rows_longer_than_the_model_reads_are_refused() -> None:
    found = forecast(make_run(seq_len=514), hardware.cluster("8xV100-16GB"))
    assert any("reads 512" in line for line in found.refusals)


def test_idle_devices_and_slow_networks_are_warned_of() -> None:
    found = forecast(make_run(make_training(placement={"workers": 2})), hardware.cluster("8xV100-16GB"))
    assert any("leaves 6 of 8 idle" in line for line in found.warnings)
    slow = forecast(make_run(make_training(rows_per_step=64)), hardware.cluster("8x8xV100-16GB", "10GbE"))
    assert any(line.startswith("network-bound:") for line in slow.warnings)
    assert slow.written.network_seconds > slow.written.compute_seconds


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
    found = forecast(make_run(make_training(placement=placement)), hardware.cluster("8xV100-16GB"))
    assert found.disk["checkpoints"] == (2 + 4 + 1) * 12 * HALF.parameters
