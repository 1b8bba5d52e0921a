"""Append-only ledger of the job queue: the queue can restart from it after any crash.

::

    ledger/
      segment-00001.jsonl     {"event": "opened", "counted": {}, …}
                              {"event": "submitted", …}
      segment-00002.jsonl     {"event": "opened", "counted": {"segment-00001.jsonl": 51234}, …}
      logs/<id>.log           output of the job, all attempts in order

Every queue process starts a new segment and writes only to it. The newest segment records how many bytes of each older
segment are valid, so a superseded process that is still alive can add nothing. Whole lines are on the disk before the
queue acts on them; a last line that a crash cut off had no effect, and readers drop it.
"""

import errno
import fcntl
import json
import os
import re
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.artifacts.errors import StageError
from cluster.storage import filesystem

FORMAT = 2

_SEGMENT = re.compile(r"segment-(\d{5})\.jsonl")


class LedgerInUseError(StageError):
    """The running queue of another cluster owns the ledger."""


class SupersededError(RuntimeError):
    """Another process owns the ledger now."""


def read(folder: Path) -> list[dict[str, Any]]:
    """All valid events, oldest first; empty if there is no ledger.

    Raises:
        StageError: a line is damaged in a way no crash explains, or the ledger has another format.
    """
    segments = _segments(folder)
    valid = _valid_bytes(segments)
    return [event for path in segments for event in _events(path, valid.get(path.name))]


def log_path(folder: Path, job: str) -> Path:
    """Output of a job."""
    return folder / "logs" / f"{job}.log"


class Ledger:
    """The ledger, owned by this process.

    ``cluster`` is the session name of the Ray cluster. Within one cluster a new process always takes over, because Ray
    restarts the actor only after it considers the old one dead.

    Raises:
        LedgerInUseError: the running queue of another cluster owns it.
        StageError: it is damaged.
        OSError: the folder is not writable.
    """

    def __init__(self, folder: Path, cluster: str) -> None:
        (folder / "logs").mkdir(parents=True, exist_ok=True)
        self._folder = folder
        _refuse_other_cluster(folder, cluster)
        self._path, self._file = _new_segment(folder)
        self._end = 0
        try:
            self.events = self._take_over(cluster)
        except BaseException:  # the queue repeats this while a disk is full: leave no file each time
            self.close()
            if not self._end:
                self._path.unlink(missing_ok=True)
            raise

    def _take_over(self, cluster: str) -> list[dict[str, Any]]:
        # The new segment exists, so the previous owner's next check fails; its complete lines until now are valid.
        older = [path for path in _segments(self._folder) if path.name < self._path.name]
        known = _valid_bytes(older)
        sizes = {path.name: known.get(path.name, path.read_bytes().rfind(b"\n") + 1) for path in older}
        events = [event for path in older for event in _events(path, sizes[path.name])]
        opened = {"format": FORMAT, "counted": sizes, "cluster": cluster, "host": socket.gethostname()}
        self.append([{"event": "opened", "at": time.time(), "process": os.getpid(), **opened}])
        filesystem.sync(self._folder)
        return events

    def append(self, events: Sequence[Mapping[str, Any]]) -> None:
        """Write events; after return they are on the disk.

        Raises:
            SupersededError: another process owns the ledger now, and decides whether these events are valid.
            OSError: the disk is full or broken; nothing was written.
        """
        self.check()
        lines = "".join(json.dumps(event, ensure_ascii=False, allow_nan=False) + "\n" for event in events)
        data = lines.encode(errors="backslashreplace")  # file names need not be Unicode; JSON uses the same escapes
        try:
            written = 0
            while written < len(data):
                written += os.pwrite(self._file, data[written:], self._end + written)
            os.fsync(self._file)
        except OSError:
            os.ftruncate(self._file, self._end)  # no later reader may see a part of these events
            raise
        self._end += len(data)
        self.check()

    def check(self) -> None:
        """Check that no other process has taken over.

        Raises:
            SupersededError: one has.
            FileNotFoundError: the segment is gone.
        """
        segments = _segments(self._folder)
        if self._path not in segments:
            raise FileNotFoundError(
                errno.ENOENT,
                "the job queue's ledger was deleted, moved or cannot be reached; restore it, or end the queue with "
                "stillhouse jobs stop and start one with another ledger",
                str(self._path),
            )
        if segments[-1] != self._path:
            raise SupersededError(f"another process owns {self._folder} now")

    def close(self) -> None:
        os.close(self._file)


def _segments(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("segment-*.jsonl") if _SEGMENT.fullmatch(path.name))


def _new_segment(folder: Path) -> tuple[Path, int]:
    """Create and lock the next segment; concurrent callers get different ones."""
    while True:
        segments = _segments(folder)
        number = int(segments[-1].name[8:13]) + 1 if segments else 1
        path = folder / f"segment-{number:05}.jsonl"
        try:
            file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)
        except FileExistsError:
            continue
        _try_lock(file)
        return path, file


def _refuse_other_cluster(folder: Path, cluster: str) -> None:
    newest = _newest_opened(_segments(folder))
    if newest is None or newest["cluster"] == cluster:
        return
    with _segments(folder)[-1].open("rb+") as file:
        if not _try_lock(file.fileno()):
            raise LedgerInUseError(
                f"the queue of another cluster (on {newest['host']}, process {newest['process']}) owns the ledger "
                f"{folder}: set RAY_ADDRESS to that cluster, or name another ledger"
            )


def _try_lock(file: int) -> bool:
    """Lock a segment for the lifetime of its owner; always succeeds on file systems without locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            raise
    return True


def _valid_bytes(segments: Sequence[Path]) -> dict[str, int]:
    """Valid bytes of the older segments, by name, from the newest segment that has a first line."""
    newest = _newest_opened(segments)
    return dict(newest["counted"]) if newest else {}


def _newest_opened(segments: Sequence[Path]) -> dict[str, Any] | None:
    """First line of the newest segment whose owner did not crash before it wrote one."""
    return next((first for path in reversed(segments) if (first := _opened(path))), None)


def _opened(path: Path) -> dict[str, Any] | None:
    with path.open("rb") as file:
        line = file.readline()
    if not line.endswith(b"\n"):
        return None
    first = _parsed(path, 1, line)
    if first.get("format") != FORMAT:
        raise StageError(f"{path} has ledger format {first.get('format')}, this is {FORMAT}: name another ledger")
    return first


def _events(path: Path, size: int | None) -> list[dict[str, Any]]:
    data = path.read_bytes()[:size]
    lines = data[: data.rfind(b"\n") + 1].splitlines()
    return [_parsed(path, number, line) for number, line in enumerate(lines, 1)]


def _parsed(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:
        found = None
    if not isinstance(found, dict) or "event" not in found:
        raise StageError(f"{path}: line {number} is damaged: repair it, or name another ledger") from None
    return found
