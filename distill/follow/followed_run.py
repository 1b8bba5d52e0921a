"""What a follower reads of a run, and where it keeps what it has drawn.

::

    OUT/runs/student/metrics.jsonl          read; rewritten when the run falls back to an earlier checkpoint
    OUT/runs/student/recipe.json            the hyper-parameters
    OUT/.follow/student-mlflow.json         which run it is, id of its curve, last steps that the tracker has taken
    OUT/.follow/student-mlflow.log          what the tracker's library prints
    OUT/tensorboard/student/                event files

Followers of a run that is not in a pipeline keep their files inside it. Those of a teacher keep them beside it: its run
folder does not outlive the training.
"""

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.artifacts import commit
from cluster.artifacts.artifact import digest
from cluster.artifacts.errors import StageError
from cluster.storage.filesystem import write_json
from cluster.telemetry import metrics

STATE = ".follow"
KINDS = ("train", "validation")


@dataclass(frozen=True)
class Point:
    """One line of ``metrics.jsonl``: its values by the names of their curves, ``train/total``."""

    kind: str
    step: int
    values: Mapping[str, float]


@dataclass(frozen=True)
class FollowedRun:
    """A run folder, or the folder of a teacher that was trained here."""

    path: Path

    def check(self) -> None:
        """
        Raises:
            StageError: the folder has no metrics.
        """
        if not self.metrics.is_file():
            raise StageError(
                f"{self.path} has no metrics.jsonl: name a folder that stillhouse train writes, or a teacher"
            )

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def title(self) -> str:
        """``demo/student``: pipeline and run."""
        return metrics.run_name(self.path)

    @property
    def base(self) -> Path:
        """Folder that holds the files of followers."""
        return self._place[0]

    @property
    def name(self) -> str:
        return self._place[1]

    @property
    def _place(self) -> tuple[Path, str]:
        parent = self.path.parent
        if (teacher := commit.completed(parent)) != parent:
            return teacher.parent, teacher.name
        if parent.name == "runs":
            return parent.parent, self.path.name
        return (parent if (self.path / commit.MANIFEST).is_file() else self.path), self.path.name

    def file(self, tracker: str, ending: str) -> Path:
        """A follower's own file; :meth:`make_folder` makes its folder."""
        return self.base / STATE / f"{self.name}-{tracker}.{ending}"

    def make_folder(self) -> None:
        """Make the folder of :meth:`file`."""
        (self.base / STATE).mkdir(exist_ok=True)

    def parameters(self) -> dict[str, Any]:
        """The recipe's values by key: ``{"loss.soft": 5.0, …}``."""
        return dict(_flat(self._described()["recipe"]))

    def identity(self) -> str:
        """Digest of recipe and inputs: that of a run that resumes stays, another run in its place has its own."""
        described = self._described()
        return digest({"recipe": described["recipe"], "inputs": described["inputs"]})

    def _described(self) -> dict[str, Any]:
        for name in ("recipe.json", commit.MANIFEST):
            if (place := self.path / name).is_file():
                return {"recipe": {}, "inputs": {}, **json.loads(place.read_text(encoding="utf-8"))}
        return {"recipe": {}, "inputs": {}}


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{key}.")
        elif value is not None:
            yield f"{before}{key}", value if isinstance(value, str | int | float | bool) else json.dumps(value)


@dataclass
class State:
    """What a tracker has drawn of a run, on disk, so that another process continues the same curve."""

    place: Path
    run: str = ""
    """:meth:`FollowedRun.identity`."""
    curve: str = ""
    """The tracker's id of the curve; empty before it has one."""
    drawn: dict[str, int] = field(default_factory=dict)
    """The last step by kind of line."""

    @classmethod
    def read(cls, place: Path, run: str) -> "State":
        """The state on disk; a new one where there is none, or that of another run.

        Raises:
            StageError: the file was cut or changed.
        """
        if not place.is_file():
            return cls(place, run)
        try:
            found = json.loads(place.read_text(encoding="utf-8"))
            state = cls(place, found["run"], found["curve"], dict(found["drawn"]))
        except (ValueError, KeyError, TypeError):
            raise StageError(f"{place} was cut or changed: delete it to draw the run from the start") from None
        return state if state.run == run else cls(place, run)

    def write(self) -> None:
        write_json(self.place, {"run": self.run, "curve": self.curve, "drawn": self.drawn})

    def is_new(self, point: Point) -> bool:
        return point.step > self.drawn.get(point.kind, -1)

    def add(self, points: "list[Point]") -> None:
        for point in points:
            self.drawn[point.kind] = max(point.step, self.drawn.get(point.kind, -1))
        self.write()


class Tail:
    """Reads the lines that were added to ``metrics.jsonl``, and all of them where the file is another one."""

    def __init__(self, path: Path) -> None:
        self._path, self._file, self._offset, self._lines = path, -1, 0, 0
        self.finished = False
        """Whether the last line of the run was read: every run ends with a validation of its last step."""

    def read(self) -> list[Point]:
        """Complete lines since the last call, as points.

        Raises:
            StageError: a line is none of a run; the next call reads it again.
        """
        if not self._path.is_file():
            return []
        with self._path.open("rb") as file:
            size = file.seek(0, 2)
            # A run that resumes replaces the file; the inode alone may be used again.
            if (number := os.fstat(file.fileno()).st_ino) != self._file or size < self._offset:
                self._file, self._offset, self._lines, self.finished = number, 0, 0, False
            file.seek(self._offset)
            whole, newline, _ = file.read().rpartition(b"\n")
        lines = [self._parse(number, line) for number, line in enumerate(whole.splitlines(), self._lines + 1)]
        self._offset += len(whole) + len(newline)
        self._lines += len(lines)
        self.finished |= any(point.kind == "validation" and point.step == steps for point, steps in lines)
        return [point for point, _ in lines]

    def _parse(self, number: int, text: bytes) -> tuple[Point, int | None]:
        """A line, and how many steps the run will have."""
        try:
            line = json.loads(text)
            return _point(line), line.get("steps")
        except (ValueError, KeyError, TypeError):
            raise StageError(f"{self._path}: line {number} is not a line of metrics: correct or delete it") from None


def _point(line: Mapping[str, Any]) -> Point:
    kind = str(line["kind"])
    numbers = {key: float(line[key]) for key in line if key not in ("kind", "step", "steps") and _is_number(line[key])}
    # Trackers draw what is finite; JSON has no other numbers, but Python writes and reads them.
    values = {f"{kind}/{key}": value for key, value in numbers.items() if math.isfinite(value)}
    return Point(kind, int(line["step"]), values)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def short(error: BaseException) -> str:
    """The first line of an error, at most 160 characters."""
    first = re.sub(r"\s+", " ", str(error).strip().partition("\n")[0]) or type(error).__name__
    return first if len(first) <= 160 else f"{first[:159]}…"
