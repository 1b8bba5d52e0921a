"""The queue itself: a named, detached, restartable actor that keeps the ledger and hands jobs to workers.

Everything it knows is in the ledger before it is acted upon. When it dies, Ray starts it again, wherever there is a
node; it reads the ledger, finds the workers of running jobs by their names, and goes on.
"""

import logging
import os
import threading
import time
import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray

from cluster.actors import ray_state
from cluster.artifacts import errors
from cluster.jobs.controller import Controller, line
from cluster.jobs.failures import RetryPolicy
from cluster.jobs.job import OPEN, Request
from cluster.jobs.ledger import KeptError, SupersededError, log_path
from cluster.jobs.nodes import unmet_need
from cluster.jobs.queue_state import Entry, Event, difference, unlike
from cluster.telemetry import exporter

logger = logging.getLogger("stillhouse")

TICK_SECONDS = 0.2
AGAIN_SECONDS = 2.0
"""Between attempts to open a ledger that cannot be had."""
READ_BYTES = 2**16
"""Of a log in one answer."""
PORT = "STILLHOUSE_JOBS_PORT"
"""The environment variable that names the port of its metrics, for a queue that whoever comes first starts."""


class UnreadyError(errors.StageError):
    """The queue has no ledger; it goes on trying to have it."""


