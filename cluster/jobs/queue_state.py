"""What the queue knows of every job: the ledger's events applied one after another, and nothing else.

Events: ``submitted``, ``started`` (an attempt begins), ``placed`` (its worker runs), ``stopped`` (the attempt came to
nothing, the job waits again), ``ended``, ``raised`` (somebody asks for the job with a higher priority), ``drained``,
``limited``, ``served``.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from cluster.artifacts import artifact
from cluster.jobs.job import GOOD, OPEN, Failure, Outcome, Request, State
from cluster.jobs.scheduler import Need

Event = Mapping[str, Any]


@dataclass
class Entry:
    """A job in the book. Asked for again after it has ended, it gets a new one."""

    request: Request
    number: int
    """Its place in the line, among jobs of the same priority."""
    at: float
    due: float | None
    """Unix time of its deadline."""
    priority: int
    state: State = "waiting"
    attempts: int = 0
    causes: Counter[str] = field(default_factory=Counter)
    """How often attempts came to nothing, by cause."""
    until: float = 0.0
    """Unix time before which it is not tried again."""
    why: str = ""
    """Why the last attempt came to nothing."""
    worker: str = ""
    node: str = ""
    takes: Mapping[str, float] = field(default_factory=dict)
    """What it was given of its node."""
    about: Mapping[str, Any] | None = None
    """Where its worker runs."""
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
        assert self.state not in OPEN, "it has not ended"
        name = self.request.job.name
        return Outcome(
            name,
            self.state,  # type: ignore[arg-type]  # not an open one, as was just asserted
            self.seconds,
            self.error,
            log,
            self.id,
            self.attempts,
            self.failure,
        )


class QueueState:
    """All jobs, by id."""

    def __init__(self, events: Iterable[Event] = ()) -> None:
        self.entries: dict[str, Entry] = {}
        self.open: dict[str, Entry] = {}
        """Those that wait or run, in the order of the line."""
        self.kinds: set[str] = set()
        self.draining = False
        self.port: int | None = None
        """Where metrics are served."""
        self.limits: dict[str, dict[str, int]] = {"user": {}, "kind": {}}
        self._number = 0
        for event in events:
            self.apply(event)

    def apply(self, event: Event) -> None:
        """Take over one event."""
        match event["event"]:
            case "submitted":
                for values in event["requests"]:
                    self._add(Request.of(values), event["at"])
                self._order()
            case "raised":
                self.entries[event["id"]].priority = event["priority"]
                self._order()
            case "drained":
                self.draining = event["on"]
            case "served":
                self.port = event["port"]
            case "limited":
                self.limits = {word: dict(event[word]) for word in ("user", "kind")}
            case "started" | "placed" | "stopped" | "ended":
                self._change(self.entries[event["id"]], event)

    def ready(self, now: float) -> list[Entry]:
        """What could start now, in order, limits left aside."""
        return [
            entry
            for entry in self.open.values()
            if entry.state == "waiting" and entry.until <= now and self.awaited(entry) is None
        ]

    def running(self) -> list[Entry]:
        return [entry for entry in self.open.values() if entry.state == "running"]

    def awaited(self, entry: Entry) -> Entry | None:
        """The first job it comes after that is not done."""
        before = (self.entries[name] for name in entry.request.job.after)
        return next((known for known in before if known.state not in GOOD), None)

    def orphans(self) -> Iterator[tuple[Entry, Entry]]:
        """Waiting jobs with the failed or cancelled one each comes after."""
        for entry in self.open.values():
            for name in entry.request.job.after if entry.state == "waiting" else ():
                if self.entries[name].state in ("failed", "cancelled"):
                    yield entry, self.entries[name]
                    break

    def overdue(self, now: float) -> list[Entry]:
        return [entry for entry in self.open.values() if (entry.due or math.inf) <= now]

    def within_limits(self, entries: Iterable[Entry]) -> Iterator[Entry]:
        """Those of the ready jobs that may start beside the running ones, were all those before them to start."""
        running = self._parties()
        for entry in entries:
            if self.held_by(entry, running) is None:
                yield entry
                for word, count in running.items():
                    count[_party(entry, word)] += not entry.need.looks_on

    def held_by(self, entry: Entry, running: Mapping[str, Mapping[str, int]] | None = None) -> str | None:
        """The limit that keeps a job waiting, in words; none does that only looks on, nor does one count."""
        if entry.need.looks_on:
            return None
        running = running or self._parties()
        for word, limits in self.limits.items():
            party = _party(entry, word)
            limit = limits.get(party, limits.get("*"))
            if limit is not None and running[word].get(party, 0) >= limit:
                return f"{word} {party} may run {limit} at a time"
        return None

    def _parties(self) -> dict[str, Counter[str]]:
        """How many jobs of each user and each kind run."""
        counted = [entry for entry in self.running() if not entry.need.looks_on]
        return {word: Counter(_party(entry, word) for entry in counted) for word in ("user", "kind")}

    def rival(self, request: Request) -> Entry | None:
        """A waiting or running job that would make something else at the same place."""
        place = request.makes["out"]
        rivals = (entry for entry in self.open.values() if entry.id != request.id)
        return next((entry for entry in rivals if entry.request.makes["out"] == place), None)

    def circle(self, request: Request, new: Mapping[str, Request]) -> bool:
        """Whether a job would wait for itself, by way of those it comes after; ``new`` are about to come."""
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

    def heirs(self, entry: Entry) -> list[Entry]:
        """Those that failed only because this one did, each after those it comes after."""
        left = [other for other in self.entries.values() if other.failure == "dependency"]
        found = [entry]
        for before in found:  # it grows
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

    def _order(self) -> None:
        line = sorted(self.open.values(), key=lambda entry: (-entry.priority, entry.number))
        self.open = {entry.id: entry for entry in line}

    def _change(self, entry: Entry, event: Event) -> None:
        at = event["at"]
        match event["event"]:
            case "started":
                entry.state, entry.started = "running", at
                entry.attempts += 1
                entry.worker, entry.node, entry.takes, entry.about = (
                    event["worker"],
                    event["node"],
                    event["takes"],
                    None,
                )
                entry.history.append((at, f"attempt {entry.attempts} starts"))
            case "placed":
                entry.about = event["about"]
                entry.history.append((at, f"runs on {entry.about['host']}, process {entry.about['process']}"))
            case "stopped":
                entry.state, entry.until, entry.why = "waiting", event["until"], event["why"]
                entry.causes[event["cause"]] += 1
                entry.history.append((at, f"attempt {entry.attempts} came to nothing: {entry.why}"))
            case "ended":
                entry.state, entry.error, entry.failure = event["state"], event["error"], event["failure"]
                entry.seconds, entry.ended = event["seconds"], at
                entry.history.append((at, f"{entry.state}{f': {entry.error}' if entry.error else ''}"))
                self.open.pop(entry.id, None)


def difference(entry: Entry, request: Request) -> str:
    """What separates a job from another one for the same place, in words."""
    found = artifact.first_difference(dict(entry.request.makes), dict(request.makes))
    return found or "it was described in other words"


def unlike(entry: Entry, request: Request) -> str:
    """What somebody who joins a job asks for otherwise than it was submitted, in words; empty where nothing."""
    job, asked = entry.request.job, request.job
    told = {
        "cpus": (f"{job.cpus:g}", f"{asked.cpus:g}"),
        "gpus": (f"{job.gpus:g}", f"{asked.gpus:g}"),
        "resources": (str(dict(job.resources)), str(dict(asked.resources))),
        "alone": (str(job.alone).lower(), str(asked.alone).lower()),
        "deadline": (str(job.deadline), str(asked.deadline)),
        "after": (", ".join(job.after) or "nothing", ", ".join(asked.after) or "nothing"),
    }
    return ", ".join(f"{word} is {kept}, not {other}" for word, (kept, other) in told.items() if kept != other)


def _party(entry: Entry, word: str) -> str:
    return str(getattr(entry.request.job, word))
