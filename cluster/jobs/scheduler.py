"""Which waiting job starts on which node: a pure function of the queue and the nodes.

Jobs start by priority, then first come, first served. A job that does not fit yet gets a reservation on the node where
the fewest jobs have to end for it. Later jobs may only take what leaves the reservation its start, in whatever order
the running jobs end (conservative backfilling). Resources it cannot use stay available to later jobs. A job that would
not fit even if all jobs of the queue ended, because other users hold what it needs, does not block the queue.

A reservation stays on its node, even if another node becomes free earlier: the jobs that run there when it is made
bound the wait. A job that needs no resources starts at once, since it may wait for later jobs of the queue.

Nodes with the resource ``benchmark`` are kept for jobs that must run alone. If one of them can run such a job, it runs
on no other node: time measurements get the same quiet hardware, and wait for no busy node to become empty.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

Amounts: TypeAlias = Mapping[str, float]
Shape: TypeAlias = tuple[object, ...]

_UNIT = 10_000
"""Ray counts resources in ten-thousandths."""
SMALLEST = 1 / _UNIT
BENCHMARK = "benchmark"
"""Resource of the nodes that are kept for measurements."""
_MOST_SUMS = 5_000
"""Sums of running jobs to enumerate; with more, nothing may be backfilled."""


@dataclass(frozen=True)
class Need:
    """Resources a job needs on one node."""

    amounts: Amounts
    alone: bool = False

    @property
    def needs_nothing(self) -> bool:
        return not self.amounts and not self.alone

    @property
    def shape(self) -> Shape:
        """Equal for jobs with equal needs: such jobs can reuse a worker."""
        return (self.alone, *sorted(self.amounts.items()))

    @property
    def is_measurement(self) -> bool:
        """Whether the job belongs on a ``benchmark`` node."""
        return self.alone or bool(self.amounts.get(BENCHMARK))

    def on(self, node: "Node") -> dict[str, float]:
        """What the job takes on this node: all CPUs and GPUs if it runs alone."""
        whole = {name: node.total[name] for name in ("CPU", "GPU") if self.alone and node.total.get(name)}
        return {**self.amounts, **whole}

    def could_run_on(self, node: "Node") -> bool:
        """Whether the job would fit if the node were empty."""
        return _holds(node.total, self.amounts) and (not self.alone or node.total.get("CPU", 0) > 0)


@dataclass(frozen=True)
class Node:
    """Resources of a node, and what the queue runs there."""

    total: Amounts
    free: Amounts
    running: Sequence[Amounts] = ()
    """Resources of each running job of the queue."""
    exclusive: bool = False
    """A job that must be alone runs here."""
    warm: frozenset[Shape] = frozenset()
    """Shapes of the idle workers; their resources count as free."""


@dataclass
class Placements:
    """The result of scheduling."""

    starts: list[tuple[str, str]] = field(default_factory=list)
    """Jobs to start now, each with its node."""
    reserved: dict[str, str] = field(default_factory=dict)
    """Jobs that wait for their node."""


def choose_nodes(
    waiting: Iterable[tuple[str, Need]], nodes: Mapping[str, Node], reserved: Mapping[str, str]
) -> Placements:
    """Place ready jobs, given in queue order; ``reserved`` comes from the round before."""
    found = Placements()
    plans = {name: _NodePlan(node) for name, node in sorted(nodes.items())}
    blocked: set[Shape] = set()
    totals = {name: node.total for name, node in sorted(nodes.items())}
    for job, need in waiting:
        candidates = allowed_nodes(need, totals)
        if need.needs_nothing:
            if plans:
                found.starts.append((job, min(candidates or plans, key=lambda name: plans[name].rank(need))))
            continue
        if need.shape in blocked:
            continue
        if fitting := [name for name in candidates if plans[name].fits(need)]:
            name = min(fitting, key=lambda name: plans[name].rank(need))
            plans[name].start(need)
            found.starts.append((job, name))
            continue
        reservable = [name for name in candidates if plans[name].could_reserve(need)]
        if not reservable:
            blocked.add(need.shape)  # later jobs of this shape fit no better in this round
            continue
        before = reserved.get(job)
        name = before if before in reservable else min(reservable, key=lambda name: plans[name].jobs_to_end(need))
        plans[name].reserve(need)
        found.reserved[job] = name
    return found


def allowed_nodes(need: Need, totals: Mapping[str, Amounts]) -> list[str]:
    """Nodes the job may run on, by their total resources: a measurement's ``benchmark`` nodes, else all others."""
    kept = [name for name, total in totals.items() if total.get(BENCHMARK)]
    fitting = [name for name in kept if need.is_measurement and need.could_run_on(Node(totals[name], totals[name]))]
    return fitting or [name for name in totals if name not in kept]


