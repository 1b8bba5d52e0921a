"""Descriptions of devices, nodes and networks."""

from pathlib import Path

import pytest
from planned_runs import make_run, make_training

from distill.cost_model import hardware
from distill.cost_model.forecast import forecast
from distill.cost_model.hardware import HardwareError

DEVICES = ("v100-16gb", "v100-32gb", "a100-40gb", "a100-80gb", "h100", "h200", "cpu")


@pytest.mark.parametrize("name", DEVICES)
def test_shipped_devices_can_be_planned_with(name: str) -> None:
    found = forecast(
        make_run(make_training(precision="fp32", placement={"zero_stage": 1})), hardware.cluster(f"2x{name}")
    )
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
