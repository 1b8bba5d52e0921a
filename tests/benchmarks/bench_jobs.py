"""Overhead of the job queue: the time of a thousand almost empty jobs, and the latency of one."""

import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmark_runner import Row, quick
from toy_stage_jobs import make_corpus

from cluster.actors import ray_cluster
from cluster.jobs import client
from cluster.jobs.job import Job

_JOBS = 50 if quick() else 1000


def rows() -> Iterator[Row]:
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(Path(__file__).parents[1] / "support"), os.environ.get("PYTHONPATH", "")]
    )
    os.environ.pop(ray_cluster.ADDRESS, None)
    with tempfile.TemporaryDirectory() as folder, ray_cluster.connect(2):
        place = Path(folder)
        make_corpus(place)
        queue = client.start(place / "ledger")
        yield _many(queue, place)
        yield _one(queue, place)


def _job(place: Path, name: str) -> Job:
    return Job(name, "toy_stage", {"text": name}, {"corpus": place / "corpus"}, place / "out" / name)


def _many(queue: client.Queue, place: Path) -> Row:
    queue.wait(queue.submit([_job(place, "warm-up")]))
    started = time.perf_counter()
    ids = queue.submit([_job(place, f"job-{number}") for number in range(_JOBS)])
    accepted = time.perf_counter() - started
    outcomes = queue.wait(ids)
    seconds = time.perf_counter() - started
    own = sum(outcome.seconds for outcome in outcomes) / 2
    each = statistics.median(outcome.seconds for outcome in outcomes) * 1e3
    return Row(
        "jobs_overhead_milliseconds",
        (seconds - own) / _JOBS * 1e3,
        "ms per job",
        f"{_JOBS:,} jobs of {each:.0f} ms each on two CPUs, submitted at once (accepted in {accepted:.2f} s): "
        f"{seconds:.1f} s, of which the jobs' own work is {own:.1f} s; every job is two lines in the ledger, on the "
        "disk before they count",
    )


def _one(queue: client.Queue, place: Path) -> Row:
    def run(number: int) -> float:
        started = time.perf_counter()
        queue.wait(queue.submit([_job(place, f"single-{number}")]))
        return time.perf_counter() - started

    times = [run(number) for number in range(3 if quick() else 10)]
    return Row(
        "job_latency_seconds",
        statistics.median(times),
        "s",
        f"from the submission of one job to its outcome on an idle cluster, {len(times)} times: the process it runs in "
        "is started, imports what it needs, and ends",
    )
