"""Reads the results in the output folder of a pipeline or a suite, strictly.

::

    OUT/suite.json                       the models, and how to compare them
    OUT/corpus OUT/tokens OUT/teacher    artifacts; OUT/tokens-<seq_len> where phases read other lengths
    OUT/runs/<name>/                     recipe.json, metrics.jsonl, probes.jsonl
    OUT/students/<name>/                 student artifacts; "student" is the main one, others are ablations;
                                         heldout.parquet has the last validation by row
    OUT/finetune/<model>/<task>/         scores.json, examples.parquet
    OUT/bag_of_words/<task>/             the same, of word counts with a linear model
    OUT/exports/<model>/<format>/        facts: bytes, parity
    OUT/latency/ OUT/baselines/          latency.json, of teacher, student and exports, and of architectures
    OUT/mobile/<name>/                   mobile.json; the link of a job that waits for a phone
    OUT/jobs.json                        the outcomes of the jobs

Any of them may be absent, and means "not measured". Damaged artifacts and files are errors.
"""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow.parquet as pq

from cluster.artifacts import artifact, commit
from cluster.artifacts.artifact import Artifact
from cluster.artifacts.commit import ArtifactError
from cluster.models import model_check, model_folder
from cluster.storage import filesystem
from cluster.telemetry import metrics_log
from eval.results.heldout_values import HeldOutRows
from eval.results.schema import (
    TEACHER,
    JobResult,
    LatencyResult,
    PhoneMeasurement,
    ProbeScore,
    ScoreResult,
    SuiteResult,
    WaitingLink,
    model_order,
    parse,
)
from eval.results.uncertainty import Columns, Values

WEIGHTS = ".safetensors"
BAGS = "bag_of_words"
HELDOUT, EXAMPLES = "heldout.parquet", "examples.parquet"

_PLACES = (
    ("corpus", "corpus"),
    ("tokens", "tokens"),
    ("tokens-*", "tokens"),
    ("teacher", "teacher"),
    ("students/*", "student"),
    ("finetune/*/*", "finetune"),
    ("bag_of_words/*", "benchmark"),
    ("exports/*/*", "export"),
    ("latency", "benchmark"),
    ("baselines", "benchmark"),
    ("mobile/*", "benchmark"),
)
# The outcome of the report's own job is written after the report.
_REPORT_JOB = "report"

T = TypeVar("T")


@dataclass(frozen=True)
class ResultRun:
    """One run folder; ``recipe`` is None where the run did not record one."""

    name: str
    recipe: Mapping[str, Any] | None
    lines: list[dict[str, Any]]
    probes: list[ProbeScore]


@dataclass(frozen=True)
class ResultModel:
    """A teacher or student: an artifact made here, or another folder."""

    facts: Mapping[str, Any]
    weight_bytes: int | None
    identity: str
    source: str | None
    """Path of its artifact below the results; None for other folders."""
    heldout: HeldOutRows | None = None
    """Its last validation by row; None for models that were not validated here."""


@dataclass(frozen=True)
class Results:
    """All results; ``artifacts`` by relative path, in the order of the pipeline."""

    name: str
    """Name of the folder: that of the pipeline."""
    artifacts: dict[str, Artifact]
    models: dict[str, ResultModel]
    suite: SuiteResult
    scores: dict[str, dict[str, ScoreResult]]
    """By model and task."""
    bags: dict[str, ScoreResult]
    """Bags of words, by task."""
    examples: dict[str, Columns]
    """What each development example contributes to a score, by the path of the score's artifact."""
    runs: list[ResultRun]
    latency: LatencyResult | None
    baselines: LatencyResult | None
    phones: dict[str, PhoneMeasurement]
    """By folder name."""
    links: dict[str, WaitingLink]
    """Links of jobs that wait for a phone, by folder name."""
    jobs: list[JobResult]

    def below(self, place: str) -> dict[str, Artifact]:
        """Artifacts below ``place``, by their path there."""
        return {
            path.removeprefix(f"{place}/"): each
            for path, each in self.artifacts.items()
            if path.startswith(f"{place}/")
        }


def collect(folder: Path) -> Results:
    """Read all results of a pipeline's or suite's output folder.

    Raises:
        ArtifactError: no results, or a damaged artifact.
        ValueError: a damaged file.
    """
    artifacts = _artifacts(folder)
    runs = [_run(path) for path in sorted(folder.glob("runs/*")) if path.is_dir() and not path.name.startswith(".")]
    links = _links(folder)
    if not artifacts and not runs and not links:
        raise ArtifactError(
            f"{folder} holds no results: expected teacher/, students/, finetune/ … as stillhouse launch and "
            "stillhouse suite make them"
        )
    suite = _file(folder / "suite.json", SuiteResult) or SuiteResult()
    scores: dict[str, dict[str, ScoreResult]] = {}
    bags: dict[str, ScoreResult] = {}
    examples: dict[str, Columns] = {}
    phones: dict[str, PhoneMeasurement] = {}
    latency = {
        name: _sealed(artifacts[name], "latency.json", LatencyResult)
        for name in ("latency", "baselines")
        if name in artifacts
    }
    for path, found in artifacts.items():
        place, _, name = path.partition("/")
        if place in ("finetune", BAGS):
            score = replace(_sealed(found, "scores.json", ScoreResult), data=found.inputs.get("data"))
            model, _, task = name.rpartition("/")
            of_model = scores.setdefault(model, {}) if place == "finetune" else bags
            of_model[task] = score
            if EXAMPLES in found.files:
                examples[path] = _columns(found, EXAMPLES)
        elif place == "mobile":
            phones[name] = _sealed(found, "mobile.json", PhoneMeasurement)
    return Results(
        name=folder.resolve().name,
        artifacts=artifacts,
        models=_models(folder, suite, artifacts),
        suite=suite,
        scores=scores,
        bags=bags,
        examples=examples,
        runs=runs,
        latency=latency.get("latency"),
        baselines=latency.get("baselines"),
        phones=phones,
        links=links,
        jobs=[job for job in _file(folder / "jobs.json", list[JobResult]) or [] if job.name != _REPORT_JOB],
    )


