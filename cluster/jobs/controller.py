"""What the queue does without being asked: hears from workers, ends what is overdue, starts what can start.

An event is in the ledger before it is true for anybody: first it is written, then the book takes it over, then workers
are told. Where nothing can be written (a full disk) nothing is done either, and it is tried again.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.actors.ray_state import alive_nodes
from cluster.jobs import failures
from cluster.jobs.failures import RetryPolicy
from cluster.jobs.job import Failure
from cluster.jobs.ledger import Ledger, log_path
from cluster.jobs.metrics import Series
from cluster.jobs.nodes import Nodes, unmet_need
from cluster.jobs.queue_state import Entry, Event, QueueState
from cluster.jobs.scheduler import Amounts, choose_nodes
from cluster.jobs.worker import Call, Ended
from cluster.jobs.worker_pool import AttemptResult, Placed, Task, WorkerPool, job_of, key_of
from cluster.telemetry.error_text import one_line


class Controller:
    """The queue's ledger, book and workers; used by one thread at a time.

    ``private``: the cluster was started for one command and ends with it. What an earlier such command has left undone
    is then not taken up: the command that is running now asks for what it wants.
    """

    def __init__(self, folder: Path, cluster: str, private: bool, patience: RetryPolicy) -> None:
        self._folder, self._patience = folder, patience
        self._ledger = Ledger(folder, cluster)
        self.book = QueueState(self._ledger.events)
        self.crew, self._nodes = WorkerPool(), Nodes()
        self.promised: dict[str, str] = {}
        self._series = Series(self.book)
        self._heard: list[AttemptResult | Placed] = []
        """What workers said and what is not in the ledger yet."""
        try:
            if private:
                self._forget_others(cluster)
            self._find_workers()
        except BaseException:
            self._ledger.close()
            raise

    def write(self, events: Sequence[Event]) -> None:
        """Make events true.

        Raises:
            OSError: they cannot be written, and are not true.
            SupersededError: another queue keeps the ledger now.
        """
        if not events:
            return
        stamped = [{"at": time.time(), **event} for event in events]
        self._ledger.append(stamped)
        for event in stamped:
            self.book.apply(event)
            self._series.count(self.book.entries.get(event.get("id", "")), event)

    def hear(self, ready: Sequence[Any]) -> None:
        """Take in what workers have answered."""
        for heard in self.crew.hear(ready):
            self._heard.append(heard)  # one by one: what was heard before an error is not lost

    def turn(self) -> None:
        """Do all there is to do now."""
        self._ledger.check()
        told = {heard.key for heard in self._heard}
        lost = [entry for entry in self.book.running() if not self.crew.has(entry.worker) and _key(entry) not in told]
        self._heard += map(self._missing, lost)
        self.write([event for heard in self._heard if (event := self._event(heard)) is not None])
        self._heard = []
        self._end_overdue()
        self._end_orphans()
        if not self.book.draining:
            self._start()
        self.crew.end_idle()
        self._series.show(self.book)

    def stop(self, entries: Sequence[Entry], state: str, error: str, failure: Failure | None) -> None:
        """End jobs that wait or run, with their workers."""
        workers = [entry.worker for entry in entries if entry.state == "running"]
        self.write([ended(entry, state, error, failure) for entry in entries])
        for worker in filter(self.crew.has, workers):
            self.crew.stop(worker)

    def _forget_others(self, cluster: str) -> None:
        """Cancel what commands on other clusters have left undone."""
        opened = [event["cluster"] for event in self._ledger.events if event["event"] == "opened"]
        if opened and opened[-1] != cluster:
            self.stop(list(self.book.open.values()), "cancelled", "the command that wanted it was interrupted", None)
            if self.book.draining:  # nobody could reach this queue to end that
                self.write([{"event": "drained", "on": False}])

    def _find_workers(self) -> None:
        """Take over the workers of running jobs; end those that no job needs any more."""
        for entry in self.book.running():
            self.crew.adopt(entry.worker, self._task(entry, entry.node), entry.about)
        last = {entry.worker: entry for entry in self.book.entries.values() if entry.worker}
        for name in self.crew.strays():
            known = last.get(name)
            if known and known.about and self.crew.adopt(name, self._task(known, known.node), known.about):
                self.crew.stop(name)
            else:
                self.crew.dismiss(name)

    def _missing(self, entry: Entry) -> AttemptResult:
        """For a job that runs, says the ledger, but whose worker went with its cluster, or was never made."""
        lost = entry.node not in alive_nodes()
        detail = "the node it ran on is gone" if lost else "its worker was gone when the queue looked for it"
        return AttemptResult(_key(entry), cause="node", detail=detail)

    def _event(self, heard: AttemptResult | Placed) -> Event | None:
        """What follows from what a worker said; nothing from what belongs to an attempt that is over."""
        entry = self.book.open.get(job_of(heard.key))
        if entry is None or entry.state != "running" or _key(entry) != heard.key:
            return None
        if isinstance(heard, Placed):
            return {"event": "placed", "id": entry.id, "about": dict(heard.about)}
        if heard.ended is None:
            assert heard.cause is not None, "an attempt has ended or come to nothing"
            return self._stopped(entry, heard.cause, heard.detail)
        result, error = heard.ended.result, heard.ended.error
        if result in ("outage", "memory", "busy"):
            return self._stopped(entry, result, error or "", heard.ended.seconds)
        if result == "user":
            return ended(entry, "failed", error, "user", heard.ended.seconds)
        return ended(entry, result, None, None, heard.ended.seconds)

    def _stopped(self, entry: Entry, cause: failures.Cause, detail: str, seconds: float = 0.0) -> Event:
        times = entry.causes[cause] + 1
        wait, final = failures.after(cause, detail, times, self._patience)
        if final is not None:
            return ended(entry, "failed", final, "memory" if cause == "memory" else "cluster", seconds)
        why = f"memory ran out: {detail}" if cause == "memory" else detail
        return {"event": "stopped", "id": entry.id, "cause": cause, "why": why, "until": time.time() + (wait or 0.0)}

    def _end_overdue(self) -> None:
        for entry in self.book.overdue(time.time()):
            limit = f"{entry.request.job.deadline:g} s"
            what = "ran" if entry.state == "running" else f"waited ({entry.why})" if entry.why else "waited"
            self.stop([entry], "failed", f"it still {what} at its deadline, {limit} after its submission", "deadline")

    def _end_orphans(self) -> None:
        while orphans := list(self.book.orphans()):
            events = []
            for entry, before in orphans:
                what = "was cancelled" if before.state == "cancelled" else "failed"
                error = f"{before.request.job.name} {what}, which comes before it"
                events.append(ended(entry, "failed", error, "dependency"))
            self.write(events)

    def _start(self) -> None:
        stopping = self.crew.stopping()
        ready = [entry for entry in self.book.ready(time.time()) if entry.id not in stopping]
        if not ready:
            self.promised = {}
            return
        line = ((entry.id, entry.need) for entry in self.book.within_limits(ready))
        nodes = self._nodes.look(self.crew.held())
        plan = choose_nodes(line, nodes, self.promised)
        self.promised = plan.promised
        begun: list[tuple[str, Task]] = []
        events: list[Event] = []
        for name, node in plan.starts:
            entry = self.book.entries[name]
            task = Task(self._call(entry, entry.attempts + 1), node, entry.need.on(nodes[node]), entry.need)
            begun.append((self.crew.pick(node, entry.need.shape, [worker for worker, _ in begun]), task))
            events.append({"event": "started", "id": name, "worker": begun[-1][0], "node": node, "takes": task.amounts})
        self.write(events)
        for worker, task in begun:
            self._give(worker, task)

    def _give(self, worker: str, task: Task) -> None:
        try:
            placed = self.crew.give(worker, task)
        except (ValueError, TypeError) as error:  # Ray will not have it; those begun beside it are not to suffer
            refused = Ended("user", 0.0, f"the queue cannot run it: {one_line(error)}")
            self._heard.append(AttemptResult(task.call.key, refused))
        else:
            self._heard += [placed] if placed is not None else []

    def _task(self, entry: Entry, node: str) -> Task:
        """What a running or ended job's worker was given."""
        return Task(self._call(entry, entry.attempts), node, entry.takes, entry.need)

    def _call(self, entry: Entry, attempt: int) -> Call:
        job = entry.request.job
        return Call(
            key=key_of(entry.id, entry.number, attempt),
            name=job.name,
            stage=job.stage,
            recipe=job.recipe,
            inputs={role: str(place) for role, place in job.inputs.items()},
            out=str(job.out),
            cwd=str(job.cwd),
            log=str(log_path(self._folder, entry.id)),
            cpus=job.cpus,
            gpus=job.gpus,
            alone=job.alone,
            halves=entry.causes["memory"] > 0,
            first=attempt == 1,
        )


