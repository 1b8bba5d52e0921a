"""``metrics.jsonl``: the record of a run, exact to the step."""

import contextlib
import errno
import json
import math
from pathlib import Path
from typing import Any

from cluster.telemetry.progress import say


class MetricsLog:
    """Appends JSON lines, each in one write.

    Drops lines of steps after ``resume_at``, because the run repeats them. While the disk is full, for example because
    of a checkpoint that is being written, lines wait in memory.
    """

    def __init__(self, path: Path, resume_at: int = 0) -> None:
        kept = [line for line in read_metrics(path) if line["step"] <= resume_at]
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        temporary.replace(path)
        self._file = path.open("ab", buffering=0)
        self._waiting = b""

    def write(self, **values: Any) -> None:
        self._waiting += (json.dumps({key: finite(value) for key, value in values.items()}) + "\n").encode()
        try:
            self._hand_over()
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise

    def close(self) -> None:
        """Write the lines that wait; warn if some do not fit on the disk."""
        with self._file:
            try:
                self._hand_over()
            except OSError as error:
                say(f"warning: {self._file.name} lacks its last lines: {error.strerror}")

    def _hand_over(self) -> None:
        while self._waiting:
            self._waiting = self._waiting[self._file.write(self._waiting) :]


def finite(value: Any) -> Any:
    """The value, or None for a float that JSON cannot hold."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Lines of a metrics file, oldest first, without a last line that a crash cut."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    found: list[dict[str, Any]] = []
    for number, line in enumerate(lines):
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            if number != len(lines) - 1:
                raise ValueError(f"{path}: line {number + 1} is not JSON") from None
    return found


def newest_metrics(path: Path, kind: str) -> dict[str, Any] | None:
    """The newest line of a kind in the last 64 KiB of a metrics file."""
    if not path.exists():
        return None
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _END_BYTES))
        found = file.read()
    for text in reversed(found.splitlines()):
        with contextlib.suppress(ValueError):
            line: dict[str, Any] = json.loads(text)
            if line["kind"] == kind:
                return line
    return None


_END_BYTES = 64 * 1024
