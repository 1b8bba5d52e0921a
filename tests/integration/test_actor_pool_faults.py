"""Kill actors, nodes, networks and drivers while tokens are made: the rows are the same, byte for byte."""

import os
import random
import signal
import string
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray_clusters
import tiny
import tiny_pipeline
from driver_processes import StageProcess

from cluster.artifacts import artifact
from cluster.corpus import shard_writer
from cluster.tokens.stage import WORK

pytestmark = pytest.mark.long

SHARDS = 24
SETTINGS = ("heldout=0.05", "seq_len=64")
SHARED = pytest.mark.skipif(not ray_clusters.namespaces_work(), reason="only root can give nodes networks of their own")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of mostly distinct words, which are slow to encode, and a tokenizer."""
    found = tmp_path_factory.mktemp("faults")
    draw = random.Random(0)
    with artifact.create(found / "corpus", kind="corpus", inputs={}, recipe={}) as draft:
        for number in range(SHARDS):
            words = ["".join(draw.choices(string.ascii_lowercase, k=draw.randint(2, 12))) for _ in range(120_000)]
            texts = [" ".join(words[start : start + 60]) for start in range(0, len(words), 60)]
            columns = [pa.array(["made up"] * len(texts)).dictionary_encode(), pa.array(texts, pa.large_string())]
            pq.write_table(pa.table(columns, schema=shard_writer.SCHEMA), draft.path / f"documents-{number:05}.parquet")
        draft.facts["documents"] = SHARDS * 2_000
    (found / "tokenizer").mkdir()
    tiny.wordpiece(found / "tokenizer")
    return found


def _driver(folder: Path, out: Path, environment: dict[str, str]) -> StageProcess:
    command = ["cluster.tokens", "default", "--corpus", str(folder / "corpus")]
    command += ["--tokenizer", str(folder / "tokenizer")]
    command += [word for setting in SETTINGS for word in ("--set", setting)]
    return StageProcess(command, out, WORK, environment)


def _await_shards(driver: StageProcess, count: int) -> None:
    driver.await_that(lambda: len(driver.done()) >= count)
    assert len(driver.done()) < SHARDS, "the run ended before the fault"


def _contents(path: Path) -> dict[str, str]:
    found = artifact.verify(path, "tokens")
    return {name: entry["sha256"] for name, entry in found.manifest["files"].items()}


@pytest.fixture(scope="module")
def uninterrupted_files(folder: Path) -> dict[str, str]:
    """Files of an uninterrupted run."""
    _driver(folder, folder / "whole", tiny_pipeline.environment()).finish()
    return _contents(folder / "whole")


def test_an_actor_that_is_killed(folder: Path, tmp_path: Path, uninterrupted_files: dict[str, str]) -> None:
    driver = _driver(folder, tmp_path / "tokens", tiny_pipeline.environment())
    _await_shards(driver, 4)
    family = psutil.Process(driver.process.pid)
    driver.await_that(lambda: bool(ray_clusters.actors(family.children(recursive=True))))
    ray_clusters.actors(family.children(recursive=True))[0].kill()
    said = driver.finish()
    assert said.count(" died: its unit is replaced") == 1
    assert _contents(tmp_path / "tokens") == uninterrupted_files


@SHARED
@pytest.mark.parametrize("how", ["killed", pytest.param("cut off", marks=pytest.mark.rare)])
def test_a_node_that_is_lost(folder: Path, tmp_path: Path, uninterrupted_files: dict[str, str], how: str) -> None:
    with ray_clusters.running_cluster(tmp_path, nodes=2, isolated=True) as cluster:
        driver = _driver(folder, tmp_path / "tokens", cluster.environment)
        _await_shards(driver, 4)
        driver.await_that(lambda: all(ray_clusters.actors(node.processes()) for node in cluster.nodes[1:]))
        lost = cluster.nodes[2]
        if how == "killed":
            lost.kill()
        else:
            lost.cut()
        said = driver.finish()
    assert "the node of a worker at documents-" in said
    assert _contents(tmp_path / "tokens") == uninterrupted_files


@pytest.mark.rare
@SHARED
def test_a_node_that_comes_later_is_put_to_work(
    folder: Path, tmp_path: Path, uninterrupted_files: dict[str, str]
) -> None:
    with ray_clusters.running_cluster(tmp_path, nodes=1, isolated=True) as cluster:
        driver = _driver(folder, tmp_path / "tokens", cluster.environment)
        _await_shards(driver, 2)
        late = cluster.add()
        driver.await_that(lambda: bool(ray_clusters.actors(late.processes())))
        driver.finish()
    assert _contents(tmp_path / "tokens") == uninterrupted_files


@pytest.mark.rare
@pytest.mark.parametrize(
    "number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM], ids=["killed", "interrupted", "terminated"]
)
def test_a_driver_that_is_stopped_and_started_again(
    folder: Path, tmp_path: Path, uninterrupted_files: dict[str, str], number: signal.Signals
) -> None:
    with ray_clusters.running_cluster(tmp_path, nodes=2, isolated=ray_clusters.namespaces_work()) as cluster:
        driver = _driver(folder, tmp_path / "tokens", cluster.environment)
        _await_shards(driver, 4)
        os.kill(driver.process.pid, number)
        driver.process.wait()
        if number != signal.SIGKILL:
            assert driver.process.returncode == 130, driver.said()
            assert driver.said().splitlines()[-1] == "interrupted: run the same command again to continue"
        assert not (tmp_path / "tokens").exists()
        before = driver.done()
        again = _driver(folder, tmp_path / "tokens", cluster.environment)
        again.await_that(lambda: len(again.done()) > len(before) + 2 or (tmp_path / "tokens").exists())
        written = {name: (_rows(tmp_path, name).stat().st_mtime_ns) for name in before}
        said = again.finish()
        rewritten = [name for name in before if _rows(tmp_path, name).stat().st_mtime_ns != written[name]]
    assert rewritten == [], "finished shards are not repeated"
    assert f"{SHARDS} shards" in said
    assert _contents(tmp_path / "tokens") == uninterrupted_files


def _rows(folder: Path, done: str) -> Path:
    """The row file of a finished shard, in the partial or in the complete artifact."""
    name = f"train-{Path(done).stem}.arrow"
    return next(place for place in (folder / "tokens" / name, folder / ".tokens.partial" / name) if place.exists())
