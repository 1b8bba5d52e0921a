"""Machines to plan for: what a device can do, how many there are, and what joins them.

A device is a TOML file, one of those that ship (``distill/devices``) or one's own; a cluster is written
``8xV100-16GB``, or ``4x8xV100-16GB`` for four nodes of eight.
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
"""Share of a network's line rate that a reduction reaches; an assumption, usual for NCCL over Ethernet."""
ASSUMED_NETWORK = "25GbE"

_DEVICES = Path(__file__).resolve().parents[1] / "devices"
_COUNTED = re.compile(r"(?:(\d+)x)?(?:(\d+)x)?([^\d].*|\d[^x]*)")
_ETHERNET = re.compile(r"(\d+)gbe", re.IGNORECASE)
_INFINIBAND = {"fdr": 56, "edr": 100, "hdr": 200, "ndr": 400, "xdr": 800}
"""Gigabits per second of a port, four lanes."""


class HardwareError(ValueError):
    """A machine or a network that is not known, or cannot be what is written."""


class Device(Recipe):
    """One GPU, or one CPU core."""

    name: str
    kind: Literal["gpu", "cpu"]
    memory_gib: PositiveFloat
    """As the driver reports it; of a CPU, what a worker may take."""
    capability: tuple[int, int] | None = None
    """CUDA compute capability."""
    peak_tflops: dict[Precision, PositiveFloat]
    """Matrix products at best; a precision that is not here is not supported. Of a CPU: one core's."""
    efficiency: dict[Precision, float]
    """Share of the peak that a training step reaches in large micro-batches."""
    efficiency_source: str
    """Where the shares come from; people read it beside the result."""
    memory_gb_per_second: PositiveFloat
    link_gb_per_second: PositiveFloat
    """What a ring of the node's devices carries."""
    host_gb_per_second: PositiveFloat = 12.0
    """From CPU memory to the device."""
    overhead_seconds: float = Field(ge=0)
    """Of every micro-batch, whatever its size: starting kernels, the batch itself."""
    reserved_gib: float = Field(ge=0)
    """Taken before anything is trained: driver context, libraries, their work spaces."""

    @property
    def memory_bytes(self) -> int:
        return int(self.memory_gib * 2**30)


@dataclass(frozen=True)
class Cluster:
    """Equal nodes of equal devices; one worker on each device."""

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
        counts = [self.nodes, self.devices_per_node] if self.nodes > 1 else [self.devices_per_node]
        return "x".join([*map(str, counts), self.device.name])

    @property
    def unit(self) -> str:
        return "GPU" if self.device.kind == "gpu" else "CPU worker"

    @property
    def gb_per_second(self) -> float:
        """What a ring over all workers carries: its slowest link."""
        if self.nodes == 1:
            return self.device.link_gb_per_second
        return min(self.device.link_gb_per_second, NETWORK_SHARE * network_gb_per_second(self.network))

    def of_workers(self, workers: int) -> "Cluster":
        """A cluster of so many workers of this kind, in nodes like these; nodes of eight where this is no full node."""
        per_node = self.devices_per_node if self.nodes > 1 else max(self.devices_per_node, 8)
        if workers <= per_node:
            return replace(self, nodes=1, devices_per_node=workers)
        return replace(self, nodes=-(-workers // per_node), devices_per_node=per_node)


def split(text: str) -> tuple[int, int, str]:
    """Nodes, devices per node and the device's name of ``[[NODESx]COUNTx]NAME``.

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
    """The cluster that ``8xV100-16GB`` or ``4x8xV100-16GB`` means.

    Raises:
        HardwareError: no such device, or not of this form.
        RecipeError: a device file that cannot be read.
    """
    nodes, count, name = split(text)
    network_gb_per_second(network)
    return Cluster(device(name), count, nodes, network)


def device(name: str) -> Device:
    """A device that ships, whatever its case, or the one in a TOML file.

    Raises:
        HardwareError: neither; says which names are near.
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
    """Peak of the GPU that the driver calls so, in operations per second; None where no shipped description is of it.

    Cards in a PCIe slot have lower peaks than those described, and of a CPU nothing is known by its name.
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
        HardwareError: none of these.
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