class _NodePlan:
    """A node during one round of scheduling."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._free = dict(node.free)
        self._running = [dict(amounts) for amounts in node.running if amounts]
        self._exclusive = node.exclusive
        self._reserved: list[dict[str, float]] = []
        """Running sums of the reservations: of the first, of the first two, …; all can run at once."""
        self._closed = False
        """Reserved for a job that must be alone."""
        self._budget = dict(node.free)
        """What may start without delaying a reservation."""

    def fits(self, need: Need) -> bool:
        if self._closed or self._exclusive or (need.alone and (self._running or self._reserved)):
            return False
        return need.could_run_on(self._node) and _holds(self._budget, need.on(self._node))

    def rank(self, need: Need) -> tuple[bool, bool, bool, float]:
        """Sort key; prefer shared nodes, warm workers, CPU-only nodes, most free CPUs."""
        wastes_gpu = bool(self._node.total.get("GPU")) and not need.amounts.get("GPU")
        exclusive = self._exclusive or self._closed
        return (exclusive, need.shape not in self._node.warm, wastes_gpu, -self._free.get("CPU", 0.0))

    def start(self, need: Need) -> None:
        taken = need.on(self._node)
        self._free = {name: amount - taken.get(name, 0.0) for name, amount in self._free.items()}
        self._running.append(taken)
        self._exclusive = need.alone
        self._update_budget()

    def could_reserve(self, need: Need) -> bool:
        """Whether the job will fit, with the earlier reservations, once enough jobs of the queue have ended."""
        if self._closed or not need.could_run_on(self._node) or (need.alone and self._reserved):
            return False
        ours = _sum(self._running)
        reachable = {name: self._free.get(name, 0.0) + ours.get(name, 0.0) for name in {*self._free, *ours}}
        return _holds(reachable, self._with_reserved(need))

    def jobs_to_end(self, need: Need) -> tuple[int, bool]:
        """Sort key: how many running jobs, largest first, have to end for this one, and whether it is not the first."""
        if need.alone:
            return len(self._running), bool(self._reserved)
        wanted = self._with_reserved(need)
        free, count = dict(self._free), 0
        for taken in sorted(self._running, key=lambda taken: -sum(taken.get(name, 0.0) for name in wanted)):
            if _holds(free, wanted):
                break
            free, count = _sum([free, taken]), count + 1
        return count, bool(self._reserved)

    def reserve(self, need: Need) -> None:
        self._reserved.append(self._with_reserved(need))
        self._closed = need.alone
        self._update_budget()

    def _with_reserved(self, need: Need) -> dict[str, float]:
        return _sum([*self._reserved[-1:], need.on(self._node)])

    def _update_budget(self) -> None:
        self._budget = dict(self._free)
        for reservation in self._reserved:
            for name, wanted in reservation.items():
                running = [taken[name] for taken in self._running if taken.get(name)]
                spare = _spare(self._free.get(name, 0.0), running, wanted)
                self._budget[name] = min(self._budget.get(name, 0.0), spare)


def _spare(free: float, running: Iterable[float], wanted: float) -> float:
    """How much of a resource other jobs may take without delaying a reservation of ``wanted``.

    For every subset of the running jobs whose end lets the reservation start, something is left over; the least of
    these amounts can be taken in any case.
    """
    lacking = round((wanted - free) * _UNIT)
    sums = {0}
    for taken in running:
        sums |= {total + round(taken * _UNIT) for total in sums}
        if len(sums) > _MOST_SUMS:
            return 0.0
    return min((total - lacking for total in sums if total >= lacking), default=0) / _UNIT


def _holds(free: Amounts, wanted: Amounts) -> bool:
    return all(round(free.get(name, 0.0) * _UNIT) >= round(amount * _UNIT) for name, amount in wanted.items())


def _sum(amounts: Iterable[Amounts]) -> dict[str, float]:
    total: dict[str, float] = {}
    for some in amounts:
        for name, amount in some.items():
            total[name] = total.get(name, 0.0) + amount
    return total
