"""The ledger of the job queue: what was asked for and what became of it, so that no death of a process loses any.

::

    ledger/
      segment-00001.jsonl     {"event": "opened", "counted": {}, …}
                              {"event": "submitted", …}
      segment-00002.jsonl     {"event": "opened", "counted": {"segment-00001.jsonl": 51234}, …}
      logs/<id>.log           what the jobs print, all attempts after one another

Every process that keeps the ledger begins a segment and writes into no other. The newest segment says how many bytes of
each older one count, so a process that was cut off and lives on can add nothing. Lines are appended whole and are on
the disk before anything is done about them; a last line that was torn by a crash was never acted upon, and is dropped.
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


class KeptError(StageError):
    """The queue of another cluster keeps the ledger, and lives."""


class SupersededError(RuntimeError):
    """Another process keeps the ledger now."""


def read(folder: Path) -> list[dict[str, Any]]:
    """All events that count, oldest first; none where there is no ledger yet.

    Raises:
        StageError: a line that no crash explains, or a ledger of another format.
    """
    segments = _segments(folder)
    counted = _counted(segments)
    events: list[dict[str, Any]] = []
    for path in segments:
        events += _events(path, counted.get(path.name))
    return events


def log_path(folder: Path, job: str) -> Path:
    """Where the prints of a job are."""
    return folder / "logs" / f"{job}.log"


class Ledger:
    """The ledger while this process keeps it.

    ``cluster`` tells Ray clusters apart: of one cluster, whoever comes last keeps the ledger, because Ray starts a
    queue again only when it holds the old one for dead.

    Raises:
        KeptError: the queue of another cluster keeps it, and lives.
        StageError: it is damaged.
        OSError: the folder cannot be written to.
    """

    def __init__(self, folder: Path, cluster: str) -> None:
        (folder / "logs").mkdir(parents=True, exist_ok=True)
        self._folder = folder
        _refuse_living(folder, cluster)
        self._path, self._file = _begin(folder)
        self._end = 0
        try:
            self.events = self._take_over(cluster)
        except BaseException:  # tried again for as long as a disk is full, it must not leave a file each time
            self.close()
            if not self._end:
                self._path.unlink(missing_ok=True)
            raise

    def _take_over(self, cluster: str) -> list[dict[str, Any]]:
        # From here on whoever had it before sees that it is over; what was appended until now counts.
        older = [path for path in _segments(self._folder) if path.name < self._path.name]
        known = _counted(older)
        sizes = {path.name: known.get(path.name, _whole_bytes(path)) for path in older}
        events = [event for path in older for event in _events(path, sizes[path.name])]
        opened = {"format": FORMAT, "counted": sizes, "cluster": cluster, "host": socket.gethostname()}
        self.append([{"event": "opened", "at": time.time(), "process": os.getpid(), **opened}])
        filesystem.sync(self._folder)
        return events

    def append(self, events: Sequence[Mapping[str, Any]]) -> None:
        """Write events down; when this returns they are on the disk, and count.

        Raises:
            SupersededError: another process keeps the ledger now; whether these events count is for it to say.
            OSError: the disk is full or broken: nothing was written.
        """
        self.check()
        lines = "".join(json.dumps(event, ensure_ascii=False, allow_nan=False) + "\n" for event in events)
        data = lines.encode(errors="backslashreplace")  # names of files need not be Unicode; JSON escapes them alike
        try:
            written = 0
            while written < len(data):
                written += os.pwrite(self._file, data[written:], self._end + written)
            os.fsync(self._file)
        except OSError:
            os.ftruncate(self._file, self._end)  # half of it must not be taken for events later
            raise
        self._end += len(data)
        self.check()

    def check(self) -> None:
        """Look whether another process has begun a segment.

        Raises:
            SupersededError: it has.
        """
        segments = _segments(self._folder)
        if self._path not in segments:
            raise FileNotFoundError(
                errno.ENOENT,
                "the job queue's ledger was deleted, moved away or cannot be reached; bring it back, or end the queue "
                "with python -m cluster.jobs stop and start one with another ledger",
                str(self._path),
            )
        if segments[-1] != self._path:
            raise SupersededError(f"another process keeps {self._folder} now")

    def close(self) -> None:
        os.close(self._file)


def _segments(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("segment-*.jsonl") if _SEGMENT.fullmatch(path.name))


def _begin(folder: Path) -> tuple[Path, int]:
    """A new segment, locked; of several processes that try, each gets one of its own."""
    while True:
        segments = _segments(folder)
        number = int(segments[-1].name[8:13]) + 1 if segments else 1
        path = folder / f"segment-{number:05}.jsonl"
        try:
            file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)
        except FileExistsError:
            continue
        _locks(file)
        return path, file


def _refuse_living(folder: Path, cluster: str) -> None:
    opened = [first for path in reversed(_segments(folder)) if (first := _opened(path))]
    if not opened or opened[0]["cluster"] == cluster:
        return
    with _segments(folder)[-1].open("rb+") as newest:
        if not _locks(newest.fileno()):
            raise KeptError(
                f"the queue of another cluster (on {opened[0]['host']}, process {opened[0]['process']}) keeps the "
                f"ledger {folder}: set RAY_ADDRESS to that cluster, or name another ledger"
            )


def _locks(file: int) -> bool:
    """Take the lock of a segment, which its keeper holds while it lives; file systems without locks always give it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            raise
    return True


def _counted(segments: Sequence[Path]) -> dict[str, int]:
    """How many bytes count of the segments before the newest one that was opened."""
    opened = [first for path in reversed(segments) if (first := _opened(path))]
    return dict(opened[0]["counted"]) if opened else {}


def _opened(path: Path) -> dict[str, Any] | None:
    """The first line of a segment; None where a crash left none."""
    with path.open("rb") as file:
        line = file.readline()
    if not line.endswith(b"\n"):
        return None
    first = _parsed(path, 1, line)
    if first.get("format") != FORMAT:
        raise StageError(f"{path} has ledger format {first.get('format')}, this is {FORMAT}: name another ledger")
    return first


def _whole_bytes(path: Path) -> int:
    """Bytes of the lines that are whole."""
    return path.read_bytes().rfind(b"\n") + 1


def _events(path: Path, size: int | None) -> list[dict[str, Any]]:
    data = path.read_bytes()[: _whole_bytes(path) if size is None else size]
    lines = data[: data.rfind(b"\n") + 1].splitlines()
    return [_parsed(path, number, line) for number, line in enumerate(lines, 1)]


def _parsed(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:
        found = None
    if not isinstance(found, dict) or "event" not in found:
        raise StageError(f"{path}: line {number} is damaged: mend it, or name another ledger") from None
    return found
