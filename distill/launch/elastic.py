"""How many training workers a Ray cluster has room for, also while nodes come and go.

A slot is what one worker takes on one node: its CPUs, and a GPU where the cluster has any. Draining nodes have none.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass

from cluster.actors.ray_state import alive_nodes, draining_nodes, free_resources
from cluster.telemetry.progress import say
from distill.config import Training, WorkerRange

POLL_SECONDS = 1.0


class LaunchError(ValueError):
    """A pipeline cannot continue."""


@dataclass(frozen=True)
class WorkerSlots:
    """The resources of a run's workers, and how many workers it may have."""

    training: Training
    gpu: bool
    fixed: int | None
    """The number of workers; None for a range."""

    @classmethod
    def of(cls, training: Training) -> "WorkerSlots":
        """Resolve ``auto`` values on the connected cluster."""
        placement = training.placement
        nodes = _staying(alive_nodes())
        gpus = int(sum(node.get("GPU", 0) for node in nodes)) if placement.device == "auto" else 0
        if placement.workers == "auto":
            return cls(training, gpus > 0, gpus or sum(node.get("CPU", 0) >= placement.threads for node in nodes))
        return cls(training, gpus > 0, None if isinstance(placement.workers, WorkerRange) else placement.workers)

    @property
    def resources(self) -> dict[str, float]:
        """Resources of one worker."""
        return {"CPU": self.training.placement.threads, **({"GPU": 1} if self.gpu else {})}

    def free(self) -> int:
        """Free slots of the cluster."""
        return self._count(free_resources())

    def fitting(self, room: int) -> int | None:
        """The largest allowed number of workers in ``room`` slots, or None when even the smallest does not fit."""
        allowed = self.training.worker_counts() if self.fixed is None else [self.fixed]
        return max((count for count in allowed if 0 < count <= room), default=None)

    def await_workers(self, before: int | None) -> int:
        """The number of workers to start now.

        Waits up to ``placement.replace_seconds`` for lost nodes to be replaced and for slots to become free.
        ``before`` is the number of workers so far, None at the first start.

        Raises:
            LaunchError: there is no room for the smallest number allowed.
        """
        total = self._count(alive_nodes())
        wanted = max(before or 0, self.fitting(total) or 0)
        if not wanted:
            raise LaunchError(self._refusal(total))
        seconds = self.training.placement.replace_seconds
        deadline = time.monotonic() + seconds
        logged = False
        while (count := self.fitting(room := self.free())) is None or count < wanted:
            if time.monotonic() >= deadline:
                break
            if not logged:
                say(f"room for {room} of {wanted} workers: waiting up to {seconds:g} s for more")
                logged = True
            time.sleep(POLL_SECONDS)
        if count is None:
            waited = f", and this run waited for {seconds:g} s (placement.replace_seconds)"
            raise LaunchError(f"{self._refusal(room, waited)}; run the same command again to continue")
        if count < wanted:
            say(f"room for {count} of {wanted} workers: continuing with {count}")
        return count

    def _count(self, nodes: Mapping[str, Mapping[str, float]]) -> int:
        need = self.resources.items()
        return sum(int(min(node.get(name, 0) // amount for name, amount in need)) for node in _staying(nodes))

    def _refusal(self, room: int, waited: str = "") -> str:
        placement, workers = self.training.placement, self.training.placement.workers
        asked = f"at least {workers.min}" if isinstance(workers, WorkerRange) else f"{self.fixed or 'some'}"
        unit = f"{placement.threads} CPUs" + (" and a GPU" if self.gpu else "")
        remedies = {
            "fewer placement.workers, or { min = 1, max = … } to use the room there is": workers != "auto",
            "fewer placement.threads": placement.threads > 1,
            'placement.device = "cpu"': self.gpu,
        }
        written = ", or ".join(remedy for remedy, helps in remedies.items() if helps)
        write = f"write {written}, or " if written else ""
        return (
            f"placement asks for {asked} workers, the cluster has room for {room} (a worker takes {unit}){waited}: "
            f"{write}start a larger cluster, or wait for the work that holds the rest"
        )


def _staying(resources: Mapping[str, Mapping[str, float]]) -> list[Mapping[str, float]]:
    """Resources of the nodes that are alive and not draining."""
    staying = alive_nodes().keys() - draining_nodes()
    return [found for node, found in resources.items() if node in staying]
