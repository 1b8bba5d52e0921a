"""Kill actors, nodes and drivers while documents are read and filtered: the corpus is the same."""

import contextlib
import json
import os
import signal
from pathlib import Path

import numpy as np
import paths
import psutil
import pytest
import ray_clusters
import tiny
import tiny_pipeline
from driver_processes import StageProcess

from cluster.artifacts import artifact
from cluster.corpus.stage import WORK

pytestmark = pytest.mark.long

RECIPE = """
sources = [{{ kind = "jsonl", path = "{folder}/*.jsonl", name = "made up" }}]
shard_bytes = 3000000
[cleaning]
languages = ["en"]
min_language_score = 0.1
[cleaning.gopher]
max_repeated_lines = 1.0
[near_duplicates]
"""
BAD = 6


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe for 40 MB of documents with repeats and a few bad lines, which take seconds to process."""
    found = tmp_path_factory.mktemp("texts")
    words = np.array(" ".join(tiny.ENGLISH).split(), dtype=object)
    draw = np.random.default_rng(0)
    for number in range(20):
        with (found / f"{number:02}.jsonl").open("w") as file:
            for line in range(600):
                text = " ".join(words[draw.integers(0, len(words), 600)])
                file.write(json.dumps({"text": text}) + "\n")
                if line % 100 == number:
                    file.write(json.dumps({"text": text}) + "\n")
            if number < BAD:
                file.write("no json\n")
    (found / "recipe.toml").write_text(RECIPE.format(folder=found))
    return found / "recipe.toml"


def _driver(recipe: Path, out: Path, environment: dict[str, str]) -> StageProcess:
    return StageProcess(["cluster.corpus", str(recipe)], out, WORK, environment)


def _environment() -> dict[str, str]:
    path = os.pathsep.join([str(paths.SUPPORT / "patch_small_splits"), os.environ.get("PYTHONPATH", "")])
    return tiny_pipeline.environment(PYTHONPATH=path)


@pytest.fixture(scope="module")
def uninterrupted_corpus(recipe: Path) -> artifact.Artifact:
    """The corpus of an uninterrupted run."""
    _driver(recipe, recipe.parent / "whole", _environment()).finish()
    found = artifact.verify(recipe.parent / "whole", "corpus")
    assert found.facts["dropped"]["not JSON"] == BAD
    assert found.facts["duplicates"]["exact"] == 6 * 20
    return found


def _check_same(path: Path, uninterrupted_corpus: artifact.Artifact) -> None:
    found = artifact.verify(path, "corpus")
    assert found.facts == uninterrupted_corpus.facts
    assert found.files == uninterrupted_corpus.files


@pytest.mark.rare
def test_an_actor_that_is_killed(recipe: Path, tmp_path: Path, uninterrupted_corpus: artifact.Artifact) -> None:
    driver = _driver(recipe, tmp_path / "corpus", _environment())
    driver.await_that(lambda: len(driver.done()) >= 10)
    family = psutil.Process(driver.process.pid)
    driver.await_that(lambda: bool(ray_clusters.actors(family.children(recursive=True))))
    ray_clusters.actors(family.children(recursive=True))[0].kill()
    said = driver.finish()
    assert said.count(" died: its unit is replaced") == 1
    _check_same(tmp_path / "corpus", uninterrupted_corpus)


@pytest.mark.rare
@pytest.mark.skipif(not ray_clusters.namespaces_work(), reason="only root can give nodes networks of their own")
@pytest.mark.parametrize("how", ["killed", "cut off"])
def test_a_node_that_is_lost(recipe: Path, tmp_path: Path, uninterrupted_corpus: artifact.Artifact, how: str) -> None:
    with ray_clusters.running_cluster(tmp_path, isolated=True) as cluster:
        cluster.environment["PYTHONPATH"] = _environment()["PYTHONPATH"]
        for _ in range(2):
            cluster.add()
        driver = _driver(recipe, tmp_path / "corpus", cluster.environment)
        driver.await_that(lambda: len(driver.done()) >= 10)
        driver.await_that(lambda: all(ray_clusters.actors(node.processes()) for node in cluster.nodes[1:]))
        if how == "killed":
            cluster.nodes[2].kill()
        else:
            cluster.nodes[2].cut()
        said = driver.finish()
    assert "the node of a worker at " in said
    _check_same(tmp_path / "corpus", uninterrupted_corpus)


def test_a_driver_that_is_killed_and_started_again(
    recipe: Path, tmp_path: Path, uninterrupted_corpus: artifact.Artifact
) -> None:
    driver = _driver(recipe, tmp_path / "corpus", _environment())
    driver.await_that(lambda: len(driver.done()) >= 10)
    family = psutil.Process(driver.process.pid).children(recursive=True)
    driver.process.send_signal(signal.SIGKILL)
    driver.process.wait()
    for left in family:  # Ray on that machine
        with contextlib.suppress(psutil.NoSuchProcess):
            left.kill()
    before = driver.done()
    again = _driver(recipe, tmp_path / "corpus", _environment())
    again.await_that(lambda: len(again.done()) > len(before) + 5)
    assert {name: when for name, when in again.done().items() if name in before} == before
    again.finish()
    _check_same(tmp_path / "corpus", uninterrupted_corpus)
