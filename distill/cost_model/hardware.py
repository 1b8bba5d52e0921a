"""Descriptions of devices and clusters, for plans.

A TOML file describes a device: one that ships (``distill/devices``) or the user's own. ``8xV100-16GB`` is a cluster of
eight, ``4x8xV100-16GB`` one of four nodes of eight.
"""

import difflib
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveFloat

from cluster.artifacts import recipe
from cluster.artifacts.recipe import Recipe
from cluster.models.precision import Precision

HERE = "here"
NETWORK_SHARE = 0.8
"""Share of a network's line rate that a reduction reaches; assumed, usual for NCCL over Ethernet."""
ASSUMED_NETWORK = "25GbE"

_DEVICES = Path(__file__).resolve().parents[1] / "devices"
_COUNTED = re.compile(r"(?:(\d+)x)?(?:(\d+)x)?([^\d].*|\d[^x]*)")
_ETHERNET = re.compile(r"(\d+)gbe", re.IGNORECASE)
_INFINIBAND = {"fdr": 56, "edr": 100, "hdr": 200, "ndr": 400, "xdr": 800}
"""Gigabits per second of a port with four lanes."""


class HardwareError(ValueError):
    """Unknown hardware, or an invalid description of it."""


class Device(Recipe):
    """One GPU, or one CPU core."""

    name: str
    """Name on the command line and in plans."""
    kind: Literal["gpu", "cpu"]
    """A GPU, or one CPU core."""
    memory_gib: PositiveFloat
    """GiB of memory: of a GPU as the driver reports them, of a CPU those for one worker."""
    capability: tuple[int, int] | None = None
    """CUDA compute capability."""
    peak_tflops: dict[Precision, PositiveFloat]
    """TFLOP/s of matrix products by precision; a missing precision is not supported."""
    efficiency: dict[Precision, float]
    """Share of the peak that a training step reaches in large micro-batches."""
    efficiency_source: str
    """Where the efficiency comes from; plans print it."""
    memory_gb_per_second: PositiveFloat
    """Memory bandwidth in GB/s."""
    link_gb_per_second: PositiveFloat
    """Bandwidth in GB/s of a ring over the devices of a node."""
    host_gb_per_second: PositiveFloat = 12.0
    """Bandwidth in GB/s from CPU memory to the device; PCIe 3 by default."""
    overhead_seconds: float = Field(ge=0)
    """Seconds per micro-batch that do not depend on its size: kernel launches and input."""
    reserved_gib: float = Field(ge=0)
    """GiB in use before training: driver context, libraries, workspaces."""

    @property
    def memory_bytes(self) -> int:
        return int(self.memory_gib * 2**30)


@dataclass(frozen=True)
class Cluster:
    """Equal nodes of equal devices, with one worker per device."""

    device: Device
    devices_per_node: int = 1
    nodes: int = 1
    network: str = ASSUMED_NETWORK
    """Between nodes, as :func:`network_gb_per_second` reads it."""

    @property
    def workers(self) -> int:
        return self.nodes * self.devices_per_node

    @property
    def name(self) -> str:
        if self.device.name == HERE:
            return "this machine" if self.workers == 1 else f"{self.workers} workers of this machine"
        counts = [self.nodes, self.devices_per_node] if self.nodes > 1 else [self.devices_per_node]
        return "x".join([*map(str, counts), self.device.name])

    @property
    def unit(self) -> str:
        return "GPU" if self.device.kind == "gpu" else "CPU worker"

    @property
    def gb_per_second(self) -> float:
        """Bandwidth of a ring over all workers: that of its slowest link."""
        if self.nodes == 1:
            return self.device.link_gb_per_second
        return min(self.device.link_gb_per_second, NETWORK_SHARE * network_gb_per_second(self.network))

    def of_workers(self, workers: int) -> "Cluster":
        """A cluster of ``workers`` such devices in nodes like these; a single node has room for at least eight."""
        per_node = self.devices_per_node if self.nodes > 1 else max(self.devices_per_node, 8)
        if workers <= per_node:
            return replace(self, nodes=1, devices_per_node=workers)
        return replace(self, nodes=-(-workers // per_node), devices_per_node=per_node)


def split(text: str) -> tuple[int, int, str]:
    """Parse ``[[NODESx]COUNTx]NAME`` into nodes, devices per node and the device's name.

    Raises:
        HardwareError: not of this form.
    """
    found = _COUNTED.fullmatch(text.strip())
    if found is None or any(count is not None and int(count) == 0 for count in found.groups()[:2]):
        raise HardwareError(f"--hardware {text}: write COUNTxNAME or NODESxCOUNTxNAME, for example 8xV100-16GB")
    first, second, name = found.groups()
    nodes, count = (int(first), int(second)) if second else (1, int(first or 1))
    return nodes, count, name


def cluster(text: str, network: str = ASSUMED_NETWORK) -> Cluster:
    """The cluster that a text such as ``4x8xV100-16GB`` names.

    Raises:
        HardwareError: an unknown device, or not of this form.
        RecipeError: the device file is invalid.
    """
    nodes, count, name = split(text)
    network_gb_per_second(network)
    return Cluster(device(name), count, nodes, network)


def device(name: str) -> Device:
    """A device that ships, by its name in any case, or from a TOML file.

    Raises:
        HardwareError: neither; lists similar names.
    """
    if Path(name).is_file():
        return recipe.load(Device, name)
    if name.endswith(".toml"):
        raise HardwareError(f"--hardware {name}: there is no such file")
    shipped = {path.stem: path for path in sorted(_DEVICES.glob("*.toml"))}
    if name.lower() in shipped:
        return recipe.load(Device, str(shipped[name.lower()]))
    near = [stem for stem in shipped if stem.startswith(name.lower())]
    near = near or difflib.get_close_matches(name.lower(), [*shipped, HERE], n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join([*shipped, HERE])}"
    raise HardwareError(f"no description of {name}: {hint} (or give a TOML file like those in distill/devices)")


def peak_flops(device_name: str, memory_bytes: int, precision: Precision) -> float | None:
    """Peak in operations per second of the GPU with this driver name, or None without a matching description.

    PCIe cards have lower peaks than the descriptions, and the name of a CPU says nothing.
    """
    shipped = [recipe.load(Device, str(path)) for path in sorted(_DEVICES.glob("*.toml"))]
    words = re.split(r"[\s_-]", device_name.lower())
    named = [found for found in shipped if found.kind == "gpu" and found.name.lower().partition("-")[0] in words]
    if not named or "pcie" in words:
        return None
    nearest = min(named, key=lambda found: abs(found.memory_bytes - memory_bytes))
    peak = nearest.peak_tflops.get(precision)
    return None if peak is None else peak * 1e12


def network_gb_per_second(text: str) -> float:
    """Gigabytes per second of ``25GbE``, ``InfiniBand-HDR``, or a number (GB/s).

    Raises:
        HardwareError: another form.
    """
    plain = text.strip().lower().removesuffix("gb/s").strip()
    if ethernet := _ETHERNET.fullmatch(plain):
        speed = int(ethernet.group(1)) / 8
    elif (port := plain.removeprefix("infiniband").strip("- ")) in _INFINIBAND:
        speed = _INFINIBAND[port] / 8
    else:
        try:
            speed = float(plain)
        except ValueError:
            speed = 0.0
    if not 0 < speed < float("inf"):
        ports = ", ".join(f"InfiniBand-{name.upper()}" for name in _INFINIBAND)
        raise HardwareError(f"--network {text}: write 25GbE, 100GbE, {ports}, or gigabytes per second such as 12.5")
    return speed
