"""Reconcile loop of the queue: poll workers, enforce deadlines, start runnable jobs.

Write-ahead: an event is in the ledger first, then in the state, and only then do workers see it. If the ledger cannot
be written (a full disk), nothing happens, and the next turn tries again.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.actors.ray_state import alive_nodes
from cluster.jobs.failures import Cause, RetryPolicy, next_attempt
from cluster.jobs.job import Failure
from cluster.jobs.ledger import Ledger, log_path
from cluster.jobs.metrics import QueueMetrics
from cluster.jobs.nodes import NodeMonitor, unmet_need
from cluster.jobs.queue_state import Entry, Event, QueueState
from cluster.jobs.scheduler import Amounts, choose_nodes
from cluster.jobs.worker import Call, CallResult
from cluster.jobs.worker_pool import Assignment, AttemptEnded, WorkerPool, WorkerStarted, attempt_key, job_id
from cluster.telemetry.error_text import one_line


class Controller:
    """Ledger, state and workers of the queue. Not thread-safe.

    ``private``: one command started the cluster and ends it. The controller then cancels the unfinished jobs of earlier
    such commands; the present command submits what it needs.
    """

    def __init__(self, folder: Path, cluster: str, private: bool, policy: RetryPolicy) -> None:
        self._folder, self._policy = folder, policy
        self._ledger = Ledger(folder, cluster)
        self.state = QueueState(self._ledger.events)
        self.workers, self._nodes = WorkerPool(), NodeMonitor()
        self._reserved: dict[str, str] = {}
        self._metrics = QueueMetrics(self.state)
        self._messages: list[AttemptEnded | WorkerStarted] = []
        """From workers, not in the ledger yet."""
        try:
            if private:
                self._cancel_leftovers(cluster)
            self._reattach_workers()
        except BaseException:
            self._ledger.close()
            raise

    def write(self, events: Sequence[Event]) -> None:
        """Append events to the ledger, then apply them.

        Raises:
            OSError: the ledger cannot be written; the state is unchanged.
            SupersededError: another queue owns the ledger now.
        """
        if not events:
            return
        stamped = [{"at": time.time(), **event} for event in events]
        self._ledger.append(stamped)
        for event in stamped:
            self.state.apply(event)
            self._metrics.record(self.state.entries.get(event.get("id", "")), event)

    def poll(self, ready: Sequence[Any]) -> None:
        """Collect the messages of workers; ``ready`` are references from :meth:`WorkerPool.pending`."""
        for message in self.workers.poll(ready):
            self._messages.append(message)  # one by one, so that an exception loses none

    def reconcile(self) -> None:
        """One turn of the loop."""
        self._ledger.check()
        ended = {message.key for message in self._messages}
        self._messages += [
            self._lost_worker(entry)
            for entry in self.state.running()
            if not self.workers.knows(entry.worker) and _key(entry) not in ended
        ]
        self.write([event for message in self._messages if (event := self._event(message)) is not None])
        self._messages = []
        self._end_overdue()
        self._fail_dependents()
        if not self.state.draining:
            self._start_jobs()
        self.workers.end_idle()
        self._metrics.update(self.state)

    def stop(self, entries: Sequence[Entry], state: str, error: str, failure: Failure | None) -> None:
        """End waiting or running jobs and their workers."""
        workers = [entry.worker for entry in entries if entry.state == "running"]
        self.write([_ended(entry, state, error, failure) for entry in entries])
        for worker in filter(self.workers.knows, workers):
            self.workers.stop(worker)

    def summary(self, entry: Entry, now: float, nodes: Mapping[str, Amounts]) -> dict[str, Any]:
        """A job as one line of the list, as JSON; ``nodes`` are total resources by node."""
        job = entry.request.job
        return {
            "id": entry.id,
            "name": job.name,
            "state": entry.state,
            "why": self._why(entry, now, nodes),
            "kind": job.kind,
            "user": job.user,
            "priority": entry.priority,
            "attempts": entry.attempts,
            "submitted": entry.submitted,
            "started": entry.started,
            "ended": entry.ended,
            "due": entry.due,
            "seconds": now - entry.started if entry.state == "running" and entry.started else entry.seconds,
            "host": entry.process["host"] if entry.process else "",
            "error": entry.error,
            "failure": entry.failure,
        }

    def _why(self, entry: Entry, now: float, nodes: Mapping[str, Amounts]) -> str:
        """Why a job waits; for other jobs, why the attempt before the last one failed."""
        if entry.state != "waiting":
            return "its worker is starting" if entry.state == "running" and not entry.process else entry.why
        if (before := self.state.pending_dependency(entry)) is not None:
            return f"comes after {before.request.job.name}"
        if entry.not_before > now:
            return f"retries in {entry.not_before - now:.0f} s: {entry.why}"
        if entry.id in self.workers.stopping():
            return "its last worker is ending"
        if self.state.draining:
            return "the queue is drained"
        if (limit := self.state.blocking_limit(entry)) is not None:
            return limit
        if (refusal := unmet_need(entry.request.job, nodes)) is not None:
            return refusal
        return "next on its node" if entry.id in self._reserved else "no node has room"

    def _cancel_leftovers(self, cluster: str) -> None:
        """Cancel the jobs of commands on other private clusters, and end their drain."""
        opened = [event["cluster"] for event in self._ledger.events if event["event"] == "opened"]
        if opened and opened[-1] != cluster:
            self.stop(list(self.state.open.values()), "cancelled", "the command that needed it was interrupted", None)
            if self.state.draining:  # no user can reach this queue to undrain it
                self.write([{"event": "drained", "on": False}])

    def _reattach_workers(self) -> None:
        """Take over the workers of running jobs; end all others."""
        for entry in self.state.running():
            self.workers.reattach(entry.worker, self._task(entry, entry.node), entry.process)
        last = {entry.worker: entry for entry in self.state.entries.values() if entry.worker}
        for name in self.workers.orphaned_workers():
            known = last.get(name)
            if known and known.process and self.workers.reattach(name, self._task(known, known.node), known.process):
                self.workers.stop(name)
            else:
                self.workers.kill(name)

    def _lost_worker(self, entry: Entry) -> AttemptEnded:
        """For a running job whose worker ended with its cluster, or was never created."""
        lost = entry.node not in alive_nodes()
        detail = "the node it ran on is gone" if lost else "its worker was gone when the queue restarted"
        return AttemptEnded(_key(entry), cause="node", detail=detail)

    def _event(self, message: AttemptEnded | WorkerStarted) -> Event | None:
        """The event for a message; None if its attempt is already over."""
        entry = self.state.open.get(job_id(message.key))
        if entry is None or entry.state != "running" or _key(entry) != message.key:
            return None
        if isinstance(message, WorkerStarted):
            return {"event": "placed", "id": entry.id, "about": dict(message.process)}
        if message.result is None:
            assert message.cause is not None, "an attempt ends with a result or a cause"
            return self._attempt_failed(entry, message.cause, message.detail)
        status, error, seconds = message.result.status, message.result.error, message.result.seconds
        if status in ("outage", "memory", "busy"):
            return self._attempt_failed(entry, status, error or "", seconds)
        if status == "user":
            return _ended(entry, "failed", error, "user", seconds)
        return _ended(entry, status, None, None, seconds)

    def _attempt_failed(self, entry: Entry, cause: Cause, detail: str, seconds: float = 0.0) -> Event:
        wait, final = next_attempt(cause, detail, entry.causes[cause] + 1, self._policy)
        if final is not None:
            return _ended(entry, "failed", final, "memory" if cause == "memory" else "cluster", seconds)
        why = f"memory ran out: {detail}" if cause == "memory" else detail
        return {"event": "stopped", "id": entry.id, "cause": cause, "why": why, "until": time.time() + (wait or 0.0)}

    def _end_overdue(self) -> None:
        for entry in self.state.overdue(time.time()):
            limit = f"{entry.request.job.deadline:g} s"
            what = "ran" if entry.state == "running" else f"waited ({entry.why})" if entry.why else "waited"
            self.stop([entry], "failed", f"it still {what} at its deadline, {limit} after submission", "deadline")

    def _fail_dependents(self) -> None:
        while found := list(self.state.failed_dependencies()):
            events = []
            for entry, before in found:
                what = "was cancelled" if before.state == "cancelled" else "failed"
                error = f"it comes after {before.request.job.name}, which {what}"
                events.append(_ended(entry, "failed", error, "dependency"))
            self.write(events)

    def _start_jobs(self) -> None:
        stopping = self.workers.stopping()
        ready = [entry for entry in self.state.ready(time.time()) if entry.id not in stopping]
        if not ready:
            self._reserved = {}
            return
        needs = ((entry.id, entry.need) for entry in self.state.within_limits(ready))
        nodes = self._nodes.usable_nodes(self.workers.held())
        placements = choose_nodes(needs, nodes, self._reserved)
        self._reserved = placements.reserved
        tasks: dict[str, Assignment] = {}
        events: list[Event] = []
        for name, node in placements.starts:
            entry = self.state.entries[name]
            task = Assignment(self._call(entry, entry.attempts + 1), node, entry.need.on(nodes[node]))
            worker = self.workers.pick(node, entry.need.shape, tasks)
            tasks[worker] = task
            events.append({"event": "started", "id": name, "worker": worker, "node": node, "takes": task.amounts})
        self.write(events)
        for worker, task in tasks.items():
            self._assign(worker, task)

    def _assign(self, worker: str, task: Assignment) -> None:
        try:
            started = self.workers.assign(worker, task)
        except (ValueError, TypeError) as error:  # Ray rejects this one; the other jobs of the turn still start
            refused = CallResult("user", 0.0, f"Ray cannot run it: {one_line(error)}")
            self._messages.append(AttemptEnded(task.call.key, refused))
        else:
            self._messages += [] if started is None else [started]

    def _task(self, entry: Entry, node: str) -> Assignment:
        """The latest assignment of a job's worker."""
        return Assignment(self._call(entry, entry.attempts), node, entry.takes)

    def _call(self, entry: Entry, attempt: int) -> Call:
        return Call(
            key=attempt_key(entry.id, entry.number, attempt),
            job=entry.request.job,
            log=log_path(self._folder, entry.id),
            halves=entry.causes["memory"] > 0,
            first=attempt == 1,
        )


def _ended(entry: Entry, state: str, error: str | None, failure: Failure | None, seconds: float | None = None) -> Event:
    """Event for the end of a job; without ``seconds`` the running attempt, if any, is measured up to now."""
    if seconds is None:
        seconds = time.time() - entry.started if entry.state == "running" and entry.started else 0.0
    return {"event": "ended", "id": entry.id, "state": state, "error": error, "failure": failure, "seconds": seconds}


def _key(entry: Entry) -> str:
    return attempt_key(entry.id, entry.number, entry.attempts)
