"""Jobs of the toy stage, and their input artifact."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import paths
import pytest
from waiting import wait_until

from cluster.actors import ray_cluster
from cluster.artifacts import artifact, commit
from cluster.jobs import client
from cluster.jobs.failures import RetryPolicy
from cluster.jobs.job import Job


@contextmanager
def queue_of_two_cpus(ledger: Path, policy: RetryPolicy | None = None) -> Iterator[None]:
    """A Ray cluster of two CPUs and its job queue, whose workers find the toy stage as they find an installed one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(paths.SUPPORT), prepend=os.pathsep)
        patch.delenv(ray_cluster.ADDRESS, raising=False)
        with ray_cluster.connect(2):
            client.start(ledger, policy)
            yield


def make_corpus(folder: Path) -> Path:
    """A small complete artifact, ``folder/corpus``."""
    with artifact.create(folder / "corpus", kind="corpus", inputs={}, recipe={}) as draft:
        (draft.path / "text.txt").write_text("text")
    return folder / "corpus"


def toy_job(corpus: Path, name: str, recipe: Mapping[str, Any] | None = None, **given: Any) -> Job:
    """A job that writes its artifact next to the corpus, under the job's name."""
    return Job(name, "toy_stage", {"text": name, **(recipe or {})}, {"corpus": corpus}, corpus.with_name(name), **given)


def await_running(corpus: Path, *names: str) -> None:
    """Wait until the jobs with these names have written their text."""
    wait_until(lambda: all((commit.staging(corpus.with_name(name)) / "text.txt").exists() for name in names))
