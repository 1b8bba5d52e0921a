"""The workers the queue has: made, kept warm, found again, asked how they fare, and ended with all of their children.

Each is a detached actor pinned to its node.
"""

import contextlib
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, OutOfMemoryError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.actors.ray_state import alive_nodes
from cluster.jobs import worker
from cluster.jobs.failures import Cause
from cluster.jobs.nodes import SETTLED_SECONDS, Held, now
from cluster.jobs.scheduler import Amounts, Need, Shape
from cluster.jobs.worker import Call, Ended
from cluster.telemetry.error_text import first_line

NAMESPACE = "stillhouse"

_PREFIX = "job-worker-"
_AGAIN_SECONDS = 1.0
"""Before a worker that was out of reach is asked again."""
_START_SECONDS = 300.0
"""For a worker to start; by then its node has no room for it, because others were faster."""
_CLEAR_SECONDS = 30.0
"""For clearing up on a node before a worker is ended without."""


@dataclass(frozen=True)
class Placed:
    """A job's worker runs; ``about`` says where (:meth:`job_worker.Worker.about`)."""

    key: str
    about: Mapping[str, Any]


@dataclass(frozen=True)
class AttemptResult:
    """An attempt has ended, or came to nothing."""

    key: str
    ended: Ended | None = None
    cause: Cause | None = None
    detail: str = ""


@dataclass(frozen=True)
class Task:
    """A call, where it runs, and what it takes there."""

    call: Call
    node: str
    amounts: Amounts
    need: Need


@dataclass
class WorkerHandle:
    """A worker and what it is doing."""

    name: str
    handle: Any
    task: Task
    """The latest."""
    state: str = "busy"
    """``busy``, ``idle``, ``dead`` or ``stopping`` (both: its node is being cleared of it), ``gone``."""
    about: Mapping[str, Any] | None = None
    since: float = field(default_factory=now)
    """When it began to run, or was ended."""
    detail: str = ""
    """Of its death."""
    adopted: bool = False
    ask_at: float = 0.0
    """Before then it is not asked again."""

    def held(self) -> Held:
        state = self.state if self.state in ("idle", "gone") else "busy"
        certain = self.about is not None and now() - self.since > SETTLED_SECONDS
        need = self.task.need
        return Held(self.task.node, self.task.amounts, certain, state, need.alone, need.shape)


