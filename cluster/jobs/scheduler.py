"""Which waiting job starts where: a pure function of what waits and what the nodes have.

Jobs start in order: of higher priority first, then first come first served. A job that does not fit yet is promised
the node where it has to wait for the fewest jobs to end; from then on nothing behind it in the line may take there what
it will need, so that there it is not delayed by what came later. What it can never use is not idle: a job behind it
starts wherever that changes nothing for it, in whatever order the running jobs may end. A job that even an otherwise
empty queue could not start, because other people hold what it needs, is not waited for with idle hands.

A promise is for one node: what runs there when it is made bounds the wait, even if another node turns out to be free
earlier. A job that takes nothing of a node only looks on: it waits for others, perhaps for jobs of its own behind it in
the line. So it starts at once, is in nobody's way, and nobody waits for its end.

Nodes with the resource ``benchmark`` are kept for jobs that must be alone. Where one of them could carry such a job, it
runs nowhere else: measurements of time are made on the same quiet hardware, and wait for no busy node to empty.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

Amounts: TypeAlias = Mapping[str, float]
Shape: TypeAlias = tuple[object, ...]

_UNIT = 10_000
"""Ray's: amounts are counted in ten-thousandths."""
SMALLEST = 1 / _UNIT
BENCHMARK = "benchmark"
"""A resource of the nodes that are kept for measurements."""
_SUMS = 5_000
"""Different sums of running jobs that are told apart; beyond them nothing may pass."""


@dataclass(frozen=True)
class Need:
    """What a job asks of one node."""

    amounts: Amounts
    alone: bool = False

    @property
    def looks_on(self) -> bool:
        """Whether it takes nothing."""
        return not self.amounts and not self.alone

    @property
    def shape(self) -> Shape:
        """Equal for jobs that ask for the same."""
        return (self.alone, *sorted(self.amounts.items()))

    @property
    def measures(self) -> bool:
        """Whether it belongs on the nodes that are kept for measurements."""
        return self.alone or bool(self.amounts.get(BENCHMARK))

    def on(self, node: "Node") -> dict[str, float]:
        """What it takes there: alone, all CPUs and GPUs."""
        whole = {name: node.total[name] for name in ("CPU", "GPU") if self.alone and node.total.get(name)}
        return {**self.amounts, **whole}

    def could_run_on(self, node: "Node") -> bool:
        """Whether it would fit on the node if that were empty."""
        return _holds(node.total, self.amounts) and (not self.alone or node.total.get("CPU", 0) > 0)


@dataclass(frozen=True)
class Node:
    """A node as the queue sees it."""

    total: Amounts
    free: Amounts
    running: Sequence[Amounts] = ()
    """What each job of the queue there has taken."""
    exclusive: bool = False
    """A job that must be alone is there."""
    warm: frozenset[Shape] = frozenset()
    """Shapes for which a worker is there that has just become idle; what it holds counts as free."""


@dataclass
class Placements:
    """What to start now, and which node each job at the head of the line is promised."""

    starts: list[tuple[str, str]] = field(default_factory=list)
    """Job and node."""
    promised: dict[str, str] = field(default_factory=dict)


def choose_nodes(
    waiting: Iterable[tuple[str, Need]], nodes: Mapping[str, Node], promised: Mapping[str, str]
) -> Placements:
    """What to start now of the jobs that are ready, given in their order; ``promised`` is of the plan before."""
    plan = Placements()
    places = {name: _Place(node) for name, node in sorted(nodes.items())}
    hopeless: set[Shape] = set()
    totals = {name: node.total for name, node in sorted(nodes.items())}
    for job, need in waiting:
        open_to = allowed(need, totals)
        if need.looks_on:
            if places:
                plan.starts.append((job, min(open_to or places, key=lambda name: places[name].rank(need))))
            continue
        if need.shape in hopeless:
            continue
        fitting = [name for name in open_to if places[name].fits(need)]
        if fitting:
            name = min(fitting, key=lambda name: places[name].rank(need))
            places[name].start(need)
            plan.starts.append((job, name))
            continue
        possible = [name for name in open_to if places[name].could_promise(need)]
        if not possible:
            hopeless.add(need.shape)  # nobody of its kind behind it has a better chance in this round
            continue
        kept = promised.get(job)
        name = kept if kept in possible else min(possible, key=lambda name: places[name].endings(need))
        places[name].promise(need)
        plan.promised[job] = name
    return plan