class JobQueue:
    """The actor. Its thread does the work; its methods answer people, with plain JSON values."""

    def __init__(self, folder: str, private: bool, patience: RetryPolicy) -> None:
        self._folder, self._private, self._patience = Path(folder), private, patience
        self._lock = threading.RLock()
        self._keeper: Controller | None = None
        self._trouble, self._passing = "", False
        self._served: int | None = None
        with self._lock:
            self._open()
        threading.Thread(target=self._work, daemon=True, name="queue").start()

    def ledger(self) -> str:
        """The folder of its ledger."""
        return str(self._folder)

    def unready(self) -> tuple[str, bool]:
        """Why it has no ledger (empty when it has), and whether that may pass: another queue keeps it still."""
        with self._lock:
            return (self._trouble, self._passing) if self._keeper is None else ("", False)

    def about(self) -> dict[str, Any]:
        """What queue this is and how it fares."""
        with self._lock:
            book = self._kept().book
            return {
                "ledger": str(self._folder),
                "process": os.getpid(),
                "draining": book.draining,
                "limits": book.limits,
                "metrics_port": book.port,
                "trouble": self._trouble,
                "counts": dict(Counter(entry.state for entry in book.entries.values())),
            }

    def submit(self, requests: Sequence[Mapping[str, Any]]) -> list[tuple[str, int, str]]:
        """Take jobs, all or none. Those that wait or run are joined, and stay as they are but for a higher priority.

        For each its id, how long its log is by now, and how one that is joined differs from what was asked for.

        Raises:
            StageError: a job that could never run, or whose place another job is working at.
        """
        with self._lock:
            keeper = self._kept()
            wanted = [Request.of(values) for values in requests]
            adopted = [request for request in wanted if request.id in keeper.book.open]
            new = [request for request in wanted if request.id not in keeper.book.open]
            self._check(keeper, new)
            events: list[Event] = [
                {"event": "raised", "id": request.id, "priority": request.job.priority}
                for request in adopted
                if request.job.priority > keeper.book.open[request.id].priority
            ]
            if new:
                events.append({"event": "submitted", "requests": [request.resolved() for request in new]})
            differences = {request.id: unlike(keeper.book.open[request.id], request) for request in adopted}
            keeper.write(events)
            return [
                (request.id, self._printed(request.id, None)["offset"], differences.get(request.id, ""))
                for request in wanted
            ]

    def look(self, offsets: Mapping[str, int | None]) -> dict[str, Any]:
        """State of each job, its outcome where it has ended, and what it printed since an offset (None: nothing)."""
        with self._lock:
            entries = [self._entry(name) for name in offsets]
            found: dict[str, Any] = {
                entry.id: {"state": entry.state, "outcome": self._outcome(entry), "text": "", "offset": None}
                for entry in entries
            }
        for name, offset in offsets.items():
            if offset is None or found[name]["state"] != "waiting":
                found[name] |= self._printed(name, offset, found[name]["state"] not in OPEN)
            else:
                found[name]["offset"] = offset
        return found

    def listing(self) -> list[dict[str, Any]]:
        """Every job in the order of submission, in short."""
        with self._lock:
            keeper, now, nodes = self._kept(), time.time(), ray_state.alive_nodes()
            return [line(keeper, entry, now, nodes) for entry in keeper.book.entries.values()]

    def show(self, text: str) -> dict[str, Any]:
        """Everything about one job."""
        with self._lock:
            keeper, entry = self._kept(), self._entry(text)
            short = line(keeper, entry, time.time(), ray_state.alive_nodes())
            shown = {**short, "request": entry.request.resolved(), "history": entry.history}
            return {**shown, "log": str(log_path(self._folder, entry.id)), "causes": dict(entry.causes)}

    def log(self, text: str, offset: int) -> dict[str, Any]:
        """What a job printed from an offset on; negative offsets count from the end."""
        with self._lock:
            entry = self._entry(text)
            printed = self._printed(entry.id, offset, entry.state not in OPEN)
            return {"id": entry.id, "state": entry.state, **printed}

    def cancel(self, texts: Sequence[str]) -> list[str]:
        """End jobs, waiting or running; ids of those that had not ended."""
        with self._lock:
            entries = {entry.id: entry for entry in map(self._entry, texts) if entry.state in OPEN}
            self._kept().stop(list(entries.values()), "cancelled", "it was cancelled", None)
            return list(entries)

    def retry(self, texts: Sequence[str]) -> list[str]:
        """Try failed and cancelled jobs again, and those that failed because of them; ids of all of these."""
        with self._lock:
            keeper = self._kept()
            again: dict[str, Entry] = {}
            for entry in map(self._entry, texts):
                if entry.state not in ("failed", "cancelled"):
                    raise errors.StageError(f"{entry.id} ({entry.request.job.name}) is {entry.state}: nothing to retry")
                again |= {one.id: one for one in [entry, *keeper.book.heirs(entry)]}
            places: dict[str, Entry] = {}
            for entry in again.values():
                _refuse_rival(keeper, entry.request)
                if (twin := places.setdefault(entry.request.makes["out"], entry)) is not entry:
                    raise errors.StageError(
                        f"{twin.id} and {entry.id} differ, and are both to make {entry.request.makes['out']}: retry "
                        "one of them"
                    )
            requests = [entry.request.resolved() for entry in again.values()]
            keeper.write([{"event": "submitted", "requests": requests}])
            return list(again)

    def drain(self, on: bool) -> None:
        """Start nothing new, or go on again."""
        with self._lock:
            self._kept().write([{"event": "drained", "on": on}])

    def limit(self, users: Mapping[str, int] | None, kinds: Mapping[str, int] | None) -> None:
        """How many jobs of a user, or of a kind, run at a time; ``*`` is anybody not named; None leaves them."""
        with self._lock:
            known = self._kept().book.limits
            limits = {
                "user": known["user"] if users is None else users,
                "kind": known["kind"] if kinds is None else kinds,
            }
            self._kept().write([{"event": "limited", **{word: dict(found) for word, found in limits.items()}}])

    def serve(self, port: int) -> None:
        """Serve the metrics of the queue on this port of the machine it is on; also after it was started again."""
        if not 0 < port < 2**16:
            raise errors.StageError(f"metrics port {port}: write a number from 1 to 65535")
        with self._lock:
            self._kept().write([{"event": "served", "port": port}])

    def _kept(self) -> Controller:
        if self._keeper is None:
            raise UnreadyError(f"the job queue cannot keep its ledger: {self._trouble}")
        return self._keeper

    def _entry(self, text: str) -> Entry:
        """The job of this id, of an id that begins so, or of this name where no other has it."""
        entries = self._kept().book.entries
        if text in entries:
            return entries[text]
        found = [entry for entry in entries.values() if entry.id.startswith(text) or entry.request.job.name == text]
        if len(found) == 1:
            return found[0]
        known = f"; {', '.join(entry.id for entry in found)} are: name one of them" if found else ""
        raise errors.StageError(f"{text} is not the id of one job of the queue{known}")

    def _check(self, keeper: Controller, requests: Sequence[Request]) -> None:
        """Refuse new jobs that could never run, or that others are in the way of."""
        known, places, taken = {*keeper.book.entries}, dict[str, Request](), dict[str, Request]()
        nodes = ray_state.alive_nodes()
        for request in requests:
            job = request.job
            for name in job.after:
                if name not in known:
                    raise errors.StageError(
                        f"job {job.name} comes after {name}, which is not among the jobs before it, nor the id of one "
                        "that the queue has"
                    )
            taken[request.id] = request
            if keeper.book.circle(request, taken):
                raise errors.StageError(f"job {job.name} would wait for itself: leave out what it comes after")
            if (refusal := unmet_need(job, nodes)) is not None:
                raise errors.StageError(f"job {job.name} {refusal}: ask for less, or start a larger node")
            if (twin := places.setdefault(request.makes["out"], request)) is not request:
                raise errors.StageError(f"jobs {twin.job.name} and {job.name} differ, and are both to make {job.out}")
            _refuse_rival(keeper, request)
            known.add(request.id)

    def _outcome(self, entry: Entry) -> dict[str, Any] | None:
        return None if entry.state in OPEN else entry.outcome(str(log_path(self._folder, entry.id))).resolved()

    def _printed(self, job: str, offset: int | None, ended: bool = False) -> dict[str, Any]:
        """Whole lines of a log, as far as one answer goes; of a job that has ended also a last one that was cut off."""
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
                if self._keeper is None:
                    time.sleep(AGAIN_SECONDS)
                    with self._lock:
                        self._open()
                else:
                    self._turn(self._keeper)
            except SupersededError as error:
                logger.error("%s: this queue ends", error)
                os._exit(1)  # Ray starts it again where it is still the one that should be there
            except Exception as error:  # a cluster or a disk that is away for a moment must not end the queue
                self._trouble = errors.describe(error)
                logger.error("the queue will try again: %s", traceback.format_exc())
                time.sleep(1.0)

    def _turn(self, keeper: Controller) -> None:
        with self._lock:
            asked = keeper.crew.asked()
        ready: list[Any] = []
        if not asked:
            time.sleep(TICK_SECONDS)
        else:
            ready, _ = ray.wait(asked, timeout=TICK_SECONDS)
            if ready:
                ready, _ = ray.wait(asked, num_returns=len(asked), timeout=0)
        with self._lock:
            keeper.hear(ready)
            keeper.turn()
            self._trouble = ""
            self._serve(keeper)

    def _open(self) -> None:
        try:
            cluster = ray.get_runtime_context().get_session_name()
            self._keeper = Controller(self._folder, cluster, self._private, self._patience)
        except (OSError, ValueError) as error:
            self._trouble, self._passing = str(errors.explain(error)), isinstance(error, KeptError)

    def _serve(self, keeper: Controller) -> None:
        """Serve metrics where people, or else the node's environment, asked for them; a taken port is tried again."""
        port = keeper.book.port or given_port()
        if port in (None, self._served):
            return
        assert port is not None
        try:
            exporter.serve(port)
            self._served = port
        except OSError as error:
            self._trouble = f"metrics port {port}: {error.strerror}"


def given_port() -> int | None:
    """The port that the environment of the node names, where nobody has asked for another."""
    given = os.environ.get(PORT, "")
    return int(given) if given.isdecimal() else None


def _refuse_rival(keeper: Controller, request: Request) -> None:
    """Two jobs must not work at one place."""
    if (rival := keeper.book.rival(request)) is not None:
        job = rival.request.job
        raise errors.StageError(
            f"job {request.job.name}: {rival.id} ({job.name}, by {job.user}, {rival.state}) is to make {job.out} too, "
            f"and differs ({difference(rival, request)}): wait for it, cancel it, or choose another out"
        )
