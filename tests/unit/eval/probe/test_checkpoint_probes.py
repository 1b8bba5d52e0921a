"""Fine-tuning of the checkpoints of a running training."""

import json
import os
import time
from pathlib import Path

import pytest
import tiny
from finetune_tasks import QUICK, sentiment
from waiting import wait_until

from cluster.actors import ray_cluster
from cluster.artifacts import errors
from cluster.jobs import client
from cluster.telemetry import metrics_log
from eval.probe import checkpoint_probes
from eval.probe.checkpoint_probes import CheckpointWatch, Probing, identity


def _run(folder: Path, *steps: int) -> Path:
    folder.mkdir()
    for step in steps:
        (folder / "checkpoints" / f"step_{step:08d}").mkdir(parents=True)
    (folder / "checkpoints" / ".step_00000099.partial").mkdir(parents=True)
    return folder


def _watch(run: Path, every: int) -> CheckpointWatch:
    recipe = Probing.of({"tasks": {"rte": {"finetune": {"task": "rte"}}}, "steps": 50, "every": every})
    return CheckpointWatch(recipe, run, run.with_name("probes"))


def test_probing_picks_every_nth_checkpoint_and_the_last(tmp_path: Path) -> None:
    watch = _watch(_run(tmp_path / "run", 5, 10, 20, 25, 45, 50), every=15)
    assert watch.new() == [5, 20, 45, 50]
    watch.begun |= {5, 20}
    assert watch.new() == [45, 50]
    watch.begun |= {45, 50}
    assert watch.new() == []


def test_probing_ends_after_the_last_step(tmp_path: Path) -> None:
    watch = _watch(_run(tmp_path / "run", 5), every=1)
    assert not watch.is_over
    watch.begun.add(50)
    assert watch.is_over


def test_the_identity_of_a_run_ignores_its_progress(tmp_path: Path) -> None:
    run = _run(tmp_path / "run", 5)
    with pytest.raises(errors.StageError, match=r"is not a run: it has no recipe\.json"):
        identity(run)
    (run / "recipe.json").write_text("{}")
    before = identity(run)
    (run / "checkpoints" / "step_00000010").mkdir()
    assert identity(run) == before
    assert checkpoint_probes.STAGE.produces == "probes"


def test_probing_fails_when_the_run_is_silent(tmp_path: Path) -> None:
    run = _run(tmp_path / "run", 10)
    watch = _watch(run, every=10)
    watch.begun.add(10)
    (run / "metrics.jsonl").write_text("")
    watch.check_alive()
    for name in ("metrics.jsonl", "recipe.json"):
        (run / name).touch()
        os.utime(run / name, (time.time() - 25 * 3600,) * 2)
    with pytest.raises(errors.StageError, match="written nothing for 24 hours"):
        watch.check_alive()
    watch.begun.add(watch.recipe.steps)
    watch.check_alive()


@pytest.mark.long
def test_probing_scores_copies_of_deleted_checkpoints(tmp_path: Path) -> None:
    run, out = _run(tmp_path / "run"), tmp_path / ".probes.partial"
    tiny.distilbert(out / "step-00000005" / "student")
    (out / "step-00000010" / "student").mkdir(parents=True)  # scored by a process that was killed before the clean-up
    point = {"step": 10, "task": "sst2", "metric": "accuracy", "score": 50.0, "low": 50.0, "high": 50.0, "seeds": 1}
    (run / "probes.jsonl").write_text(json.dumps(point) + "\n")
    folder = sentiment(tmp_path / "data", 40)
    tasks = {"sst2": {"finetune": {**QUICK, "task": "sst2", "epochs": 1}, "folder": str(folder)}}
    watch = CheckpointWatch(Probing.of({"tasks": tasks, "steps": 10, "every": 5}), run, out)
    with ray_cluster.connect(2):
        queue = client.start(tmp_path / "queue")
        watch.resume(queue)
        assert watch.begun == {5, 10}
        wait_until(lambda: watch.look(queue) or watch.is_over)
    assert sorted(point["step"] for point in metrics_log.read_metrics(run / "probes.jsonl")) == [5, 10]
    left = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    assert left == ["step-00000005/sst2/manifest.json", "step-00000005/sst2/scores.json"]
