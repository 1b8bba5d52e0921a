"""Jobs that use the cluster themselves: those with a pool of actors, and those that start jobs, end on any cluster."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import ray
import tiny
from toy_stage_jobs import queue_of_two_cpus

from cluster.artifacts.errors import StageError
from cluster.jobs import client
from cluster.jobs.job import GOOD, Job, Outcome, make_requests

DEADLINE = 90.0
"""Seconds after which a job that waits for itself fails, instead of hanging the test."""


@pytest.fixture(scope="module", autouse=True)
def ray_of_two_cpus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with queue_of_two_cpus(tmp_path_factory.mktemp("ledger")):
        yield


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A recipe of a small corpus."""
    text = tiny.corpus(tmp_path_factory.mktemp("text"))
    return {"sources": [{"kind": "jsonl", "path": str(text)}], "shard_bytes": 4_000}


def _corpus(sources: dict[str, Any], out: Path, **given: Any) -> Job:
    return Job(out.name, "cluster.corpus", sources, {}, out, deadline=DEADLINE, **given)


def _run(jobs: Sequence[Job], ledger: Path) -> list[Outcome]:
    """Run the jobs; they are done."""
    outcomes = client.run(jobs, ledger)
    assert [outcome.state for outcome in outcomes] == ["done"] * len(jobs), [outcome.error for outcome in outcomes]
    return outcomes


def test_as_many_pools_as_cpus_end(sources: dict[str, Any], tmp_path: Path) -> None:
    corpora = [_corpus(sources, tmp_path / f"corpus-{number}") for number in range(2)]
    _run(corpora, tmp_path / "ledger")
    recipe = {"seq_len": 16, "heldout": 0.2, "tokenizer": {"kind": "wordpiece", "vocab_size": 300}}
    tokens = [
        Job(f"tokens-{job.name}", "cluster.tokens", recipe, {"corpus": job.out}, tmp_path / f"tokens-{job.name}")
        for job in corpora
    ]
    _run([Job(**{**vars(job), "deadline": DEADLINE}) for job in tokens], tmp_path / "ledger")


@pytest.mark.parametrize("cpus", [2, pytest.param(0.5, marks=pytest.mark.long)])
def test_a_pool_ends_whatever_its_job_reserves(sources: dict[str, Any], tmp_path: Path, cpus: float) -> None:
    more = {**sources, "placement": {"actors": 8}}  # than the cluster has CPUs
    _run([_corpus(more, tmp_path / "corpus", cpus=cpus)], tmp_path / "ledger")


@pytest.mark.long
def test_a_pool_ends_on_the_only_cpu_that_others_leave(sources: dict[str, Any], tmp_path: Path) -> None:
    other: Any = ray.remote(num_cpus=1)(_Other).remote()
    ray.get(other.here.remote())
    _run([_corpus(sources, tmp_path / f"corpus-{number}") for number in range(2)], tmp_path / "ledger")
    ray.kill(other)


def test_as_many_suites_as_cpus_end(tmp_path: Path) -> None:
    suites = [Job(f"suite-{n}", "eval.suite", {}, {}, tmp_path / f"suite-{n}", deadline=DEADLINE) for n in range(2)]
    outcomes = client.run(suites, tmp_path / "ledger")
    assert all(outcome.state in GOOD or outcome.failure == "user" for outcome in outcomes), outcomes


@pytest.mark.parametrize("stage", ["eval.suite", "eval.probes"])
def test_a_job_that_starts_jobs_reserves_nothing(tmp_path: Path, stage: str) -> None:
    (request,) = make_requests([Job("starter", stage, {}, {}, tmp_path)])
    assert request.job.need.needs_nothing
    for asked in ({"cpus": 1}, {"gpus": 0.5}, {"alone": True}, {"resources": {"benchmark": 1}}):
        with pytest.raises(StageError, match="leave out"):
            make_requests([Job("starter", stage, {}, {}, tmp_path, **asked)])


def test_stages_declare_what_their_jobs_reserve(tmp_path: Path) -> None:
    def needs(stage: str, **given: Any) -> tuple[float | None, bool | None]:
        (request,) = make_requests([Job("job", stage, {}, {}, tmp_path, **given)])
        return request.job.cpus, request.job.alone

    assert needs("eval.finetune") == (1, False)
    assert needs("eval.latency") == (1, True)
    assert needs("eval.latency", alone=False, cpus=2) == (2, False)
    assert needs("no.stage") == (1, False)


class _Other:
    """Work outside the queue."""

    def here(self) -> bool:
        return True
