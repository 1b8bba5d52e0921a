"""Runs units of work on a pool of Ray actors that grows and shrinks with the cluster.

Workers write their results to shared storage atomically, and a marker last, so that a later attempt skips finished
units. Each actor has one unit in flight. When an actor or its node dies, another actor runs its unit. Two actors may
run the same unit: both write the same bytes.

A pool in a job of the queue works in the job's reservation first: as many actors as the job holds CPUs, at least one,
take no others. So a job never waits for a CPU that it holds itself, or that jobs like it hold. Further actors reserve a
CPU each, where the cluster has one.
"""

import functools
import itertools
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol, TypeAlias

from pydantic import Field, PositiveInt

from cluster.actors.ray_cluster import connect, is_connected
from cluster.artifacts.errors import StageError, logger
from cluster.artifacts.recipe import Recipe
from cluster.telemetry import exporter, metrics, progress
from cluster.telemetry.error_text import first_line, last_line

WAIT_SECONDS = 5.0
"""How often the pool looks for new CPUs in the cluster."""
LOG_SECONDS = 60.0
MAX_DEATHS = 4
"""Workers that may die on a unit, while their nodes live, before the pool gives up."""
FAILED_STARTS = 8
"""Actors that may die in a row without a unit before the pool gives up."""

AnyActors: TypeAlias = PositiveInt | Literal["auto"]


class Placement(Recipe):
    """Where the work runs; the results do not depend on it."""

    actors: AnyActors = "auto"
    """``auto``: one per CPU of the cluster, as it grows and shrinks. A number: that many; an autoscaler of the cluster
    sees those without a CPU as demand. The first ones take the CPUs of their job."""
    metrics_port: Annotated[int, Field(ge=0, le=65535)] | None = None
    """Port of this machine on which Prometheus reads progress, rates and deaths."""


@dataclass(frozen=True)
class Unit:
    """Work that one actor does in one call."""

    name: str
    """For messages: for example, the file to read."""
    payload: Any
    size: int = 0
    """Bytes of input, for rates."""


@dataclass(frozen=True)
class Attempt:
    """Earlier attempts at a unit."""

    deaths: int = 0
    """Workers that died on the unit while their nodes lived."""


class PoolWorker(Protocol):
    """Does units one after another; every actor makes one."""

    def work(self, payload: Any, attempt: Attempt) -> dict[str, Any]:
        """Do a unit, and return facts about it.

        Raises:
            StageError: no worker can do it; stops the pool.
        """
        ...


def map_unordered(
    task: str, worker: Callable[[], PoolWorker], units: Iterable[Unit], placement: Placement
) -> Iterator[tuple[Unit, dict[str, Any]]]:
    """Do all units, and yield each with its result in the order in which they finish.

    The pool takes the next unit only when an actor is free and it has yielded the earlier results, so an iterator may
    end early because of them. A single unit runs in this process if no cluster is connected. ``worker`` is a class of
    an imported module, or a :func:`functools.partial` of one.

    Raises:
        StageError: from a worker, or :data:`MAX_DEATHS` workers died on a unit.
    """
    waiting = iter(units)
    with exporter.serving(placement.metrics_port):
        first = list(itertools.islice(waiting, 2))
        if len(first) < 2 and not is_connected():
            for unit in first:
                yield unit, worker().work(unit.payload, Attempt())
            return
        with connect(None if placement.actors == "auto" else placement.actors):
            pool = _Pool(task, worker, placement.actors)
            try:
                yield from pool.finished(itertools.chain(first, waiting))
            finally:
                pool.stop()


class _Actor:
    """The handle of an actor, and its unit."""

    def __init__(self, handle: Any, is_lent: bool) -> None:
        self.handle = handle
        self.is_lent = is_lent
        """It works on a CPU of this process's reservation."""
        self.node = ""
        """Empty until the actor runs."""
        self.unit: Unit | None = None


