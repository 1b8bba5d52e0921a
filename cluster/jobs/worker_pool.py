"""The queue's workers: created, reused, re-attached, health-checked and killed with their process tree.

Each is a detached actor pinned to its node.
"""

import contextlib
import uuid
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, OutOfMemoryError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.actors.ray_state import alive_nodes
from cluster.jobs import worker
from cluster.jobs.failures import Cause
from cluster.jobs.nodes import SETTLED_SECONDS, HeldResources, now
from cluster.jobs.scheduler import Amounts, Need, Shape
from cluster.jobs.worker import Call, CallResult, WorkerProcess
from cluster.telemetry.error_text import first_line

NAMESPACE = "stillhouse"

_PREFIX = "job-worker-"
_RETRY_SECONDS = 1.0
"""Between two requests to an unreachable worker."""
_START_SECONDS = 300.0
"""Time for a worker to start; a worker that takes longer has lost its place on the node to other work."""
_CLEAR_SECONDS = 30.0
"""Time for :func:`worker.clear` on the node; afterwards the worker ends without it."""


@dataclass(frozen=True)
class WorkerStarted:
    """A job's worker runs."""

    key: str
    process: WorkerProcess


@dataclass(frozen=True)
class AttemptEnded:
    """An attempt has a result, or failed outside the worker's code for ``cause``."""

    key: str
    result: CallResult | None = None
    cause: Cause | None = None
    detail: str = ""


@dataclass(frozen=True)
class Assignment:
    """A call, its node, and the resources it takes there."""

    call: Call
    node: str
    amounts: Amounts

    @property
    def need(self) -> Need:
        return self.call.job.need


@dataclass
class WorkerHandle:
    """A worker and its latest assignment."""

    name: str
    actor: Any
    """Ray's handle."""
    task: Assignment
    state: str = "busy"
    """``busy``, ``idle``, ``dead`` or ``stopping`` (both: :func:`worker.clear` runs on its node), ``gone``."""
    process: WorkerProcess | None = None
    since: float = field(default_factory=now)
    """When it started to run, or ended."""
    detail: str = ""
    """How it died."""
    reattached: bool = False
    next_request: float = 0.0
    """Time of the next health check."""

    @property
    def key(self) -> str:
        return self.task.call.key

    def held(self) -> HeldResources:
        state = self.state if self.state in ("idle", "gone") else "busy"
        settled = self.process is not None and now() - self.since > SETTLED_SECONDS
        return HeldResources(self.task.node, self.task.amounts, settled, state, self.task.need)


