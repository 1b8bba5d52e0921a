"""Free resources per node, on a cluster that the queue shares with trainings and other users.

Ray's free amounts are about a second old: they miss workers that have just started and still count workers that have
just ended. So the share of others is only known to lie between two bounds; within them the last estimate stays.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from cluster.actors.ray_state import alive_nodes, draining_nodes, free_resources
from cluster.jobs.job import Job
from cluster.jobs.scheduler import Amounts, Need, Node, allowed_nodes

SETTLED_SECONDS = 1.0
"""Age at which Ray's free amounts account for the start or the end of a worker."""


@dataclass(frozen=True)
class HeldResources:
    """Resources that a worker of the queue holds."""

    node: str
    amounts: Amounts
    settled: bool
    """Ray's free amounts account for the worker."""
    state: str
    """``busy``, ``idle`` (the queue may end it) or ``gone`` (ended a moment ago)."""
    need: Need


class NodeMonitor:
    """Estimates what other users hold, from one call to the next."""

    def __init__(self) -> None:
        self._others: dict[str, dict[str, float]] = {}

    def usable_nodes(self, held: Iterable[HeldResources]) -> dict[str, Node]:
        """Nodes on which a job may start now, by Ray's id."""
        totals = alive_nodes()
        free = free_resources()
        ours: dict[str, list[HeldResources]] = {}
        for one in held:
            ours.setdefault(one.node, []).append(one)
        self._others = {
            name: self._held_by_others(name, totals[name], free.get(name, {}), ours.get(name, ())) for name in totals
        }
        staying = totals.keys() - draining_nodes()
        return {name: _node(totals[name], self._others[name], ours.get(name, ())) for name in staying}

    def _held_by_others(
        self, name: str, total: Amounts, free: Amounts, held: Sequence[HeldResources]
    ) -> dict[str, float]:
        known = self._others.get(name, {})
        found: dict[str, float] = {}
        for word, whole in total.items():
            used = whole - free.get(word, 0.0)
            certain = sum(one.amounts.get(word, 0.0) for one in held if one.settled and one.state != "gone")
            possible = sum(one.amounts.get(word, 0.0) for one in held)
            most, least = max(0.0, used - certain), max(0.0, used - possible)
            found[word] = min(max(known.get(word, most), least), most)
        return found


def unmet_need(job: Job, nodes: Mapping[str, Amounts]) -> str | None:
    """Why no node could run the job even if it were empty; None if one could."""
    totals = {name: nodes[name] for name in allowed_nodes(job.need, nodes)}
    if any(job.need.could_run_on(Node(total, total)) for total in totals.values()):
        return None
    named = list(job.resources)
    needs = _text(job.need.amounts, named) + (", and a node to itself" if job.alone else "")
    there = ", ".join(_text(total, named) for total in totals.values()) or "none: all are kept for measurements"
    return f"needs {needs} on one node, the nodes have {there}"


def now() -> float:
    """Clock for the ages of workers."""
    return time.monotonic()


def _node(total: Amounts, others: Amounts, held: Sequence[HeldResources]) -> Node:
    busy = [one for one in held if one.state == "busy"]
    free = {
        word: max(0.0, whole - others.get(word, 0.0) - sum(one.amounts.get(word, 0.0) for one in busy))
        for word, whole in total.items()
    }
    warm = frozenset(one.need.shape for one in held if one.state == "idle")
    return Node(total, free, [one.amounts for one in busy], any(one.need.alone for one in busy), warm)


def _text(amounts: Amounts, named: Sequence[str]) -> str:
    words = [f"{amounts.get('CPU', 0):g} CPUs", f"{amounts.get('GPU', 0):g} GPUs"]
    words += [f"{amounts.get(word, 0):g} {word}" for word in named]
    return f"{', '.join(words[:-1])} and {words[-1]}"
