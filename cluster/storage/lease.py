"""Leases: how two processes are kept from making the same thing in an object store, which has no locks.

::

    .lease-00001        {"host": …, "machine": …, "process": …, "started": …, "beat": 17}

Whoever wants to work in a folder makes the lease object that follows the highest one there; of several who try, the
store lets one succeed. The holder writes its lease anew every few seconds. A lease that does not change for a minute
belongs to somebody who died, and so does one of this machine whose process is gone; clocks are never compared.
"""

import contextlib
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from upath import UPath

from cluster.storage import filesystem
from cluster.telemetry import progress

NAME = re.compile(r"\.lease-(\d{5})")
BEAT_SECONDS = 10.0
PATIENCE_SECONDS = 60.0
POLL_SECONDS = 1.0


class LeaseError(ValueError):
    """Somebody else holds the lease."""


class Lease:
    """The right to work in a folder of an object store, for as long as :func:`held` lasts."""

    def __init__(self, folder: UPath) -> None:
        self._folder = folder
        self._place = _take(folder)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True, name="lease")
        self._thread.start()

    def check(self) -> None:
        """Refuse to go on where another process, seeing no sign of life from this one, has taken over.

        Raises:
            LeaseError: it has.
        """
        if _newest(self._folder) != self._place:
            raise LeaseError(
                f"another process went on with {self._folder} because this one was not heard of for "
                f"{PATIENCE_SECONDS:.0f} s: wait for it, or choose another --out"
            )

    def release(self) -> None:
        self._ended.set()
        self._thread.join()
        filesystem.remove(self._place)

    def _beat(self) -> None:
        beat = 0
        while not self._ended.wait(BEAT_SECONDS):
            beat += 1
            # A store that is out of reach for a moment is no reason to stop: check() decides in the end.
            with contextlib.suppress(filesystem.StorageError, OSError):
                if not filesystem.exists(self._place):
                    return
                filesystem.write_json(self._place, {**_self(), "beat": beat})


@contextlib.contextmanager
def held(folder: UPath) -> Iterator[Lease]:
    """Hold the lease of a folder while the block lasts.

    Raises:
        LeaseError: another process holds it, and lives.
    """
    lease = Lease(folder)
    try:
        yield lease
    finally:
        lease.release()


def _take(folder: UPath) -> UPath:
    while True:
        place = _newest(folder)
        number = 1
        if place is not None:
            if (holder := _living_holder(folder, place)) is not None:
                raise LeaseError(
                    f"another process is making {folder} right now (on {holder}): wait for it, or choose another --out"
                )
            number = int(place.name.removeprefix(".lease-")) + 1
        ours = folder / f".lease-{number:05}"
        # Another process may be faster; then it is its lease that has to be looked at.
        with contextlib.suppress(FileExistsError):
            filesystem.create_text(ours, filesystem.json_text({**_self(), "beat": 0}))
            if place is not None:
                filesystem.remove(place)
            return ours


def _newest(folder: UPath) -> UPath | None:
    names = [name for name in filesystem.listing(folder) if NAME.fullmatch(name)]
    return folder / max(names) if names else None


def _living_holder(folder: UPath, place: UPath) -> str | None:
    """Host of the process that holds a lease; None when it died, or gave the lease back while we looked."""
    first = _content(place)
    ours = _self()
    if first is None:
        return None
    if ours["machine"] and first["machine"] == ours["machine"]:
        return str(first["host"]) if _started(int(first["process"])) == first["started"] else None
    progress.say(
        f"{folder} was begun on {first['host']}: waiting up to {PATIENCE_SECONDS:.0f} s for a sign of life from there"
    )
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
        if (now := _content(place)) != first:
            return None if now is None else str(first["host"])
    return None


def _content(place: UPath) -> dict[str, Any] | None:
    try:
        return dict(filesystem.read_json(place))
    except FileNotFoundError:
        return None


def _self() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "machine": _machine(),
        "process": os.getpid(),
        "started": _started(os.getpid()),
    }


def _machine() -> str:
    """What process numbers are unique in: this start of the machine and this namespace; empty where nothing says."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _started(process: int) -> int | None:
    """When a process began, in clock ticks since the machine did; None when there is none of this number."""
    try:
        described = Path(f"/proc/{process}/stat").read_text(encoding="utf-8")
    except OSError:
        return None
    # The name in brackets may hold anything; the start is the twentieth field after it (proc_pid_stat(5)).
    return int(described.rpartition(")")[2].split()[19])
