"""What a mobile benchmark measures, and the rows of its result, whether a phone, a browser or this host measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from pydantic import Field, NonNegativeInt, PositiveInt

from cluster.artifacts.recipe import Recipe
from cluster.models.export_spec import Exported
from eval.benchmark.percentiles import percentiles

Row: TypeAlias = dict[str, Any]


class Measurement(Recipe):
    """Settings of a measurement, the same for every transport."""

    lengths: tuple[PositiveInt, ...] = Field((384,), min_length=1)
    """Tokens of question and passage, for each workload."""
    threads: tuple[PositiveInt, ...] = Field((1, 4), min_length=1)
    """Numbers of threads; a browser uses those that it can."""
    warmup: NonNegativeInt = 2
    """Uncounted calls before each measurement."""
    repeats: PositiveInt = 10
    """Samples of each measurement."""


@dataclass(frozen=True)
class MeasuredExport:
    """An export to measure."""

    role: str
    path: Path
    known: Exported
    identity: str

    def facts(self) -> dict[str, Any]:
        """What each of its rows states."""
        return {
            "format": self.known.format,
            "identity": self.identity,
            "parameters": self.known.parameters,
            "bytes": self.known.bytes(self.path),
        }


def statistics(times: Sequence[float]) -> dict[str, float]:
    return {**percentiles(times), "samples": len(times)}


def row(model: str, runtime: str, threads: int, length: int, times: Sequence[float], **more: Any) -> Row:
    """One model in one runtime; ``times`` are milliseconds of a call without tokenization."""
    about = {"model": model, "runtime": runtime, "threads": threads, "length": length}
    return {**about, **statistics(times), **more}


def compared(rows: Sequence[Row]) -> list[Row]:
    """The rows with their gain over the teacher's row of the same runtime, threads and length.

    The gain has both forms, which the paper mixes: ``ratio_to_teacher`` 3.5 is ``less_time_percent`` 71.
    """
    teachers = {_conditions(entry): entry["p50_ms"] for entry in rows if entry["model"] == "teacher"}
    return [{**entry, **_gain(teachers.get(_conditions(entry)), entry["p50_ms"])} for entry in rows]


def _conditions(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(entry[key] for key in ("runtime", "threads", "length"))


def _gain(teacher: float | None, own: float) -> dict[str, float | None]:
    if teacher is None:
        return {"ratio_to_teacher": None, "less_time_percent": None}
    return {"ratio_to_teacher": teacher / own, "less_time_percent": 100 * (1 - own / teacher)}
