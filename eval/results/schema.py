"""Schemas of the result files, which reject files that are not results.

None is a number that was not measured. Scores are in percent, times in milliseconds or seconds as named.
"""

import json
import math
import statistics
import typing
from pathlib import Path
from typing import Any, TypeVar

import pydantic
from pydantic.dataclasses import dataclass as checked

TEACHER, STUDENT = "teacher", "student"

# Standard error of the median of normal values, relative to that of their mean: sqrt(pi / 2).
MEDIAN_ERROR = 1.2533

T = TypeVar("T")


def model_order(name: str) -> tuple[bool, bool, str]:
    """Sort key: the teacher, the student, then the others by name."""
    return (name != TEACHER, name != STUDENT, name)


@checked(frozen=True)
class Spread:
    """One metric over the seeds, in percent."""

    median: pydantic.FiniteFloat
    low: pydantic.FiniteFloat
    high: pydantic.FiniteFloat


@checked(frozen=True)
class Seed:
    """One fine-tuning; ``metrics`` are in percent."""

    seed: int
    score: pydantic.FiniteFloat
    metrics: dict[str, float] = pydantic.Field(default_factory=dict)
    seconds: float | None = None


@checked(frozen=True)
class ScoreResult:
    """``scores.json``: one model on one task; ``score`` is the median over seeds of the headline metric."""

    task: str
    metric: str
    score: pydantic.FiniteFloat
    low: pydantic.FiniteFloat
    high: pydantic.FiniteFloat
    metrics: dict[str, Spread]
    seeds: list[Seed]
    dev_examples: int
    train_examples: int | None = None
    dev_files: list[str] | None = None
    subset: bool = False
    majority: float | None = None
    below_majority: bool = False
    device: str | None = None
    settings: dict[str, Any] = pydantic.Field(default_factory=dict)
    second_step: dict[str, Any] | None = None
    seconds: float | None = None
    data: str | None = None
    """Identity of the folder of its examples, from the manifest."""

    @property
    def at_chance(self) -> bool:
        """Whether predicting the most frequent class scores as high."""
        return self.below_majority or (self.majority or 0) >= self.score

    def error(self, metric: str | None = None) -> float | None:
        """Standard error of the median over the seeds, in points; None with one seed."""
        values = [seed.score if metric is None else seed.metrics[metric] for seed in self.seeds]
        return MEDIAN_ERROR * statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


@checked(frozen=True)
class Timing:
    """One row of ``latency.json``: one model in one form on one workload and number of threads."""

    model: str
    """``teacher``, ``student``, or an architecture."""
    form: str
    """``pytorch``, or the export's format."""
    weights: typing.Literal["random", "given", "own"]
    runtime: str
    workload: typing.Literal["pairs", "questions", "lengths"]
    threads: pydantic.PositiveInt
    inputs: pydantic.PositiveInt
    seconds: pydantic.PositiveFloat
    """Of all inputs together, without tokenization."""
    p50_ms: pydantic.PositiveFloat
    length: int | None = None
    """Tokens of every input; None where inputs are as long as their texts."""
    batch: int = 1
    title: str | None = None
    tokenizer: str | None = None
    tokens: float | None = None
    tokenise_seconds: float | None = None
    p90_ms: float | None = None
    p99_ms: float | None = None
    mean_ms: float | None = None
    min_ms: float | None = None
    max_ms: float | None = None
    first_ms: float | None = None
    load_seconds: float | None = None
    peak_memory_bytes: int | None = None
    model_memory_bytes: int | None = None
    """The part of the peak that came with the model."""
    bytes: int | None = None
    parameters: int | None = None
    joules: float | None = None
    ratio_to_teacher: float | None = None
    """Time of the teacher in eager PyTorch in the same turns, divided by this one; so too ``ratio_to_bert_base``."""
    ratio_to_bert_base: float | None = None

    @property
    def place(self) -> tuple[int, int, int]:
        """Workload, length and threads, which comparable rows share, in the order of the report."""
        return (("pairs", "lengths", "questions").index(self.workload), self.length or 0, self.threads)


@checked(frozen=True)
class LatencyResult:
    """``latency.json``: rows and the conditions of their measurement."""

    machine: dict[str, Any]
    settings: dict[str, Any]
    rows: list[Timing]
    fit: bool
    """Whether the machine was quiet enough for reliable times; ``unfit`` is the reason where not."""
    unfit: str | None = None
    conditions: list[dict[str, Any]] = pydantic.Field(default_factory=list)
    data: dict[str, Any] = pydantic.Field(default_factory=dict)
    energy: dict[str, Any] = pydantic.Field(default_factory=dict)


@checked(frozen=True)
class PhoneTiming:
    """One row of ``mobile.json``: one model in one runtime, without tokenization."""

    model: typing.Literal["teacher", "student"]
    runtime: str
    threads: pydantic.PositiveInt
    length: pydantic.PositiveInt
    p50_ms: pydantic.PositiveFloat
    p90_ms: pydantic.PositiveFloat
    p99_ms: pydantic.PositiveFloat
    ratio_to_teacher: float | None
    less_time_percent: float | None
    """The same as ``ratio_to_teacher`` in the paper's words: 3.5 times as fast is 71 % less time."""
    bytes: int | None
    parameters: int | None
    title: str | None = None
    format: str | None = None
    weights: str | None = None
    first_ms: float | None = None
    load_seconds: float | None = None
    peak_memory_bytes: int | None = None
    tokenise: dict[str, float] | None = None


@checked(frozen=True)
class PhoneMeasurement:
    """``mobile.json``: rows and their device; ``proxy`` where a host stood in for a phone."""

    way: typing.Literal["browser", "adb", "proxy"]
    proxy: bool
    device: dict[str, Any]
    settings: dict[str, Any]
    rows: list[PhoneTiming]
    problems: list[dict[str, Any]]
    fit: bool
    unfit: str | None = None


@checked(frozen=True)
class WaitingLink:
    """``link.json`` of a job that waits for a phone: its one-time link, and the Unix time of its end."""

    link: str
    until: float


@checked(frozen=True)
class ProbeScore:
    """One line of ``probes.jsonl``: a checkpoint fine-tuned on a task during training."""

    step: int
    task: str
    metric: str
    score: pydantic.FiniteFloat
    low: pydantic.FiniteFloat
    high: pydantic.FiniteFloat
    seeds: int
    artifact: str | None = None


@checked(frozen=True)
class JobResult:
    """One entry of ``jobs.json``."""

    name: str
    state: typing.Literal["done", "skipped", "failed", "cancelled"]
    error: str | None = None
    seconds: float | None = None
    attempts: int | None = None
    failure: str | None = None


@checked(frozen=True)
class Ablations:
    """Students trained without a part of the method, and their reference."""

    reference: str
    students: list[str]


@checked(frozen=True)
class SuiteResult:
    """``suite.json``: the models, and how to compare them."""

    models: dict[str, str] = pydantic.Field(default_factory=dict)
    ablations: Ablations | None = None
    second_step: str | None = None


def parse(path: Path, contents: bytes | str, shape: type[T]) -> T:
    """The contents of a JSON file as ``shape``.

    Raises:
        ValueError: they do not fit; names the file and the first wrong key.
    """
    try:
        return pydantic.TypeAdapter(shape).validate_python(json.loads(contents, parse_constant=_refuse))
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ValueError(
            f"{path}: {place or 'contents'}: {first['msg'].lower()}; delete it and make it again"
        ) from None
    except ValueError as error:
        raise ValueError(f"{path} cannot be read ({error}); delete it and make it again") from None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number")
