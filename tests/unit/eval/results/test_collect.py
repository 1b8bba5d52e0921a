"""Collecting the artifacts of a result folder."""

import math
import time
from pathlib import Path
from typing import Any

import pytest
from result_folders import make, scores

from cluster.artifacts import commit
from cluster.storage import filesystem
from eval.results.collect import collect, identity


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"score": "high"}, "score: "),
        ({"score": math.nan}, "NaN"),
        ({"dev_examples": None}, "dev_examples"),
    ],
)
def test_invalid_scores_are_refused(small_results: Path, changed: dict[str, Any], reason: str) -> None:
    make(small_results / "finetune/student/wnli", "finetune", {}, {"scores.json": scores("wnli", [56.3]) | changed})
    with pytest.raises(ValueError, match=rf"finetune/student/wnli/scores\.json.*{reason}"):
        collect(small_results)


def test_partial_artifacts_are_ignored(small_results: Path) -> None:
    before = identity(small_results)
    (small_results / "finetune/student/.cola.partial").mkdir()
    (small_results / "students/.larger.partial").mkdir()
    assert identity(small_results) == before


def test_the_link_of_a_killed_job_expires(tmp_path):
    folder = tmp_path / "mobile" / ".pocket.partial"
    folder.mkdir(parents=True)
    filesystem.write_json(folder / "link.json", {"link": "http://host/?t=x", "until": time.time() + 900})
    waiting = identity(tmp_path)
    assert collect(tmp_path).links["pocket"].link == "http://host/?t=x"
    filesystem.write_json(folder / "link.json", {"link": "http://host/?t=y", "until": time.time() + 900})
    assert identity(tmp_path) != waiting, "a report of it must be made again"
    filesystem.write_json(folder / "link.json", {"link": "http://host/?t=x", "until": time.time() - 1})
    with pytest.raises(commit.ArtifactError, match="holds no results"):
        collect(tmp_path)
