"""Jobs of the toy stage, and their input artifact."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from waiting import wait_until

from cluster.artifacts import artifact, commit
from cluster.jobs.job import Job


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
