"""How many training workers a Ray cluster has places for, now and when nodes come or go.

A place is what one worker takes, whole and on one node: its CPUs, and a GPU where the cluster has any. Nodes that are
being drained have none.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass

from cluster.actors.ray_state import alive_nodes, draining_nodes, free_resources
from cluster.telemetry.progress import say
from distill.config import Training, WorkerRange

LOOK_SECONDS = 1.0


class LaunchError(ValueError):
    """A pipeline cannot go on."""


@dataclass(frozen=True)
class WorkerSlots:
    """What a run's workers take, and how many it may have."""

    training: Training
    gpu: bool
    fixed: int | None
    """The number of workers, where it is no range."""

    @classmethod
    def of(cls, training: Training) -> "WorkerSlots":
        """Settle what ``auto`` means on the cluster as it is."""
        placement = training.placement
        nodes = _staying(alive_nodes())
        gpus = int(sum(node.get("GPU", 0) for node in nodes)) if placement.device == "auto" else 0
        if placement.workers == "auto":
            return cls(training, gpus > 0, gpus or sum(node.get("CPU", 0) >= placement.threads for node in nodes))
        return cls(training, gpus > 0, None if isinstance(placement.workers, WorkerRange) else placement.workers)

    @property
    def resources(self) -> dict[str, float]:
        """What one worker takes."""
        return {"CPU": self.training.placement.threads, **({"GPU": 1} if self.gpu else {})}

    def total(self) -> int:
        """Places of the cluster, taken or not."""
        return self._room(alive_nodes())

    def free(self) -> int:
        """Places nobody has taken."""
        return self._room(free_resources())

    def fitting(self, room: int) -> int | None:
        """The largest number of workers that is allowed and finds places, or None: not even the smallest does."""
        allowed = self.training.worker_counts() if self.fixed is None else [self.fixed]
        return max((count for count in allowed if 0 < count <= room), default=None)

    def await_workers(self, before: int | None) -> int:
        """How many workers to start now; waits a while for lost ones to be replaced and for places to be given back.

        ``before`` is how many there were until now, None at the first start.

        Raises:
            LaunchError: there is no room for the smallest number allowed.
        """
        wanted = max(before or 0, self.fitting(self.total()) or 0)
        if not wanted:
            raise LaunchError(self._refusal(self.total()))
        seconds = self.training.placement.replace_seconds
        deadline = time.monotonic() + seconds
        said = False
        while (found := self.fitting(room := self.free())) is None or found < wanted:
            if time.monotonic() >= deadline:
                break
            if not said:
                say(f"room for {room} of {wanted} workers: waiting up to {seconds:g} s for more")
                said = True
            time.sleep(LOOK_SECONDS)
        if found is None:
            waited = f" for {seconds:g} s (placement.replace_seconds); run the same command again to go on"
            raise LaunchError(self._refusal(room) + waited)
        if found < wanted:
            say(f"room for {found} of {wanted} workers: going on with {found}")
        return found

    def _room(self, resources: Mapping[str, Mapping[str, float]]) -> int:
        return sum(
            int(min(node.get(name, 0) // amount for name, amount in self.resources.items()))
            for node in _staying(resources)
        )

    def _refusal(self, room: int) -> str:
        workers = self.training.placement.workers
        asked = f"at least {workers.min}" if isinstance(workers, WorkerRange) else f"{self.fixed}"
        unit = f"{self.training.placement.threads} CPUs" + (" and a GPU" if self.gpu else "")
        return (
            f"placement asks for {asked} workers, the cluster has room for {room} (a worker takes {unit}): write fewer "
            'placement.workers, or { min = 1, max = … } to go on with what there is, or placement.device = "cpu", or '
            "start a larger cluster"
        )


def _staying(resources: Mapping[str, Mapping[str, float]]) -> list[Mapping[str, float]]:
    """Resources of the nodes that are alive and not being drained."""
    staying = alive_nodes().keys() - draining_nodes()
    return [found for node, found in resources.items() if node in staying]
