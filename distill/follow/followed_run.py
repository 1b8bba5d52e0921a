"""What a follower reads of a run, and where it keeps what it has drawn.

::

    OUT/runs/student/metrics.jsonl          read; rewritten when the run falls back to an earlier checkpoint
    OUT/runs/student/recipe.json            the hyper-parameters
    OUT/.follow/student-mlflow.json         id of the curve and the last steps that the tracker has taken
    OUT/.follow/student-mlflow.log          what the tracker's library prints
    OUT/tensorboard/student/                event files

Followers of a run that is not in a pipeline keep their files inside it. Those of a teacher keep them beside it: its run
folder does not outlive the training.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.artifacts import commit
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
        """A follower's own file, in a folder that exists."""
        folder = self.base / STATE
        folder.mkdir(exist_ok=True)
        return folder / f"{self.name}-{tracker}.{ending}"

    def parameters(self) -> dict[str, Any]:
        """The recipe's values by key: ``{"loss.soft": 5.0, …}``."""
        for name in ("recipe.json", commit.MANIFEST):
            if (place := self.path / name).is_file():
                return dict(_flat(json.loads(place.read_text(encoding="utf-8"))["recipe"]))
        return {}


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
    curve: str = ""
    """The tracker's id of the curve; empty before it has one."""
    drawn: dict[str, int] = field(default_factory=dict)
    """The last step by kind of line."""

    @classmethod
    def read(cls, place: Path) -> "State":
        if not place.is_file():
            return cls(place)
        found = json.loads(place.read_text(encoding="utf-8"))
        return cls(place, found["curve"], found["drawn"])

    def write(self) -> None:
        write_json(self.place, {"curve": self.curve, "drawn": self.drawn})

    def is_new(self, point: Point) -> bool:
        return point.step > self.drawn.get(point.kind, -1)

    def add(self, points: "list[Point]") -> None:
        for point in points:
            self.drawn[point.kind] = max(point.step, self.drawn.get(point.kind, -1))
        self.write()


class Tail:
    """Reads the lines that were added to ``metrics.jsonl``, and all of them where the file is another one."""

    def __init__(self, path: Path) -> None:
        self._path, self._file, self._offset = path, -1, 0
        self.finished = False
        """Whether the last step of the run was read."""

    def read(self) -> list[Point]:
        """Complete lines since the last call, as points."""
        if not self._path.is_file():
            return []
        with self._path.open("rb") as file:
            size = file.seek(0, 2)
            # A run that resumes replaces the file; the inode alone may be used again.
            if (number := os.fstat(file.fileno()).st_ino) != self._file or size < self._offset:
                self._file, self._offset = number, 0
            file.seek(self._offset)
            whole, newline, _ = file.read().rpartition(b"\n")
        self._offset += len(whole) + len(newline)
        lines = [json.loads(line) for line in whole.splitlines()]
        self.finished = any(line.get("steps") == line["step"] for line in lines) or (self.finished and not lines)
        return [_point(line) for line in lines]


def _point(line: Mapping[str, Any]) -> Point:
    kind = str(line["kind"])
    numbers = {key: value for key, value in line.items() if key not in ("kind", "step", "steps")}
    values = {f"{kind}/{key}": float(value) for key, value in numbers.items() if isinstance(value, int | float)}
    return Point(kind, int(line["step"]), values)


def short(error: BaseException) -> str:
    """The first line of an error, at most 160 characters."""
    first = re.sub(r"\s+", " ", str(error).strip().partition("\n")[0]) or type(error).__name__
    return first if len(first) <= 160 else f"{first[:159]}…"
