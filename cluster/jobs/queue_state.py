"""State of the queue: the result of applying the ledger's events in order.

Events: ``submitted``, ``started`` (an attempt), ``placed`` (its worker runs), ``stopped`` (the attempt failed and the
job waits again), ``ended``, ``raised`` (priority), ``drained``, ``limited``, ``served`` (metrics port).
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from cluster.jobs.job import GOOD, OPEN, Failure, Outcome, Request, State
from cluster.jobs.scheduler import Need
from cluster.jobs.worker import WorkerProcess
from cluster.telemetry.formatting import plain

Event = Mapping[str, Any]

_OPTIONS = ("cpus", "gpus", "resources", "alone", "deadline", "after")


@dataclass
class Entry:
    """A job in the queue. A new submission of a job that has ended gets a new entry."""

    request: Request
    number: int
    """Position among jobs of the same priority."""
    submitted: float
    due: float | None
    """Unix time of the deadline."""
    priority: int
    state: State = "waiting"
    attempts: int = 0
    causes: Counter[str] = field(default_factory=Counter)
    """Failed attempts by cause."""
    not_before: float = 0.0
    """Unix time of the next attempt at the earliest."""
    why: str = ""
    """Why the last attempt failed."""
    worker: str = ""
    node: str = ""
    takes: Mapping[str, float] = field(default_factory=dict)
    """Resources allocated on the node."""
    process: WorkerProcess | None = None
    started: float | None = None
    ended: float | None = None
    seconds: float = 0.0
    error: str | None = None
    failure: Failure | None = None
    history: list[tuple[float, str]] = field(default_factory=list)

    @property
    def id(self) -> str:
        return self.request.id

    @property
    def need(self) -> Need:
        return self.request.job.need

    def outcome(self, log: str) -> Outcome:
        assert self.state not in OPEN, f"{self.id} is {self.state}"
        name = self.request.job.name
        state: Any = self.state
        return Outcome(name, state, self.seconds, self.error, log, self.id, self.attempts, self.failure)


class QueueState:
    """All jobs by id, the limits, and whether the queue is drained."""

    def __init__(self, events: Iterable[Event] = ()) -> None:
        self.entries: dict[str, Entry] = {}
        self.open: dict[str, Entry] = {}
        """Waiting and running jobs, in queue order."""
        self.kinds: set[str] = set()
        self.draining = False
        self.port: int | None = None
        """Port of the metrics."""
        self.limits: dict[str, dict[str, int]] = {"user": {}, "kind": {}}
        self._number = 0
        for event in events:
            self.apply(event)

    def apply(self, event: Event) -> None:
        match event["event"]:
            case "submitted":
                for values in event["requests"]:
                    self._add(Request.of(values), event["at"])
                self._sort()
            case "raised":
                self.entries[event["id"]].priority = event["priority"]
                self._sort()
            case "drained":
                self.draining = event["on"]
            case "served":
                self.port = event["port"]
            case "limited":
                self.limits = {word: dict(event[word]) for word in ("user", "kind")}
            case "started" | "placed" | "stopped" | "ended":
                self._change(self.entries[event["id"]], event)

    def ready(self, now: float) -> list[Entry]:
        """Jobs that could start now, in queue order, before limits."""
        return [
            entry
            for entry in self.open.values()
            if entry.state == "waiting" and entry.not_before <= now and self.pending_dependency(entry) is None
        ]

    def running(self) -> list[Entry]:
        return [entry for entry in self.open.values() if entry.state == "running"]

    def pending_dependency(self, entry: Entry) -> Entry | None:
        """The first job of ``after`` that is not done."""
        before = (self.entries[name] for name in entry.request.job.after)
        return next((known for known in before if known.state not in GOOD), None)

    def failed_dependencies(self) -> Iterator[tuple[Entry, Entry]]:
        """Waiting jobs, each with a failed or cancelled job of its ``after``."""
        for entry in self.open.values():
            for name in entry.request.job.after if entry.state == "waiting" else ():
                if self.entries[name].state in ("failed", "cancelled"):
                    yield entry, self.entries[name]
                    break

    def overdue(self, now: float) -> list[Entry]:
        return [entry for entry in self.open.values() if (entry.due or math.inf) <= now]

    def within_limits(self, entries: Iterable[Entry]) -> Iterator[Entry]:
        """Ready jobs that the limits let start, assuming that every earlier one starts."""
        running = self._running_by_limit()
        for entry in entries:
            if self.blocking_limit(entry, running) is None:
                yield entry
                for word, count in running.items():
                    count[_party(entry, word)] += not entry.need.needs_nothing

    def blocking_limit(self, entry: Entry, running: Mapping[str, Mapping[str, int]] | None = None) -> str | None:
        """The limit that blocks this job, or None. Jobs without resources are exempt."""
        if entry.need.needs_nothing:
            return None
        running = running or self._running_by_limit()
        for word, limits in self.limits.items():
            party = _party(entry, word)
            limit = limits.get(party, limits.get("*"))
            if limit is not None and running[word].get(party, 0) >= limit:
                return f"{word} {party} may run {limit} at a time"
        return None

    def _running_by_limit(self) -> dict[str, Counter[str]]:
        counted = [entry for entry in self.running() if not entry.need.needs_nothing]
        return {word: Counter(_party(entry, word) for entry in counted) for word in ("user", "kind")}

    def conflicting_job(self, request: Request) -> Entry | None:
        """A waiting or running job that would make something else at the same location."""
        out = request.makes["out"]
        others = (entry for entry in self.open.values() if entry.id != request.id)
        return next((entry for entry in others if entry.request.makes["out"] == out), None)

    def has_cycle(self, request: Request, new: Mapping[str, Request]) -> bool:
        """Whether the job would depend on itself; ``new`` are requests not yet in the queue."""
        waiting, seen = list(request.job.after), set[str]()
        while waiting:
            name = waiting.pop()
            if name == request.id:
                return True
            if name not in seen:
                seen.add(name)
                known = new[name] if name in new else self.entries[name].request
                waiting += known.job.after
        return False

    def dependents(self, entry: Entry) -> list[Entry]:
        """Jobs that failed only because this one did, in order of their dependencies."""
        left = [other for other in self.entries.values() if other.failure == "dependency"]
        found = [entry]
        for before in found:  # the loop appends to the list it reads
            found += [other for other in left if before.id in other.request.job.after]
            left = [other for other in left if before.id not in other.request.job.after]
        return found[1:]

    def _add(self, request: Request, at: float) -> None:
        self._number += 1
        due = None if request.job.deadline is None else at + request.job.deadline
        before = self.entries.pop(request.id, None)
        entry = Entry(request, self._number, at, due, request.job.priority)
        entry.history = [*(before.history if before else ()), (at, f"submitted by {request.job.user}")]
        self.entries[request.id] = self.open[request.id] = entry
        self.kinds.add(request.job.kind)

    def _sort(self) -> None:
        ordered = sorted(self.open.values(), key=lambda entry: (-entry.priority, entry.number))
        self.open = {entry.id: entry for entry in ordered}

    def _change(self, entry: Entry, event: Event) -> None:
        match event["event"]:
            case "started":
                entry.state, entry.started, entry.process = "running", event["at"], None
                entry.worker, entry.node, entry.takes = event["worker"], event["node"], event["takes"]
                entry.attempts += 1
                what = f"attempt {entry.attempts} starts"
            case "placed":
                entry.process = event["about"]
                what = f"runs on {event['about']['host']}, process {event['about']['process']}"
            case "stopped":
                entry.state, entry.not_before, entry.why = "waiting", event["until"], event["why"]
                entry.causes[event["cause"]] += 1
                what = f"attempt {entry.attempts} failed: {entry.why}"
            case _:
                entry.state, entry.error, entry.failure = event["state"], event["error"], event["failure"]
                entry.seconds, entry.ended = event["seconds"], event["at"]
                what = f"{entry.state}: {entry.error}" if entry.error else entry.state
                self.open.pop(entry.id, None)
        entry.history.append((event["at"], what))


def changed_options(entry: Entry, request: Request) -> str:
    """Scheduling options in which a resubmission differs from the job in the queue; empty if it does not."""
    job, asked = entry.request.job, request.job
    options = [(name, getattr(job, name), getattr(asked, name)) for name in _OPTIONS]
    return ", ".join(f"{name} is {_text(kept)}, not {_text(new)}" for name, kept, new in options if kept != new)


def _text(option: Any) -> str:
    return plain([*option] if isinstance(option, tuple) else option) if option not in (None, (), {}) else "none"


def _party(entry: Entry, word: str) -> str:
    """The user or kind that a limit counts this job under."""
    return str(getattr(entry.request.job, word))
