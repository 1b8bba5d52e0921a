"""What lies in a pipeline's output folder, read once and strictly.

::

    OUT/corpus OUT/tokens OUT/teacher    artifacts; OUT/tokens-<seq_len> where phases read other lengths
    OUT/runs/<name>/                     recipe.json, metrics.jsonl
    OUT/students/<name>/                 student artifacts; "student" is the main one, others are ablations
    OUT/finetune/<model>/<task>/         scores.json
    OUT/exports/<model>/<format>/        facts: bytes, parity
    OUT/latency/                         latency.json
    OUT/jobs.json                        what the pipeline did, and what failed

Everything may be absent: a result that is not there was not measured. What is there must be whole: a damaged
artifact or file is refused by name.
"""

import json
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pydantic
from pydantic.dataclasses import dataclass as checked

from cluster import artifact, telemetry
from cluster.artifact import Artifact, ArtifactError

TEACHER, STUDENT = "teacher", "student"
WEIGHTS = ".safetensors"

# Roles of the latency stage, as whose weights they are and in which form.
FORMS = {
    "teacher": (TEACHER, "PyTorch"),
    "student": (STUDENT, "PyTorch"),
    "teacher_onnx": (TEACHER, "ONNX"),
    "onnx": (STUDENT, "ONNX"),
    "teacher_int8": (TEACHER, "ONNX int8"),
    "int8": (STUDENT, "ONNX int8"),
}

_PLACES = (
    ("corpus", "corpus"),
    ("tokens", "tokens"),
    ("tokens-*", "tokens"),
    ("teacher", "teacher"),
    ("students/*", "student"),
    ("finetune/*/*", "finetune"),
    ("exports/*/*", "export"),
    ("latency", "benchmark"),
)
# The pipeline's own record of making the report is written after the report: it is no result.
_REPORT_JOB = "report"

T = TypeVar("T")


@checked(frozen=True)
class Score:
    """``scores.json``: one model on one task. Scores are percent, ``score`` the median over seeds."""

    task: str
    metric: str
    score: pydantic.FiniteFloat
    low: pydantic.FiniteFloat
    high: pydantic.FiniteFloat
    seeds: list[dict[str, Any]]
    dev_examples: int
    train_examples: int | None = None
    dev_files: list[str] | None = None
    subset: bool = False
    majority: float | None = None
    metrics: dict[str, Any] | None = None


@checked(frozen=True)
class Timing:
    """One row of ``latency.json``: one model in one runtime at one length in tokens; ``model`` is its role there."""

    model: str
    runtime: str
    length: int
    p50_ms: pydantic.PositiveFloat
    p90_ms: float | None = None
    p99_ms: float | None = None
    mean_ms: float | None = None
    first_ms: float | None = None
    load_seconds: float | None = None
    parameters: int | None = None
    bytes: int | None = None
    ratio_to_teacher: float | None = None
    """The teacher's PyTorch median at this length over this one."""

    @property
    def who(self) -> str:
        """Whose weights these are: teacher, student, or the role itself where it is another one."""
        return FORMS.get(self.model, (self.model, ""))[0]

    @property
    def form(self) -> str:
        """``PyTorch``, ``ONNX`` or ``ONNX int8``: the same form is the same runtime and the same precision."""
        return FORMS.get(self.model, ("", "PyTorch"))[1]


@checked(frozen=True)
class Latency:
    """``latency.json``: rows, and the conditions without which they are no result."""

    machine: dict[str, Any]
    settings: dict[str, Any]
    rows: list[Timing]


@checked(frozen=True)
class Job:
    """One entry of ``jobs.json``."""

    name: str
    state: typing.Literal["done", "skipped", "failed"]
    error: str | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Run:
    """One run folder; ``recipe`` is None where the run did not record one."""

    name: str
    recipe: Mapping[str, Any] | None
    lines: list[dict[str, Any]]