def allowed(need: Need, totals: Mapping[str, Amounts]) -> list[str]:
    """The nodes, of these with all they have, that a job may run on: those kept for measurements, or the others."""
    kept = [name for name, total in totals.items() if total.get(BENCHMARK)]
    carrying = [name for name in kept if need.measures and need.could_run_on(Node(totals[name], totals[name]))]
    return carrying or [name for name in totals if name not in kept]


class _Place:
    """A node while a plan is made."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._free = dict(node.free)
        self._running = [dict(amounts) for amounts in node.running if amounts]
        self._exclusive = node.exclusive
        self._claims: list[dict[str, float]] = []
        """What is promised here: to the first, to the first two …; never more than could run at once."""
        self._closed = False
        """Promised to a job that must be alone."""
        self._budget = dict(node.free)
        """What jobs behind those that were promised this node may take."""

    def fits(self, need: Need) -> bool:
        if self._closed or self._exclusive or (need.alone and (self._running or self._claims)):
            return False
        return need.could_run_on(self._node) and _holds(self._budget, need.on(self._node))

    def rank(self, need: Need) -> tuple[bool, bool, bool, float]:
        """The smallest is the best place: nobody is alone, a worker is warm, no GPU stands idle, most CPUs are free."""
        idle_gpu = bool(self._node.total.get("GPU")) and not need.amounts.get("GPU")
        alone = self._exclusive or self._closed
        return (alone, need.shape not in self._node.warm, idle_gpu, -self._free.get("CPU", 0.0))

    def start(self, need: Need) -> None:
        taken = need.on(self._node)
        self._free = {name: amount - taken.get(name, 0.0) for name, amount in self._free.items()}
        self._running.append(taken)
        self._exclusive = need.alone
        self._settle()

    def could_promise(self, need: Need) -> bool:
        """Whether it will fit here, beside what is promised already, when enough jobs of the queue have ended."""
        if self._closed or not need.could_run_on(self._node) or (need.alone and self._claims):
            return False
        ours = _sum(self._running)
        reachable = {name: self._free.get(name, 0.0) + ours.get(name, 0.0) for name in {*self._free, *ours}}
        return _holds(reachable, self._with(need))

    def endings(self, need: Need) -> tuple[int, bool]:
        """How many jobs have to end before it fits, the largest of them first."""
        if need.alone:
            return len(self._running), bool(self._claims)
        wanted = self._with(need)
        free, count = dict(self._free), 0
        for taken in sorted(self._running, key=lambda taken: -sum(taken.get(name, 0.0) for name in wanted)):
            if _holds(free, wanted):
                break
            free, count = _sum([free, taken]), count + 1
        return count, bool(self._claims)

    def promise(self, need: Need) -> None:
        self._claims.append(self._with(need))
        self._closed = need.alone
        self._settle()

    def _with(self, need: Need) -> dict[str, float]:
        """All that is promised here, and this."""
        return _sum([*self._claims[-1:], need.on(self._node)])

    def _settle(self) -> None:
        """What may be taken by those behind without a delay for those ahead, whichever of the running jobs end."""
        self._budget = dict(self._free)
        for claim in self._claims:
            for name, claimed in claim.items():
                running = [taken[name] for taken in self._running if taken.get(name)]
                slack = _slack(self._free.get(name, 0.0), running, claimed)
                self._budget[name] = min(self._budget.get(name, 0.0), slack)


def _slack(free: float, running: Iterable[float], claimed: float) -> float:
    """The least that is left over at any moment at which ``claimed`` fits because some of the running jobs have ended.

    Taking no more than that leaves every such moment one at which it fits.
    """
    lacking = round((claimed - free) * _UNIT)
    sums = {0}
    for taken in running:
        sums |= {total + round(taken * _UNIT) for total in sums}
        if len(sums) > _SUMS:
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
