"""Units of work on a pool of Ray actors that may come and go.

A unit is done when its worker has returned; workers write what they make to shared storage, whole or not at all, with
a marker written last, so whoever asks for the same work later leaves out what is there. One unit is in flight for
each actor. When an actor or its node dies, its unit goes to another actor, which may meet the same unit twice: both
write the same bytes.
"""

import functools
import itertools
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol, TypeAlias

from pydantic import Field, PositiveInt

from cluster.actors.ray_cluster import connect, is_connected
from cluster.artifacts.errors import StageError
from cluster.artifacts.recipe import Recipe
from cluster.telemetry import exporter, metrics, progress
from cluster.telemetry.error_text import first_line

logger = logging.getLogger("stillhouse")

WAIT_SECONDS = 5.0
"""How often the cluster is looked at for CPUs that have come."""
SAY_SECONDS = 60.0
MAX_DEATHS = 4
"""Deaths of workers, their nodes' deaths left aside, after which a unit is given up."""
FAILED_STARTS = 8
"""Actors that died in a row before they got a unit, after which the cluster is not asked again."""

AnyActors: TypeAlias = PositiveInt | Literal["auto"]


class Placement(Recipe):
    """Where the work is done; what comes out is the same everywhere."""

    actors: AnyActors = "auto"
    """``auto``: one for each CPU of the cluster, as it grows and shrinks. A number: that many, and an autoscaler of the
    cluster sees those that find no CPU as demand."""
    metrics_port: Annotated[int, Field(ge=0, le=65535)] | None = None
    """Serve progress, rates and deaths to Prometheus on this port of the machine that runs the command."""


@dataclass(frozen=True)
class Unit:
    """What an actor does in one go."""

    name: str
    """For messages: the file it reads, for instance."""
    payload: Any
    size: int = 0
    """Bytes of input, for rates."""


@dataclass(frozen=True)
class Attempt:
    """What happened to a unit before."""

    deaths: int = 0
    """Workers that died on it while their nodes lived."""


class PoolWorker(Protocol):
    """What an actor is made of. Made once in each actor, it does one unit after another."""

    def work(self, payload: Any, attempt: Attempt) -> dict[str, Any]:
        """Do the unit and return what is to be known of it.

        Raises:
            StageError: it cannot be done anywhere; the whole work ends with this.
        """
        ...


def map_unordered(
    task: str,
    worker: Callable[[], PoolWorker],
    units: Iterable[Unit],
    placement: Placement,
    patience: int = MAX_DEATHS,
) -> Iterator[tuple[Unit, dict[str, Any]]]:
    """Do all units, yielding each with its result as it is finished, in whatever order that happens.

    The next unit is asked for only when an actor is free for it and earlier results were yielded, so an iterator may
    end early because of what came out. A single unit is done in this process where no cluster is connected. ``worker``
    is a class of an imported module, or a :func:`functools.partial` of one.

    Raises:
        StageError: what a worker refused, or a unit on which ``patience`` workers died.
    """
    with exporter.serving(placement.metrics_port):
        yield from _each(task, worker, units, placement, patience)


def _each(
    task: str, worker: Callable[[], PoolWorker], units: Iterable[Unit], placement: Placement, patience: int
) -> Iterator[tuple[Unit, dict[str, Any]]]:
    waiting = iter(units)
    first = list(itertools.islice(waiting, 2))
    if len(first) < 2 and not is_connected():
        for unit in first:
            yield unit, worker().work(unit.payload, Attempt())
        return
    with connect(None if placement.actors == "auto" else placement.actors):
        pool = _Pool(task, worker, placement.actors, patience)
        try:
            yield from pool.finished(itertools.chain(first, waiting))
        finally:
            pool.stop()


class _Actor:
    """One actor's handle and what it is doing."""

    def __init__(self, handle: Any) -> None:
        self.handle = handle
        self.node = ""
        """Empty until the actor is up."""
        self.unit: Unit | None = None