@dataclass(frozen=True)
class Results:
    """All that was found. ``artifacts`` maps relative paths to artifacts, in the order of the pipeline."""

    artifacts: dict[str, Artifact]
    scores: dict[str, dict[str, Score]]
    runs: list[Run]
    latency: Latency | None
    jobs: list[Job]

    def below(self, place: str) -> dict[str, Artifact]:
        """Artifacts under ``place/``, by the rest of their path."""
        start = f"{place}/"
        return {path.removeprefix(start): found for path, found in self.artifacts.items() if path.startswith(start)}


def collect(folder: Path) -> Results:
    """Read everything a report tells from a pipeline's output folder.

    Raises:
        ArtifactError: no results there, or a damaged artifact, which is named.
        ValueError: a damaged file beside the artifacts, which is named.
    """
    artifacts = _artifacts(folder)
    runs = [_run(path) for path in sorted(folder.glob("runs/*")) if path.is_dir() and not path.name.startswith(".")]
    if not artifacts and not runs:
        raise ArtifactError(f"{folder} holds no results: expected teacher/, students/, runs/ … as distill.launch makes")
    scores: dict[str, dict[str, Score]] = {}
    for path, found in artifacts.items():
        if found.kind == "finetune":
            _, model, task = path.split("/")
            scores.setdefault(model, {})[task] = _sealed(found, "scores.json", Score)
    latency = _sealed(artifacts["latency"], "latency.json", Latency) if "latency" in artifacts else None
    return Results(artifacts, scores, runs, latency, _jobs(folder))


def identity(folder: Path) -> str:
    """Identity of the results in a folder, without hashing weights and checkpoints, or the report made from them.

    That a job ran or was skipped because its artifact was complete makes no other result; that it failed does.

    Raises:
        ArtifactError, ValueError: as :func:`collect`.
    """
    results = collect(folder)
    logs = [path for name in ("recipe.json", "metrics.jsonl") for path in sorted(folder.glob(f"runs/*/{name}"))]
    return artifact.digest(
        {
            "artifacts": {path: found.identity for path, found in results.artifacts.items()},
            "logs": {str(path.relative_to(folder)): artifact.file_sha256(path) for path in logs},
            "failed": [[job.name, job.error] for job in results.jobs if job.state == "failed"],
        }
    )


def weight_bytes(found: Artifact) -> int | None:
    """Bytes of the weight files of a model artifact, None where it has none."""
    sizes = [int(entry["bytes"]) for name, entry in found.manifest["files"].items() if name.endswith(WEIGHTS)]
    return sum(sizes) if sizes else None


def _artifacts(folder: Path) -> dict[str, Artifact]:
    found: dict[str, Artifact] = {}
    for pattern, kind in _PLACES:
        for path in sorted(path for path in folder.glob(pattern) if path.is_dir()):
            place = path.relative_to(folder)
            # Hidden directories are artifacts in the making.
            if not any(part.startswith(".") for part in place.parts):
                found[str(place)] = artifact.read(path, kind)
    return found


def _run(path: Path) -> Run:
    recipe = path / "recipe.json"
    values = _parse(recipe, recipe.read_bytes(), dict[str, Any]) if recipe.exists() else None
    return Run(path.name, values, telemetry.read_metrics(path / "metrics.jsonl"))


def _jobs(folder: Path) -> list[Job]:
    path = folder / "jobs.json"
    jobs = _parse(path, path.read_bytes(), list[Job]) if path.exists() else []
    return [job for job in jobs if job.name != _REPORT_JOB]


def _sealed(found: Artifact, name: str, shape: type[T]) -> T:
    """The contents of an artifact's file, which must be what the manifest says to the last bit."""
    path = found.path / name
    entry = found.manifest["files"].get(name)
    if entry is None:
        raise ArtifactError(f"{found.path} has no {name}: delete it and make it again")
    if artifact.file_sha256(path) != entry["sha256"]:
        raise ArtifactError(f"{path} was changed after it was made: delete {found.path} and make it again")
    return _parse(path, path.read_bytes(), shape)


def _parse(path: Path, contents: bytes, shape: type[T]) -> T:
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
    raise ValueError(f"{constant} is no result")
