"""The queue: a named, detached, restartable Ray actor.

The ledger holds all of its state. When the actor dies, Ray restarts it; it reads the ledger, re-attaches the workers of
running jobs by name, and continues.
"""

import os
import threading
import time
import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray

from cluster.actors.ray_state import alive_nodes
from cluster.artifacts import artifact, errors
from cluster.jobs.controller import Controller
from cluster.jobs.failures import RetryPolicy
from cluster.jobs.job import OPEN, Request
from cluster.jobs.ledger import LedgerInUseError, SupersededError, log_path
from cluster.jobs.nodes import unmet_need
from cluster.jobs.queue_state import Entry, Event, changed_options
from cluster.telemetry import exporter

TICK_SECONDS = 0.2
RETRY_SECONDS = 2.0
"""Between attempts to open the ledger."""
READ_BYTES = 2**16
"""Most bytes of a log in one reply."""
PORT = "STILLHOUSE_JOBS_PORT"
"""Environment variable of the metrics port, for queues that start on demand."""


class NotReadyError(errors.StageError):
    """The queue does not own its ledger yet; it keeps trying."""


class JobQueue:
    """The actor. A thread runs the reconcile loop; the methods answer clients with JSON values."""

    def __init__(self, folder: str, private: bool, policy: RetryPolicy) -> None:
        self._folder, self._private, self._policy = Path(folder), private, policy
        self._lock = threading.RLock()
        self._opened: Controller | None = None
        self._trouble, self._temporary = "", False
        self._served: int | None = None
        with self._lock:
            self._open()
        threading.Thread(target=self._work, daemon=True, name="queue").start()

    def ledger(self) -> str:
        """Folder of the ledger."""
        return str(self._folder)

    def unready(self) -> tuple[str, bool]:
        """Why the queue has no ledger (empty if it has), and whether waiting may help."""
        with self._lock:
            return (self._trouble, self._temporary) if self._opened is None else ("", False)

    def about(self) -> dict[str, Any]:
        """Ledger, process, limits, problems, and the number of jobs by state."""
        with self._lock:
            state = self._controller.state
            return {
                "ledger": str(self._folder),
                "process": os.getpid(),
                "draining": state.draining,
                "limits": state.limits,
                "metrics_port": state.port,
                "trouble": self._trouble,
                "counts": dict(Counter(entry.state for entry in state.entries.values())),
            }

    def submit(self, requests: Sequence[Mapping[str, Any]]) -> list[tuple[str, int, str]]:
        """Accept all jobs or none. A job that waits or runs already stays as it is, except for a higher priority.

        Returns per job its id, the size of its log, and how a job already in the queue differs from the request.

        Raises:
            StageError: a job could never run, or conflicts with another one.
        """
        with self._lock:
            controller = self._controller
            known = controller.state.open
            wanted = [Request.of(values) for values in requests]
            joined = [request for request in wanted if request.id in known]
            new = [request for request in wanted if request.id not in known]
            self._check(new)
            events: list[Event] = [
                {"event": "raised", "id": request.id, "priority": request.job.priority}
                for request in joined
                if request.job.priority > known[request.id].priority
            ]
            if new:
                events.append({"event": "submitted", "requests": [request.resolved() for request in new]})
            changed = {request.id: changed_options(known[request.id], request) for request in joined}
            controller.write(events)
            sizes = {request.id: self._read_log(request.id, None)["offset"] for request in wanted}
            return [(request.id, sizes[request.id], changed.get(request.id, "")) for request in wanted]

    def look(self, offsets: Mapping[str, int | None]) -> dict[str, Any]:
        """State, outcome if ended, and output since an offset (None: no output) of each job."""
        with self._lock:
            entries = [self._entry(name) for name in offsets]
            found: dict[str, Any] = {}
            for entry, offset in zip(entries, offsets.values(), strict=True):
                log = str(log_path(self._folder, entry.id))
                outcome = None if entry.state in OPEN else entry.outcome(log).resolved()
                found[entry.id] = {"state": entry.state, "outcome": outcome, "text": "", "offset": offset}
        for name, offset in offsets.items():
            if offset is not None and found[name]["state"] != "waiting":
                found[name] |= self._read_log(name, offset, found[name]["state"] not in OPEN)
        return found

    def listing(self) -> list[dict[str, Any]]:
        """A summary of every job, in order of submission."""
        with self._lock:
            controller, now, nodes = self._controller, time.time(), alive_nodes()
            return [controller.summary(entry, now, nodes) for entry in controller.state.entries.values()]

    def show(self, text: str) -> dict[str, Any]:
        """Summary, request, history and log of one job."""
        with self._lock:
            entry = self._entry(text)
            summary = self._controller.summary(entry, time.time(), alive_nodes())
            shown = {**summary, "request": entry.request.resolved(), "history": entry.history}
            return {**shown, "log": str(log_path(self._folder, entry.id)), "causes": dict(entry.causes)}

    def log(self, text: str, offset: int) -> dict[str, Any]:
        """Output of a job from an offset; negative offsets count from the end."""
        with self._lock:
            entry = self._entry(text)
            part = self._read_log(entry.id, offset, entry.state not in OPEN)
            return {"id": entry.id, "state": entry.state, **part}

    def cancel(self, texts: Sequence[str]) -> list[str]:
        """Cancel waiting and running jobs; returns the ids of those that had not ended."""
        with self._lock:
            entries = {entry.id: entry for entry in map(self._entry, texts) if entry.state in OPEN}
            self._controller.stop(list(entries.values()), "cancelled", "it was cancelled", None)
            return list(entries)

    def retry(self, texts: Sequence[str]) -> list[str]:
        """Submit failed and cancelled jobs again, with those that failed because of them; returns the ids of all."""
        with self._lock:
            controller = self._controller
            again: dict[str, Entry] = {}
            for entry in map(self._entry, texts):
                if entry.state not in ("failed", "cancelled"):
                    raise errors.StageError(f"{entry.id} ({entry.request.job.name}) is {entry.state}: nothing to retry")
                again |= {one.id: one for one in [entry, *controller.state.dependents(entry)]}
            requests = [entry.request for entry in again.values()]
            self._refuse_conflicts(requests, "retry one of them")
            controller.write([{"event": "submitted", "requests": [request.resolved() for request in requests]}])
            return list(again)

    def drain(self, on: bool) -> None:
        """Stop or resume starting jobs."""
        with self._lock:
            self._controller.write([{"event": "drained", "on": on}])

    def limit(self, users: Mapping[str, int] | None, kinds: Mapping[str, int] | None) -> None:
        """Set the most jobs of a user or a kind that run at a time; ``*``: any not named; None: unchanged."""
        with self._lock:
            known = self._controller.state.limits
            given = {"user": users, "kind": kinds}
            limits = {word: dict(known[word] if found is None else found) for word, found in given.items()}
            self._controller.write([{"event": "limited", **limits}])

    def serve(self, port: int) -> None:
        """Serve the metrics on this port of the queue's node, also after a restart."""
        if not 0 < port < 2**16:
            raise errors.StageError(f"metrics port {port}: write a number from 1 to 65535")
        with self._lock:
            self._controller.write([{"event": "served", "port": port}])

    @property
    def _controller(self) -> Controller:
        if self._opened is None:
            raise NotReadyError(f"the job queue cannot open its ledger: {self._trouble}")
        return self._opened

    def _entry(self, text: str) -> Entry:
        """The job with this id, or the only one whose id starts so or which has this name."""
        entries = self._controller.state.entries
        if text in entries:
            return entries[text]
        found = [entry for entry in entries.values() if entry.id.startswith(text) or entry.request.job.name == text]
        if len(found) == 1:
            return found[0]
        known = f"; it fits {', '.join(entry.id for entry in found)}: write one of these" if found else ""
        hint = known or ": stillhouse jobs list --all shows them"
        raise errors.StageError(f"{text} is not the id of one job of the queue{hint}")

    def _check(self, requests: Sequence[Request]) -> None:
        """Refuse new jobs that could never run or that conflict with other jobs."""
        state = self._controller.state
        known, new = {*state.entries}, dict[str, Request]()
        nodes = alive_nodes()
        for request in requests:
            job = request.job
            for name in job.after:
                if name not in known:
                    raise errors.StageError(
                        f"job {job.name} comes after {name}, which is neither an earlier job of this submission nor an "
                        "id that the queue knows: stillhouse jobs list --all shows these"
                    )
            new[request.id] = request
            if state.has_cycle(request, new):
                raise errors.StageError(f"job {job.name} would wait for itself: leave out one of the jobs in after")
            if (refusal := unmet_need(job, nodes)) is not None:
                raise errors.StageError(f"job {job.name} {refusal}: ask for less, or start a larger node")
            known.add(request.id)
        self._refuse_conflicts(requests, "choose another out")

    def _refuse_conflicts(self, requests: Sequence[Request], advice: str) -> None:
        """Refuse jobs that make something else at the same location, as each other or as an open job."""
        places: dict[str, Request] = {}
        for request in requests:
            if (twin := places.setdefault(request.makes["out"], request)) is not request:
                names = f"{twin.job.name} ({twin.id}) and {request.job.name} ({request.id})"
                raise errors.StageError(f"jobs {names} differ, and both make {request.job.out}: {advice}")
            if (conflict := self._controller.state.conflicting_job(request)) is not None:
                job = conflict.request.job
                difference = artifact.first_difference(dict(conflict.request.makes), dict(request.makes))
                raise errors.StageError(
                    f"job {request.job.name}: {conflict.id} ({job.name}, by {job.user}, {conflict.state}) makes "
                    f"{job.out} too, and differs ({difference or 'only in spelling'}): wait for it, cancel it, or "
                    "choose another out"
                )

    def _read_log(self, job: str, offset: int | None, ended: bool = False) -> dict[str, Any]:
        """Complete lines from an offset (None: the end); for a job that has ended also an incomplete last line."""
        path = log_path(self._folder, job)
        if not path.exists():
            return {"text": "", "offset": 0}
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            start = size if offset is None else max(0, size + offset) if offset < 0 else min(offset, size)
            file.seek(start)
            data = file.read(READ_BYTES)
        rest = ended and start + len(data) == size
        whole = data if rest else data[: data.rfind(b"\n") + 1] or (data if len(data) == READ_BYTES else b"")
        return {"text": whole.decode("utf-8", errors="replace"), "offset": start + len(whole)}

    def _work(self) -> None:
        """The thread."""
        while True:
            try:
                if self._opened is None:
                    time.sleep(RETRY_SECONDS)
                    with self._lock:
                        self._open()
                else:
                    self._turn(self._opened)
            except SupersededError as error:
                errors.logger.error("%s: this queue ends", error)
                os._exit(1)  # Ray restarts the actor if it is still the current one
            except Exception as error:  # the queue outlives temporary failures of the cluster or the disk
                self._trouble = errors.describe(error)
                errors.logger.error("the queue retries after: %s", traceback.format_exc())
                time.sleep(1.0)

    def _turn(self, controller: Controller) -> None:
        with self._lock:
            pending = controller.workers.pending()
        ready: list[Any] = []
        if not pending:
            time.sleep(TICK_SECONDS)
        else:
            ready, _ = ray.wait(pending, timeout=TICK_SECONDS)
            if ready:
                ready, _ = ray.wait(pending, num_returns=len(pending), timeout=0)
        with self._lock:
            controller.poll(ready)
            controller.reconcile()
            self._trouble = ""
            self._serve(controller)

    def _open(self) -> None:
        try:
            cluster = ray.get_runtime_context().get_session_name()
            self._opened = Controller(self._folder, cluster, self._private, self._policy)
        except (OSError, ValueError) as error:
            self._trouble, self._temporary = errors.describe(error), isinstance(error, LedgerInUseError)

    def _serve(self, controller: Controller) -> None:
        """Serve metrics on the requested port, else on that of the node's environment; retries a taken port."""
        port = controller.state.port or port_from_environment()
        if port is None or port == self._served:
            return
        try:
            exporter.serve(port)
            self._served = port
        except OSError as error:
            self._trouble = f"metrics port {port}: {error.strerror}"


def port_from_environment() -> int | None:
    """The metrics port that the node's environment names."""
    given = os.environ.get(PORT, "")
    return int(given) if given.isdecimal() else None