class WorkerPool:
    """All workers of the queue, by name."""

    def __init__(self) -> None:
        self._workers: dict[str, WorkerHandle] = {}
        self._requests: dict[Any, tuple[WorkerHandle, str, float]] = {}
        """Ray references to worker, kind (``describe``, ``run`` or ``clear``) and time of each request."""

    def held(self) -> list[HeldResources]:
        """Resources of the workers, recently ended ones included."""
        gone = [one for one in self._workers.values() if one.state == "gone"]
        for one in gone:
            if now() - one.since > 2 * SETTLED_SECONDS:
                del self._workers[one.name]
        return [one.held() for one in self._workers.values()]

    def pick(self, node: str, shape: Shape, picked: Collection[str]) -> str:
        """Name of an idle worker for the next job of this shape on the node, or of a new one.

        A job that runs alone gets a new worker: threads and memory of an earlier job would distort its measurements.
        """
        alone, *_ = shape
        for one in self._workers.values():
            same = (one.task.node, one.task.need.shape) == (node, shape)
            if one.state == "idle" and same and not alone and one.name not in picked:
                return one.name
        return f"{_PREFIX}{uuid.uuid4().hex[:12]}"

    def assign(self, name: str, task: Assignment) -> WorkerStarted | None:
        """Send a call to a picked worker; returns its process if it already runs.

        Raises:
            ValueError, TypeError: Ray rejects the resources.
        """
        if (one := self._workers.get(name)) is None:
            one = self._workers[name] = WorkerHandle(name, _create_actor(name, task), task)
            self._track(one, "describe", one.actor.describe.remote())
        one.task, one.state = task, "busy"
        self._track(one, "run", one.actor.run.remote(task.call))
        return None if one.process is None else WorkerStarted(one.key, one.process)

    def reattach(self, name: str, task: Assignment, process: WorkerProcess | None) -> bool:
        """Take over a worker of an earlier queue; False if it is gone."""
        try:
            actor = ray.get_actor(name, namespace=NAMESPACE)
        except ValueError:
            return False
        one = self._workers[name] = WorkerHandle(name, actor, task, process=process, reattached=True)
        # The worker replies when its present call ends.
        self._track(one, "run", actor.result.remote(one.key))
        return True

    def orphaned_workers(self) -> list[str]:
        """Names of workers of earlier queues that this queue has not re-attached."""
        named = ray.util.list_named_actors(all_namespaces=True)
        ours = (one["name"] for one in named if one["namespace"] == NAMESPACE)
        return [name for name in ours if name.startswith(_PREFIX) and name not in self._workers]

    def kill(self, name: str) -> None:
        """Kill an orphaned worker whose process is unknown."""
        with contextlib.suppress(ValueError):
            ray.kill(ray.get_actor(name, namespace=NAMESPACE))

    def pending(self) -> list[Any]:
        """References to wait for; repeats requests to workers that were unreachable."""
        waited_for = {one.name for one, kind, _ in self._requests.values() if kind != "describe"}
        for one in self._workers.values():
            if one.name in waited_for or now() < one.next_request:
                continue
            if one.state == "busy":
                self._track(one, "run", one.actor.result.remote(one.key))
            elif one.state in ("stopping", "dead"):
                self._clear(one)
        return list(self._requests)

    def poll(self, ready: Iterable[Any]) -> Iterator[AttemptEnded | WorkerStarted]:
        """Messages from ready references, and from workers whose time to start or to clear is over."""
        late = [ref for ref, (_, kind, at) in self._requests.items() if kind == "clear" and now() - at > _CLEAR_SECONDS]
        for reference in dict.fromkeys([*ready, *late]):
            if reference in self._requests and (message := self._receive(reference)) is not None:
                yield message
        for one in self._workers.values():
            starting = one.state == "busy" and one.process is None and not one.reattached
            if starting and now() - one.since > _START_SECONDS:
                self._end(one)
                yield AttemptEnded(one.key, cause="busy", detail="other work took its node first")

    def knows(self, name: str) -> bool:
        """Whether a worker exists or ended a moment ago."""
        return name in self._workers

    def stop(self, name: str) -> None:
        """End a busy worker and its child processes."""
        one = self._workers[name]
        if one.state != "busy":
            return  # it is dead, and its node is being cleared
        one.state = "stopping"
        if one.process is None:
            self._end(one)
        else:
            self._clear(one)

    def stopping(self) -> set[str]:
        """Ids of jobs whose last workers are not gone yet."""
        return {job_id(one.key) for one in self._workers.values() if one.state in ("stopping", "dead")}

    def end_idle(self) -> None:
        for one in self._workers.values():
            if one.state == "idle":
                self._end(one)

    def _track(self, one: WorkerHandle, kind: str, reference: Any) -> None:
        self._requests[reference] = (one, kind, now())

    def _receive(self, reference: Any) -> AttemptEnded | WorkerStarted | None:
        one, kind, _ = self._requests.pop(reference)
        if kind == "describe":
            return self._started(one, reference)
        if kind == "clear":
            return self._cleared(one, reference)
        if one.state != "busy":
            return None  # stale reply
        try:
            result = ray.get(reference)
        except ActorUnavailableError:
            one.next_request = now() + _RETRY_SECONDS
            return None
        except RayTaskError as error:
            self._end(one)
            return AttemptEnded(one.key, CallResult("user", 0.0, f"Ray cannot run it: {first_line(error.cause)}"))
        except RayError as error:
            return self._died(one, error)
        if result is None:
            # The earlier queue died after it created this worker and before it sent the call.
            self._track(one, "describe", one.actor.describe.remote())
            self._track(one, "run", one.actor.run.remote(one.task.call))
            return None
        one.state = "idle"
        if not result.reusable or one.task.amounts.get("GPU"):
            self._end(one)  # an idle worker would keep GPU memory that Ray counts as free
        return AttemptEnded(one.key, result)

    def _started(self, one: WorkerHandle, reference: Any) -> WorkerStarted | None:
        try:
            process: WorkerProcess = ray.get(reference)
        except RayError:
            return None  # the reply to ``run`` reports the death
        one.process, one.since = process, now()
        return WorkerStarted(one.key, process)

    def _died(self, one: WorkerHandle, error: RayError) -> AttemptEnded | None:
        """What the death of a worker means; None until its node is cleared."""
        one.detail = first_line(error)
        if isinstance(error, OutOfMemoryError):
            self._end(one)
            return AttemptEnded(one.key, cause="memory", detail=one.detail)
        if one.task.node not in alive_nodes() or one.process is None:
            return self._lost(one)
        one.state = "dead"
        self._clear(one)
        return None

    def _clear(self, one: WorkerHandle) -> None:
        remote: Any = ray.remote(num_cpus=0, max_retries=0)(worker.clear)
        there = NodeAffinitySchedulingStrategy(one.task.node, soft=False)
        self._track(one, "clear", remote.options(scheduling_strategy=there).remote(one.process))

    def _cleared(self, one: WorkerHandle, reference: Any) -> AttemptEnded | None:
        dead = one.state == "dead"
        try:
            memory = ray.get(reference, timeout=0)
        except RayError:
            if dead:
                return self._lost(one)
            memory = None
        self._end(one)
        if not dead:
            return None
        assert one.process is not None, "only workers with a known process are cleared"
        who = f"process {one.process['process']} on {one.process['host']}"
        if memory is not None:
            return AttemptEnded(one.key, cause="memory", detail=f"the kernel killed {who}, {memory}")
        return AttemptEnded(one.key, cause="death", detail=f"{who} was killed or crashed; its log may say more")

    def _lost(self, one: WorkerHandle) -> AttemptEnded:
        lost = one.task.node not in alive_nodes()
        self._end(one)
        if lost:
            return AttemptEnded(one.key, cause="node", detail="the node it ran on is gone")
        return AttemptEnded(one.key, cause="death", detail=one.detail)

    def _end(self, one: WorkerHandle) -> None:
        ray.kill(one.actor)
        one.state, one.since = "gone", now()


def attempt_key(job: str, number: int, attempt: int) -> str:
    return f"{job}.{number}.{attempt}"


def job_id(key: str) -> str:
    """Id of the job that an attempt key belongs to."""
    return key.partition(".")[0]


def _create_actor(name: str, task: Assignment) -> Any:
    named = {word: amount for word, amount in task.amounts.items() if word not in ("CPU", "GPU")}
    remote: Any = ray.remote(worker.Worker)
    return remote.options(
        name=name,
        namespace=NAMESPACE,
        lifetime="detached",
        max_restarts=0,
        max_task_retries=0,
        num_cpus=task.amounts.get("CPU", 0),
        num_gpus=task.amounts.get("GPU", 0),
        resources=named or None,
        scheduling_strategy=NodeAffinitySchedulingStrategy(task.node, soft=False),
    ).remote()
