"""What the nodes of a Ray cluster have free for jobs, where other people and trainings take their share too.

Ray says what is free a moment late: a worker that was just asked for is not counted yet, one that was just ended still
is. What others hold lies between what follows from counting all of those and none; within that it is remembered.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from cluster.actors.ray_state import alive_nodes, draining_nodes, free_resources
from cluster.jobs.job import Job
from cluster.jobs.scheduler import Amounts, Node, Shape, allowed

SETTLED_SECONDS = 1.0
"""After which Ray counts a worker that runs, and no longer counts one that has ended."""


@dataclass(frozen=True)
class Held:
    """What a worker of the queue holds."""

    node: str
    amounts: Amounts
    certain: bool
    """Ray counts it by now."""
    state: str
    """``busy``, ``idle`` (may be given away) or ``gone`` (ended a moment ago)."""
    exclusive: bool
    shape: Shape


class Nodes:
    """The nodes, looked at again and again."""

    def __init__(self) -> None:
        self._others: dict[str, dict[str, float]] = {}

    def look(self, held: Iterable[Held]) -> dict[str, Node]:
        """Nodes on which something may start now, by Ray's id."""
        totals = alive_nodes()
        free = free_resources()
        mine: dict[str, list[Held]] = {}
        for one in held:
            mine.setdefault(one.node, []).append(one)
        self._others = {
            name: self._taken(name, totals[name], free.get(name, {}), mine.get(name, ())) for name in totals
        }
        staying = totals.keys() - draining_nodes()
        return {name: _node(totals[name], self._others[name], mine.get(name, ())) for name in staying}

    def _taken(self, name: str, total: Amounts, free: Amounts, held: Sequence[Held]) -> dict[str, float]:
        """What others hold there."""
        known = self._others.get(name, {})
        found: dict[str, float] = {}
        for word, whole in total.items():
            used = whole - free.get(word, 0.0)
            certainly = sum(one.amounts.get(word, 0.0) for one in held if one.certain and one.state != "gone")
            possibly = sum(one.amounts.get(word, 0.0) for one in held)
            most, least = max(0.0, used - certainly), max(0.0, used - possibly)
            found[word] = min(max(known.get(word, most), least), most)
        return found


def unmet_need(job: Job, nodes: Mapping[str, Amounts]) -> str | None:
    """Why no node could ever run a job, were it empty; None where one could."""
    totals = {name: nodes[name] for name in allowed(job.need, nodes)}
    if any(job.need.could_run_on(Node(total, total)) for total in totals.values()):
        return None
    named = list(job.resources)
    needs = _words(job.need.amounts, named) + (", and a node to itself" if job.alone else "")
    there = ", ".join(_words(total, named) for total in totals.values()) or "none of it: all are kept for measurements"
    return f"needs {needs} on one node, the nodes have {there}"


def now() -> float:
    """The clock that workers' ages are measured with."""
    return time.monotonic()


def _node(total: Amounts, others: Amounts, held: Sequence[Held]) -> Node:
    busy = [one for one in held if one.state == "busy"]
    free = {
        word: max(0.0, whole - others.get(word, 0.0) - sum(one.amounts.get(word, 0.0) for one in busy))
        for word, whole in total.items()
    }
    warm = frozenset(one.shape for one in held if one.state == "idle")
    return Node(total, free, [one.amounts for one in busy], any(one.exclusive for one in busy), warm)


def _words(amounts: Amounts, named: Sequence[str]) -> str:
    words = [f"{amounts.get('CPU', 0):g} CPUs", f"{amounts.get('GPU', 0):g} GPUs"]
    words += [f"{amounts.get(word, 0):g} {word}" for word in named]
    return f"{', '.join(words[:-1])} and {words[-1]}"