def identity(folder: Path) -> str:
    """Identity of the results in a folder, without checkpoints and the report.

    A failed job changes it; a job that was skipped because its artifact was complete does not.

    Raises:
        ArtifactError, ValueError: as :func:`collect`.
    """
    results = collect(folder)
    names = ("recipe.json", "metrics.jsonl", "probes.jsonl")
    logs = [path for name in names for path in sorted(folder.glob(f"runs/*/{name}"))]
    return artifact.digest(
        {
            "artifacts": {path: found.identity for path, found in results.artifacts.items()},
            "models": {name: model.identity for name, model in results.models.items()},
            "compared": asdict(results.suite) | {"models": None},
            "logs": {str(path.relative_to(folder)): filesystem.file_sha256(path) for path in logs},
            "links": sorted(each.link for each in results.links.values()),
            "failed": [[job.name, job.error] for job in results.jobs if job.state in ("failed", "cancelled")],
        }
    )


def _artifacts(folder: Path) -> dict[str, Artifact]:
    found: dict[str, Artifact] = {}
    for pattern, kind in _PLACES:
        for path in sorted(path for path in folder.glob(pattern) if path.is_dir()):
            place = path.relative_to(folder)
            # Hidden directories are incomplete artifacts.
            if not any(part.startswith(".") for part in place.parts):
                found[str(place)] = artifact.read(path, kind)
    return found


def _links(folder: Path) -> dict[str, WaitingLink]:
    """Links of jobs that wait for a phone, from the folders of incomplete artifacts; without expired ones."""
    found = {
        path.parent.name.removeprefix(".").removesuffix(".partial"): parse(path, path.read_bytes(), WaitingLink)
        for path in sorted(folder.glob("mobile/.*.partial/link.json"))
    }
    return {name: each for name, each in found.items() if each.until > time.time()}


def _models(folder: Path, suite: SuiteResult, artifacts: Mapping[str, Artifact]) -> dict[str, ResultModel]:
    """Teacher and students made here, and the models of ``suite.json``."""
    made = {TEACHER: TEACHER} if TEACHER in artifacts else {}
    made |= {path.partition("/")[2]: path for path in artifacts if path.startswith("students/")}
    found = {name: _made(artifacts[path], path) for name, path in made.items() if name not in suite.models}
    for name, place in suite.models.items():
        path = folder / place
        known = str(path.relative_to(folder)) if path.is_relative_to(folder) else ""
        if known in artifacts:
            found[name] = _made(artifacts[known], known)
        elif (path / commit.MANIFEST).is_file():
            found[name] = _made(artifact.read(path), None)
        else:
            model_check.check(path)
            found[name] = ResultModel(
                model_folder.facts(path), model_folder.weight_bytes(path), model_folder.weights_identity(path), None
            )
    return {name: found[name] for name in sorted(found, key=model_order)}


def _made(found: Artifact, source: str | None) -> ResultModel:
    model_check.unchanged(found.path)
    sizes = [int(entry["bytes"]) for name, entry in found.files.items() if name.endswith(WEIGHTS)]
    heldout = None
    if (known := found.facts.get("heldout")) is not None:
        heldout = HeldOutRows(known, **_columns(found, HELDOUT))
    return ResultModel(found.facts, sum(sizes) if sizes else None, found.identity, source, heldout)


def _run(path: Path) -> ResultRun:
    return ResultRun(
        path.name,
        _file(path / "recipe.json", dict[str, Any]),
        metrics_log.read_metrics(path / "metrics.jsonl"),
        _probes(path / "probes.jsonl"),
    )


def _probes(path: Path) -> list[ProbeScore]:
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    found = [parse(path, line, ProbeScore) for line in lines]
    return sorted(found, key=lambda probe: (probe.task, probe.step))


def _file(path: Path, shape: type[T]) -> T | None:
    return parse(path, path.read_bytes(), shape) if path.exists() else None


def _sealed(found: Artifact, name: str, shape: type[T]) -> T:
    """The contents of an artifact's JSON file."""
    path = _unchanged(found, name)
    return parse(path, path.read_bytes(), shape)


def _columns(found: Artifact, name: str) -> dict[str, Values]:
    """The columns of an artifact's Parquet file of numbers."""
    table = pq.read_table(_unchanged(found, name))
    return {column: table[column].to_numpy().astype(np.float64) for column in table.column_names}


def _unchanged(found: Artifact, name: str) -> Path:
    """A file of an artifact, which has the manifest's hash."""
    path = found.path / name
    entry = found.files.get(name)
    if entry is None:
        raise ArtifactError(f"{found.path} has no {name}: delete it and make it again")
    if filesystem.file_sha256(path) != entry["sha256"]:
        raise ArtifactError(f"{path} was changed after it was made: delete {found.path} and make it again")
    return path