class _Pool:
    def __init__(self, task: str, worker: Callable[[], PoolWorker], actors: AnyActors) -> None:
        self._task, self._worker, self._actors = task, worker, actors
        self._busy: dict[Any, _Actor] = {}
        """Actors by the reference to their next reply: the node on which they run, or the result of a unit."""
        self._idle: list[_Actor] = []
        self._retries: deque[Unit] = deque()
        self._deaths = Counter[Unit]()
        self._failed_starts = 0
        """Actors in a row that died before they got a unit."""
        # Prometheus misses the first event of a counter that this event creates.
        for counter in (metrics.UNITS, metrics.UNIT_BYTES, metrics.LOST_UNITS, metrics.ACTOR_DEATHS):
            counter.labels(task)
        self._logged_at = self._grown_at = time.monotonic()
        from cluster.actors import ray_state  # imports Ray, which is slow

        reserved = ray_state.reserved_cpus()
        self._lent = 0 if reserved is None else max(1, int(reserved))
        """Actors that work in the reservation of this process."""

    def finished(self, units: Iterator[Unit]) -> Iterator[tuple[Unit, dict[str, Any]]]:
        import ray

        self._grow()
        upcoming: Unit | None = next(units, None)
        while upcoming or self._retries or any(actor.unit for actor in self._busy.values()):
            while self._idle and self._retries:
                self._assign(self._idle.pop(), self._retries.popleft())
            if self._idle and upcoming:
                self._assign(self._idle.pop(), upcoming)
                upcoming = None  # the iterator decides on the next one after it has seen the finished ones
            ready, _ = ray.wait(list(self._busy), timeout=0 if upcoming is None and self._idle else WAIT_SECONDS)
            for reference in ready:
                if (done := self._receive(reference)) is not None:
                    yield done
            if upcoming is None:
                upcoming = next(units, None)
            if not (upcoming or self._retries):
                self._release()
            elif time.monotonic() - self._grown_at >= WAIT_SECONDS:
                self._grow()
                self._log_waiting()

    def stop(self) -> None:
        import ray

        for actor in [*self._busy.values(), *self._idle]:
            ray.kill(actor.handle)
        metrics.ACTORS.labels(self._task).set(0)

    def _grow(self) -> None:
        """Start the missing actors."""
        import ray

        self._grown_at = time.monotonic()
        wanted = self._actors if self._actors != "auto" else max(1, int(ray.cluster_resources().get("CPU", 1)))
        actors = [*self._busy.values(), *self._idle]
        lent = min(self._lent, wanted) - sum(actor.is_lent for actor in actors)
        for number in range(wanted - len(actors)):
            actor = self._start(is_lent=number < lent)
            self._busy[actor.handle.node.remote()] = actor

    def _start(self, is_lent: bool) -> _Actor:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        from cluster.actors import ray_state

        here = NodeAffinitySchedulingStrategy(ray_state.this_node(), soft=False)
        where = {"num_cpus": 0, "scheduling_strategy": here} if is_lent else {"num_cpus": 1}
        remote: Any = ray.remote(max_restarts=0, **{"scheduling_strategy": "SPREAD", **where})(_Host)
        return _Actor(remote.remote(self._worker), is_lent)

    def _release(self) -> None:
        """Stop the actors without work, also those that still wait for a CPU."""
        import ray

        for actor in self._idle:
            ray.kill(actor.handle)
        self._idle = []
        for reference in [reference for reference, actor in self._busy.items() if not actor.node]:
            ray.kill(self._busy.pop(reference).handle)
        self._export()

    def _assign(self, actor: _Actor, unit: Unit) -> None:
        actor.unit = unit
        self._busy[actor.handle.work.remote(unit.payload, Attempt(self._deaths[unit]))] = actor

    def _receive(self, reference: Any) -> tuple[Unit, dict[str, Any]] | None:
        """The finished unit of a reply; None if the actor has started or died."""
        import ray

        actor = self._busy.pop(reference)
        try:
            reply = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            self._idle.append(actor)
            raise error.cause from error
        except ray.exceptions.RayActorError as error:
            self._replace(actor, error)
            return None
        self._idle.append(actor)
        if not actor.node:
            actor.node = reply
            self._export()
            return None
        unit, actor.unit = actor.unit, None
        assert unit is not None
        self._failed_starts = 0
        metrics.UNITS.labels(self._task).inc()
        metrics.UNIT_BYTES.labels(self._task).inc(unit.size)
        return unit, reply

    def _replace(self, actor: _Actor, error: Exception) -> None:
        """Queue the unit of a dead actor again. Kills the actor, which may only be out of reach."""
        import ray

        ray.kill(actor.handle)
        metrics.ACTOR_DEATHS.labels(self._task).inc()
        self._failed_starts += actor.unit is None
        if self._failed_starts >= FAILED_STARTS:
            reason = last_line(str(error), type(error).__name__)
            raise StageError(f"{self._task}: no worker could be started ({reason})") from error
        reason = first_line(error)
        lost = actor.node and not any(node["NodeID"] == actor.node and node["Alive"] for node in ray.nodes())
        if (unit := actor.unit) is not None:
            if not lost:
                self._deaths[unit] += 1
            if self._deaths[unit] >= MAX_DEATHS:
                raise StageError(
                    f"{unit.name}: workers died on it {MAX_DEATHS} times ({reason}): if memory ran out on "
                    "their nodes, write fewer placement.actors; the same command then continues"
                ) from None
            metrics.LOST_UNITS.labels(self._task).inc()
            self._retries.append(unit)
        what = f"the node of a worker at {unit.name}" if unit and lost else f"a worker at {unit.name}" if unit else ""
        progress.say(f"{self._task}: {what or 'an idle worker'} died: {'its unit is' if unit else 'it is'} replaced")
        self._export()
        self._grow()

    def _export(self) -> None:
        running = sum(bool(actor.node) for actor in [*self._busy.values(), *self._idle])
        metrics.ACTORS.labels(self._task).set(running)

    def _log_waiting(self) -> None:
        import ray

        is_running = any(actor.node for actor in self._busy.values())
        if not is_running and time.monotonic() - self._logged_at >= LOG_SECONDS:
            self._logged_at = time.monotonic()
            total = ray.cluster_resources().get("CPU", 0)
            why = (
                f"the {total:g} CPUs of the cluster are reserved, `ray status` shows by what"
                if total >= 1
                else ("no node of the cluster has a CPU: start one that does")
            )
            logger.info("%s: waits for a CPU: %s", self._task, why)


class _Host:
    """The actor; makes its worker for the first unit."""

    def __init__(self, worker: Callable[[], PoolWorker]) -> None:
        self._make = worker

    def node(self) -> str:
        """The node of this actor, as soon as Ray has given it a CPU."""
        import ray

        return str(ray.get_runtime_context().get_node_id())

    def work(self, payload: Any, attempt: Attempt) -> dict[str, Any]:
        return self._worker.work(payload, attempt)

    @functools.cached_property
    def _worker(self) -> PoolWorker:
        return self._make()
