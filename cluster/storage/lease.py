"""Leases keep two processes from making the same artifact in an object store, which has no locks.

::

    .lease-00001        {"host": …, "machine": …, "process": …, "started": …, "beat": 17}

To work in a folder, a process creates the lease with the next number; if several try, the store lets one succeed. The
holder rewrites its lease every few seconds. A lease that does not change for a minute is expired, and so is a lease of
this machine whose process is gone. Clocks are never compared.
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
    """Another process holds the lease."""


class Lease:
    """The right to work in a folder of an object store, inside the block of :func:`held`."""

    def __init__(self, folder: UPath) -> None:
        self._folder = folder
        self._place = _take(folder)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True, name="lease")
        self._thread.start()

    def check(self) -> None:
        """Check that this process still holds the lease.

        Raises:
            LeaseError: the lease expired, and another process has taken over.
        """
        if _newest(self._folder) != self._place:
            raise LeaseError(
                f"another process took over {self._folder} because this one did not renew its lease for "
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
            # A store may be unreachable for a moment; check() decides in the end.
            with contextlib.suppress(filesystem.StorageError, OSError):
                if not filesystem.exists(self._place):
                    return
                filesystem.write_json(self._place, {**_self(), "beat": beat})


@contextlib.contextmanager
def held(folder: UPath) -> Iterator[Lease]:
    """Hold the lease of a folder inside the block.

    Raises:
        LeaseError: another process holds it.
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
        # If another process is faster, the next round reads its lease.
        with contextlib.suppress(FileExistsError):
            filesystem.create_text(ours, filesystem.json_text({**_self(), "beat": 0}))
            if place is not None:
                filesystem.remove(place)
            return ours


def _newest(folder: UPath) -> UPath | None:
    names = [name for name in filesystem.listing(folder) if NAME.fullmatch(name)]
    return folder / max(names) if names else None


def _living_holder(folder: UPath, place: UPath) -> str | None:
    """Host of the process that holds a lease; None if it died or released the lease."""
    first = _content(place)
    ours = _self()
    if first is None:
        return None
    if ours["machine"] and first["machine"] == ours["machine"]:
        return str(first["host"]) if _started(int(first["process"])) == first["started"] else None
    progress.say(
        f"{first['host']} has a lease of {folder}: waiting up to {PATIENCE_SECONDS:.0f} s for it to renew or expire"
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
    """The boot and the namespace in which process numbers are unique; empty where Linux does not tell."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _started(process: int) -> int | None:
    """Start of a process, in clock ticks since the boot; None if the process does not exist."""
    try:
        described = Path(f"/proc/{process}/stat").read_text(encoding="utf-8")
    except OSError:
        return None
    # The name in brackets may contain any character; the start is the twentieth field after it (proc_pid_stat(5)).
    return int(described.rpartition(")")[2].split()[19])