def ended(entry: Entry, state: str, error: str | None, failure: Failure | None, seconds: float | None = None) -> Event:
    """That a job has ended; without ``seconds`` it had no attempt, or one that was cut short."""
    if seconds is None:
        seconds = time.time() - entry.started if entry.state == "running" and entry.started else 0.0
    return {
        "event": "ended",
        "id": entry.id,
        "state": state,
        "error": error,
        "failure": failure,
        "seconds": seconds,
    }


def _key(entry: Entry) -> str:
    return key_of(entry.id, entry.number, entry.attempts)


def line(keeper: Controller, entry: Entry, now: float, nodes: Mapping[str, Amounts]) -> dict[str, Any]:
    """A job in short, as JSON."""
    job = entry.request.job
    return {
        "id": entry.id,
        "name": job.name,
        "state": entry.state,
        "why": _why(keeper, entry, now, nodes),
        "kind": job.kind,
        "user": job.user,
        "priority": entry.priority,
        "attempts": entry.attempts,
        "submitted": entry.at,
        "started": entry.started,
        "ended": entry.ended,
        "due": entry.due,
        "seconds": now - entry.started if entry.state == "running" and entry.started else entry.seconds,
        "host": entry.about["host"] if entry.about else "",
        "error": entry.error,
        "failure": entry.failure,
    }


def _why(keeper: Controller, entry: Entry, now: float, nodes: Mapping[str, Amounts]) -> str:
    """Why a job waits, in words; of others, why their last attempt but one came to nothing."""
    if entry.state != "waiting":
        return "its worker is being started" if entry.state == "running" and not entry.about else entry.why
    if (before := keeper.book.awaited(entry)) is not None:
        return f"comes after {before.request.job.name}"
    if entry.until > now:
        return f"tried again in {entry.until - now:.0f} s: {entry.why}"
    if entry.id in keeper.crew.stopping():
        return "its last worker is being ended"
    if keeper.book.draining:
        return "the queue is drained"
    if (limit := keeper.book.held_by(entry)) is not None:
        return limit
    if (refusal := unmet_need(entry.request.job, nodes)) is not None:
        return refusal
    return "next for its node" if entry.id in keeper.promised else "waits for room"
