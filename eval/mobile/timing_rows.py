"""Rows of a mobile benchmark: the same whatever brought the numbers, a phone, a browser or a proxy on this host."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from cluster.models.export_spec import Exported

Row: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class MeasuredExport:
    """An export to be measured."""

    role: str
    path: Path
    known: Exported
    identity: str

    def facts(self) -> dict[str, Any]:
        """For its rows."""
        return {
            "format": self.known.format,
            "identity": self.identity,
            "parameters": self.known.parameters,
            "bytes": self.known.bytes(self.path),
        }


def percentiles(times: Sequence[float]) -> dict[str, float]:
    """Of milliseconds, outliers kept."""
    p50, p90, p99 = np.percentile(times, (50, 90, 99))
    return {
        "p50_ms": float(p50),
        "p90_ms": float(p90),
        "p99_ms": float(p99),
        "mean_ms": float(np.mean(times)),
        "min_ms": float(np.min(times)),
        "max_ms": float(np.max(times)),
        "samples": len(times),
    }


def row(model: str, runtime: str, threads: int, length: int, times: Sequence[float], **more: Any) -> Row:
    """One model in one runtime on so many threads; ``times`` are milliseconds of a call without tokenisation."""
    return {
        "model": model, "runtime": runtime, "threads": threads, "length": length, **percentiles(times), **more
    }  # fmt: skip


def compared(rows: Sequence[Row]) -> list[Row]:
    """The rows with how much faster each is than the teacher in the same runtime, on as many threads, at its length.

    Both ways of saying it, which the paper mixes: ``ratio_to_teacher`` 3.5 is ``less_time_percent`` 71.
    """
    teachers = {_conditions(entry): entry["p50_ms"] for entry in rows if entry["model"] == "teacher"}
    return [{**entry, **_comparison(teachers.get(_conditions(entry)), entry["p50_ms"])} for entry in rows]


def _conditions(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(entry[key] for key in ("runtime", "threads", "length"))


def _comparison(teacher: float | None, own: float) -> dict[str, float | None]:
    if teacher is None:
        return {"ratio_to_teacher": None, "less_time_percent": None}
    return {"ratio_to_teacher": teacher / own, "less_time_percent": 100 * (1 - own / teacher)}