class WorkerPool:
    """All workers of the queue."""

    def __init__(self) -> None:
        self._hands: dict[str, WorkerHandle] = {}
        self._asked: dict[Any, tuple[WorkerHandle, str, float]] = {}
        """What was asked of whom, and when: ``about``, ``run`` or ``clear``."""

    def held(self) -> list[Held]:
        """What the workers hold, those included that ended a moment ago."""
        gone = [hand for hand in self._hands.values() if hand.state == "gone"]
        for hand in gone:
            if now() - hand.since > 2 * SETTLED_SECONDS:
                del self._hands[hand.name]
        return [hand.held() for hand in self._hands.values()]

    def pick(self, node: str, shape: Shape, picked: Collection[str]) -> str:
        """The name of the worker that will run the next job of this shape there: an idle one, else one to be made.

        A job that is alone gets a new one: threads and memory of what ran before would be in its measurements.
        """
        alone, *_ = shape
        for hand in self._hands.values():
            if (
                hand.state == "idle"
                and not alone
                and (hand.task.node, hand.task.need.shape) == (node, shape)
                and hand.name not in picked
            ):
                return hand.name
        return f"{_PREFIX}{uuid.uuid4().hex[:12]}"

    def give(self, name: str, task: Task) -> Placed | None:
        """Let a worker that was picked run a call; says where, if that is known already."""
        if (hand := self._hands.get(name)) is None:
            hand = self._hands[name] = WorkerHandle(name, _made(name, task), task)
            self._ask(hand, "about", hand.handle.about.remote())
        hand.task, hand.state = task, "busy"
        self._ask(hand, "run", hand.handle.run.remote(task.call))
        return None if hand.about is None else Placed(task.call.key, hand.about)

    def adopt(self, name: str, task: Task, about: Mapping[str, Any] | None) -> bool:
        """Take over a worker that another queue has made; False where there is none any more."""
        try:
            handle = ray.get_actor(name, namespace=NAMESPACE)
        except ValueError:
            return False
        hand = self._hands[name] = WorkerHandle(name, handle, task, about=about, adopted=True)
        # Answered when the call it is busy with has ended.
        self._ask(hand, "run", handle.ended.remote(task.call.key))
        return True

    def strays(self) -> list[str]:
        """Names of workers that some queue has made and this one has not adopted."""
        named = ray.util.list_named_actors(all_namespaces=True)
        ours = (one["name"] for one in named if one["namespace"] == NAMESPACE)
        return [name for name in ours if name.startswith(_PREFIX) and name not in self._hands]

    def dismiss(self, name: str) -> None:
        """End a stray worker of which nothing is known."""
        with contextlib.suppress(ValueError):
            ray.kill(ray.get_actor(name, namespace=NAMESPACE))

    def asked(self) -> list[Any]:
        """What workers will answer; asks those again that were out of reach, or whose answer could not be taken."""
        waited_for = {hand.name for hand, what, _ in self._asked.values() if what != "about"}
        for hand in self._hands.values():
            if hand.name in waited_for or now() < hand.ask_at:
                continue
            if hand.state == "busy":
                self._ask(hand, "run", hand.handle.ended.remote(hand.task.call.key))
            elif hand.state in ("stopping", "dead"):
                self._clear(hand)
        return list(self._asked)

    def hear(self, ready: Iterable[Any]) -> Iterator[AttemptResult | Placed]:
        """What is meant by the answers that are there, and by some that are not."""
        late = [ref for ref, (_, what, at) in self._asked.items() if what == "clear" and now() - at > _CLEAR_SECONDS]
        for reference in dict.fromkeys([*ready, *late]):
            if reference in self._asked and (answer := self._answer(reference)) is not None:
                yield answer
        for hand in self._hands.values():
            starting = hand.state == "busy" and hand.about is None and not hand.adopted
            if starting and now() - hand.since > _START_SECONDS:
                self._end(hand)
                yield AttemptResult(hand.task.call.key, cause="busy", detail="other work on its node was faster")

    def has(self, name: str) -> bool:
        """Whether a worker is there, or was there a moment ago."""
        return name in self._hands

    def stop(self, name: str) -> None:
        """End a worker whatever it is doing, with its child processes."""
        hand = self._hands[name]
        if hand.state != "busy":
            return  # it died, and its node is being cleared already
        hand.state = "stopping"
        if hand.about is None:
            self._end(hand)
        else:
            self._clear(hand)

    def stopping(self) -> set[str]:
        """Ids of the jobs whose workers are being ended."""
        return {job_of(hand.task.call.key) for hand in self._hands.values() if hand.state in ("stopping", "dead")}

    def end_idle(self) -> None:
        """End the workers that nobody picked."""
        for hand in self._hands.values():
            if hand.state == "idle":
                self._end(hand)

    def _ask(self, hand: WorkerHandle, what: str, reference: Any) -> None:
        self._asked[reference] = (hand, what, now())

    def _answer(self, reference: Any) -> AttemptResult | Placed | None:
        hand, what, _ = self._asked.pop(reference)
        if what == "about":
            return self._placed(hand, reference)
        if what == "clear":
            return self._cleared(hand, reference)
        if hand.state != "busy":
            return None  # nobody wants to know any more
        try:
            ended = ray.get(reference)
        except ActorUnavailableError:
            hand.ask_at = now() + _AGAIN_SECONDS
            return None
        except RayTaskError as error:
            self._end(hand)
            return AttemptResult(
                hand.task.call.key, Ended("user", 0.0, f"the queue cannot run it: {first_line(error.cause)}")
            )
        except RayError as error:
            return self._died(hand, error)
        if ended is None:
            # The queue that made this worker died before it had asked it for anything.
            self._ask(hand, "about", hand.handle.about.remote())
            self._ask(hand, "run", hand.handle.run.remote(hand.task.call))
            return None
        hand.state = "idle"
        if not ended.fit or hand.task.amounts.get("GPU"):
            self._end(hand)  # one that had a GPU keeps its memory, which Ray would call free
        return AttemptResult(hand.task.call.key, ended)

    def _placed(self, hand: WorkerHandle, reference: Any) -> Placed | None:
        try:
            about: Mapping[str, Any] = ray.get(reference)
        except RayError:
            return None  # the answer about its job says so as well
        hand.about, hand.since = about, now()
        return Placed(hand.task.call.key, about)

    def _died(self, hand: WorkerHandle, error: RayError) -> AttemptResult | None:
        """What the death of a worker means; None while its node is cleared of what it left."""
        hand.detail = first_line(error)
        if isinstance(error, OutOfMemoryError):
            self._end(hand)
            return AttemptResult(hand.task.call.key, cause="memory", detail=hand.detail)
        if hand.task.node not in alive_nodes() or hand.about is None:
            return self._lost(hand)
        hand.state = "dead"
        self._clear(hand)
        return None

    def _clear(self, hand: WorkerHandle) -> None:
        remote: Any = ray.remote(num_cpus=0, max_retries=0)(worker.clear)
        there = NodeAffinitySchedulingStrategy(hand.task.node, soft=False)
        self._ask(hand, "clear", remote.options(scheduling_strategy=there).remote(hand.about))

    def _cleared(self, hand: WorkerHandle, reference: Any) -> AttemptResult | None:
        dead = hand.state == "dead"
        try:
            memory = ray.get(reference, timeout=0)
        except RayError:
            if dead:
                return self._lost(hand)
            memory = None
        self._end(hand)
        if not dead:
            return None
        assert hand.about is not None, "only those that ran are cleared up after"
        who = f"process {hand.about['process']} on {hand.about['host']}"
        if memory is not None:
            return AttemptResult(hand.task.call.key, cause="memory", detail=f"the kernel killed {who}, {memory}")
        return AttemptResult(
            hand.task.call.key, cause="death", detail=f"{who} was killed or crashed; its log may say more"
        )

    def _lost(self, hand: WorkerHandle) -> AttemptResult:
        lost = hand.task.node not in alive_nodes()
        self._end(hand)
        if lost:
            return AttemptResult(hand.task.call.key, cause="node", detail="the node it ran on is gone")
        return AttemptResult(hand.task.call.key, cause="death", detail=hand.detail)

    def _end(self, hand: WorkerHandle) -> None:
        ray.kill(hand.handle)
        hand.state, hand.since = "gone", now()


def key_of(job: str, number: int, attempt: int) -> str:
    """The key of an attempt."""
    return f"{job}.{number}.{attempt}"


def job_of(key: str) -> str:
    """The id of the job that an attempt was at."""
    return key.partition(".")[0]


def _made(name: str, task: Task) -> Any:
    amounts = task.amounts
    named = {word: amount for word, amount in amounts.items() if word not in ("CPU", "GPU")}
    remote: Any = ray.remote(worker.Worker)
    return remote.options(
        name=name,
        namespace=NAMESPACE,
        lifetime="detached",
        max_restarts=0,
        max_task_retries=0,
        num_cpus=amounts.get("CPU", 0),
        num_gpus=amounts.get("GPU", 0),
        resources=named or None,
        scheduling_strategy=NodeAffinitySchedulingStrategy(task.node, soft=False),
    ).remote()