class _Pool:
    def __init__(self, task: str, worker: Callable[[], PoolWorker], actors: AnyActors, patience: int) -> None:
        self._task, self._worker, self._actors, self._patience = task, worker, actors, patience
        self._busy: dict[Any, _Actor] = {}
        """What each actor will answer next: that it is up, or a unit's result."""
        self._idle: list[_Actor] = []
        self._again: deque[Unit] = deque()
        self._deaths: dict[Unit, int] = {}
        self._failed_starts = 0
        """Actors in a row that died before they got a unit."""
        # A counter that is born with its first event looks to Prometheus as if nothing had happened.
        for counter in (metrics.UNITS, metrics.UNIT_BYTES, metrics.LOST_UNITS, metrics.ACTOR_DEATHS):
            counter.labels(task)
        self._said = self._looked = time.monotonic()

    def finished(self, units: Iterator[Unit]) -> Iterator[tuple[Unit, dict[str, Any]]]:
        import ray

        self._grow()
        coming: Unit | None = next(units, None)
        while coming or self._again or any(actor.unit for actor in self._busy.values()):
            while self._idle and (coming or self._again):
                unit = self._again.popleft() if self._again else coming
                assert unit is not None
                self._give(self._idle.pop(), unit)
                if unit is coming:
                    coming = None
                    break  # the iterator may want to know what has been finished before it names another
            ready, _ = ray.wait(list(self._busy), timeout=0 if coming is None and self._idle else WAIT_SECONDS)
            for reference in ready:
                if (done := self._answer(reference)) is not None:
                    yield done
            if coming is None:
                coming = next(units, None)
            if not (coming or self._again):
                self._release()
            elif time.monotonic() - self._looked >= WAIT_SECONDS:
                self._grow()
                self._say_waiting()

    def stop(self) -> None:
        import ray

        for actor in [*self._busy.values(), *self._idle]:
            ray.kill(actor.handle)
        metrics.ACTORS.labels(self._task).set(0)

    def _grow(self) -> None:
        """Ask for the actors that are wanted and not there."""
        import ray

        self._looked = time.monotonic()
        wanted = self._actors if self._actors != "auto" else max(1, int(ray.cluster_resources().get("CPU", 1)))
        remote: Any = ray.remote(num_cpus=1, max_restarts=0, scheduling_strategy="SPREAD")(_Host)
        for _ in range(wanted - len(self._busy) - len(self._idle)):
            actor = _Actor(remote.remote(self._worker))
            self._busy[actor.handle.node.remote()] = actor

    def _release(self) -> None:
        """Let actors go for which there is no work left, those still without a CPU first of all."""
        import ray

        for actor in self._idle:
            ray.kill(actor.handle)
        self._idle = []
        for reference in [reference for reference, actor in self._busy.items() if not actor.node]:
            ray.kill(self._busy.pop(reference).handle)
        self._count()

    def _give(self, actor: _Actor, unit: Unit) -> None:
        actor.unit = unit
        attempt = Attempt(self._deaths.get(unit, 0))
        self._busy[actor.handle.work.remote(unit.payload, attempt)] = actor

    def _answer(self, reference: Any) -> tuple[Unit, dict[str, Any]] | None:
        """A finished unit, or None when an actor came up or died."""
        import ray

        actor = self._busy.pop(reference)
        try:
            answer = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            self._idle.append(actor)
            raise error.cause from error
        except ray.exceptions.RayActorError as error:
            self._died(actor, error)
            return None
        self._idle.append(actor)
        if not actor.node:
            actor.node = answer
            self._count()
            return None
        unit, actor.unit = actor.unit, None
        assert unit is not None
        self._failed_starts = 0
        metrics.UNITS.labels(self._task).inc()
        metrics.UNIT_BYTES.labels(self._task).inc(unit.size)
        return unit, answer

    def _died(self, actor: _Actor, error: Exception) -> None:
        """Give its unit to another; whatever may be left of an actor that was only out of reach is ended."""
        import ray

        ray.kill(actor.handle)
        metrics.ACTOR_DEATHS.labels(self._task).inc()
        self._failed_starts += actor.unit is None
        if self._failed_starts >= FAILED_STARTS:
            lines = [line for line in str(error).splitlines() if line.strip()]
            raise StageError(f"{self._task}: no worker could be started ({lines[-1].strip()})") from error
        reason = first_line(error)
        lost = actor.node and not any(node["NodeID"] == actor.node and node["Alive"] for node in ray.nodes())
        if (unit := actor.unit) is not None:
            if not lost:
                self._deaths[unit] = self._deaths.get(unit, 0) + 1
            if self._deaths.get(unit, 0) >= self._patience:
                raise StageError(
                    f"{unit.name}: workers died on it {self._patience} times ({reason}): look for memory running out, "
                    "and run the same command again to continue"
                ) from None
            metrics.LOST_UNITS.labels(self._task).inc()
            self._again.append(unit)
        what = f"the node of a worker at {unit.name}" if unit and lost else f"a worker at {unit.name}" if unit else ""
        progress.say(f"{self._task}: {what or 'an idle worker'} died: {'its unit is' if unit else 'it is'} replaced")
        self._count()
        self._grow()

    def _count(self) -> None:
        up = sum(1 for actor in [*self._busy.values(), *self._idle] if actor.node)
        metrics.ACTORS.labels(self._task).set(up)

    def _say_waiting(self) -> None:
        up = sum(1 for actor in self._busy.values() if actor.node)
        if not up and time.monotonic() - self._said >= SAY_SECONDS:
            self._said = time.monotonic()
            logger.info("%s: waiting for a free CPU", self._task)


class _Host:
    """The actor: makes its worker when it is first needed."""

    def __init__(self, worker: Callable[[], PoolWorker]) -> None:
        self._make = worker

    def node(self) -> str:
        """The node it runs on; returns as soon as the actor has been given its CPU."""
        import ray

        return str(ray.get_runtime_context().get_node_id())

    def work(self, payload: Any, attempt: Attempt) -> dict[str, Any]:
        return self._worker.work(payload, attempt)

    @functools.cached_property
    def _worker(self) -> PoolWorker:
        return self._make()
