"""Which checkpoints of a growing run are fine-tuned."""

import os
import time
from pathlib import Path

import pytest

from cluster import stage
from eval import probes
from eval.probes import Probing, Watch, identity


def _run(folder: Path, *steps: int) -> Path:
    for step in steps:
        (folder / "checkpoints" / f"step_{step:08d}").mkdir(parents=True)
    (folder / "checkpoints" / ".step_00000099.partial").mkdir()
    return folder


def _watch(run: Path, every: int) -> Watch:
    recipe = Probing.of({"tasks": {"rte": {"finetune": {"task": "rte"}}}, "steps": 50, "every": every})
    return Watch(recipe, run, run.with_name("probes"))


def test_checkpoints_are_taken_up_so_many_steps_apart_and_the_last_one_always(tmp_path: Path) -> None:
    watch = _watch(_run(tmp_path / "run", 5, 10, 20, 25, 45, 50), every=15)
    assert watch.new() == [5, 20, 45, 50]
    watch.begun |= {5, 20}
    assert watch.new() == [45, 50]
    watch.begun |= {45, 50}
    assert watch.new() == []


def test_a_watch_is_over_when_the_last_step_is_scored(tmp_path: Path) -> None:
    watch = _watch(_run(tmp_path / "run", 5), every=1)
    assert not watch.is_over
    watch.begun.add(50)
    assert watch.is_over


def test_a_run_is_known_by_what_it_trains_not_by_how_far_it_got(tmp_path: Path) -> None:
    run = _run(tmp_path / "run", 5)
    with pytest.raises(stage.StageError, match=r"is not a run: it has no recipe\.json"):
        identity(run)
    (run / "recipe.json").write_text("{}")
    before = identity(run)
    (run / "checkpoints" / "step_00000010").mkdir()
    assert identity(run) == before
    assert probes.STAGE.produces == "probes"


def test_a_run_that_writes_nothing_any_more_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    run = _run(tmp_path / "run", 10)
    watch = _watch(run, every=10)
    watch.begun.add(10)
    (run / "metrics.jsonl").write_text("")
    watch.check_alive()
    for name in ("metrics.jsonl", "recipe.json"):
        (run / name).touch()
        os.utime(run / name, (time.time() - 25 * 3600,) * 2)
    with pytest.raises(
        stage.StageError, match=r"has written nothing for 24 hours, and has not reached its \d+ steps: let it"
    ):
        watch.check_alive()
    watch.begun.add(watch.recipe.steps)
    watch.check_alive()
