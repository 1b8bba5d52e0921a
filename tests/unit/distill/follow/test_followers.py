"""Followers beside a run: they end with it, and a tracker that fails or hangs harms nothing.

The tracker is a stand-in for the library ``trackio``, which writes what it gets to a file.
"""

import contextlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from followed_runs import environment, follow, write_run
from small_disk import small_disk
from train_processes import curve, train
from waiting import wait_until

from cluster.artifacts.errors import StageError
from distill.follow import follower, followers, trackers
from distill.follow.followed_run import FollowedRun, Point, State, Tail

RECORDS = """
import json, os

class Run:
    def log(self, values, step):
        with open(os.environ["DRAWN"], "a") as file:
            file.write(json.dumps([step, values]) + "\\n")
    def finish(self): pass

def init(project, name, **_):
    with open(os.environ["DRAWN"], "a") as file:
        file.write(json.dumps(["name", name]) + "\\n")
    return Run()
"""
FAILS = "def init(*_, **__): raise ConnectionError('no server\\nat all')\n"
HANGS = "import time\ndef init(*_, **__): time.sleep(3600)\n"


@pytest.fixture
def drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the stand-in writes; it is the library of every process that this one starts."""
    (tmp_path / "library").mkdir()
    use(tmp_path, RECORDS)
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(tmp_path / "library"), environment("tensorboard")["PYTHONPATH"]])
    )
    monkeypatch.setenv("DRAWN", str(tmp_path / "drawn"))
    return tmp_path / "drawn"


def use(folder: Path, library: str) -> None:
    (folder / "library/trackio.py").write_text(library)


def lines(drawn: Path) -> list[tuple[int, str]]:
    """Step and kind of every line that was drawn."""
    if not drawn.exists():
        return []
    found = [json.loads(line) for line in drawn.read_text().splitlines()]
    return [(step, next(iter(values)).partition("/")[0]) for step, values in found if step != "name"]


ALL = [(1, "train"), (2, "train"), (3, "train"), (3, "validation"), (4, "train"), (5, "train")]
ALL += [(6, "train"), (6, "validation")]


def test_a_follower_draws_while_the_run_grows_and_the_rest_at_its_end(tmp_path: Path, drawn: Path) -> None:
    write_run(tmp_path / "run", steps=6, upto=2)
    with followers.following(tmp_path / "run", ["trackio"], 60):
        wait_until(lambda: len(lines(drawn)) == 2, what="the first steps are drawn")
        write_run(tmp_path / "run", steps=6, resume_at=2)
    assert lines(drawn) == ALL


def test_a_resumed_run_continues_the_curve_without_drawing_a_step_twice(tmp_path: Path, drawn: Path) -> None:
    write_run(tmp_path / "run", steps=6, upto=5)
    with followers.following(tmp_path / "run", ["trackio"], 60):
        pass
    write_run(tmp_path / "run", steps=6, resume_at=3)
    with followers.following(tmp_path / "run", ["trackio"], 60):
        pass
    assert lines(drawn) == ALL
    names = {json.loads(line)[1] for line in drawn.read_text().splitlines() if '"name"' in line}
    assert len(names) == 1


@pytest.mark.parametrize(
    ("library", "says"), [(FAILS, "trackio: no server: the run goes on"), (HANGS, "did not take the last lines")]
)
def test_a_tracker_that_fails_or_hangs_is_one_warning_line(
    tmp_path: Path, drawn: Path, capfd: pytest.CaptureFixture[str], library: str, says: str
) -> None:
    use(tmp_path, library)
    write_run(tmp_path / "run", steps=6)
    with followers.following(tmp_path / "run", ["trackio"], 3):
        wait_until((tmp_path / "run/.follow/run-trackio.log").exists, what="the follower runs")
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("warning: trackio: ")
    assert says in line
    assert line.endswith(f"stillhouse follow {tmp_path / 'run'} --to trackio draws what is missing")
    use(tmp_path, RECORDS)
    done = follow(tmp_path / "run", "trackio", PYTHONPATH=os.environ["PYTHONPATH"])
    assert done.returncode == 0, done.stderr
    assert lines(drawn) == ALL


def test_a_tracker_that_fails_half_way_is_asked_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As MLflow and TensorBoard are."""
    taken: list[tuple[int, str]] = []
    fails = iter([True, False])

    class Half:
        def __init__(self, run: FollowedRun, state: State) -> None:
            for step, kind in taken:
                state.drawn[kind] = max(step, state.drawn.get(kind, -1))

        def draw(self, points: Sequence[Point]) -> None:
            broken = next(fails)
            taken.extend((point.step, point.kind) for point in (points[:3] if broken else points))
            if broken:
                raise ConnectionError("lost")

        def close(self, finished: bool) -> None:
            assert finished

    monkeypatch.setitem(trackers.TRACKERS, "trackio", trackers.TrackerSpec(Half))  # type: ignore[arg-type]
    following = follower.Follower(FollowedRun(write_run(tmp_path / "run", steps=6)), "trackio")
    with pytest.raises(follower.TrackerError, match=r"^lost$"):
        following.draw()
    following.draw()
    following.close()
    assert taken == ALL


def test_a_follower_does_not_outlive_a_run_that_is_killed(tmp_path: Path, drawn: Path) -> None:
    write_run(tmp_path / "run", steps=6, upto=2)
    script = (
        "import sys, time; from pathlib import Path; from distill.follow import followers\n"
        "with followers.following(Path(sys.argv[1]), ['trackio'], 60): time.sleep(600)"
    )
    run = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "run")])
    wait_until(lambda: len(lines(drawn)) == 2, run, what="the first steps are drawn")
    (child,) = (int(pid) for pid in Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split())
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    wait_until(lambda: not Path(f"/proc/{child}").exists() or "(zombie)" in status(child), what="the follower ends")


def status(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return "(zombie)"


def test_an_extra_that_is_missing_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"^wandb is not installed: pip install 'stillhouse\[wandb\]'$"):
        trackers.check(["wandb"])


def test_mlflow_without_a_server_is_refused_before_anything_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec("json")
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: found)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ValueError, match="set MLFLOW_TRACKING_URI, for example"):
        trackers.check(["mlflow"])


@pytest.mark.long
def test_a_training_is_drawn_and_resumes_on_the_same_curve(training_folder: Path, tmp_path: Path, drawn: Path) -> None:
    settings = ('placement.follow=["trackio"]', "placement.save_every=3", "placement.validate_every=3")
    done = train(training_folder, tmp_path / "run", 1, "steps=6", *settings)
    assert done.returncode == 0, done.stderr
    assert lines(drawn) == ALL
    # As if it had died after step 3: it repeats the steps from there.
    for path in (tmp_path / "run/checkpoints/step_00000006").iterdir():
        path.unlink()
    (tmp_path / "run/checkpoints/step_00000006").rmdir()
    before = curve(tmp_path / "run")
    done = train(training_folder, tmp_path / "run", 1, "steps=6", *settings)
    assert done.returncode == 0, done.stderr
    assert curve(tmp_path / "run") == before
    assert lines(drawn) == ALL


@pytest.mark.long
def test_a_training_with_a_failing_tracker_has_the_same_curve(
    training_folder: Path, tmp_path: Path, drawn: Path
) -> None:
    use(tmp_path, FAILS)
    plain = train(training_folder, tmp_path / "plain", 1)
    followed = train(training_folder, tmp_path / "followed", 1, 'placement.follow=["trackio"]')
    assert (plain.returncode, followed.returncode) == (0, 0), followed.stderr
    assert curve(tmp_path / "followed") == curve(tmp_path / "plain")
    assert followed.stderr.count("warning: trackio") == 1


@pytest.mark.parametrize(
    ("path", "base", "name"),
    [
        ("out/runs/student", "out", "student"),
        ("out/.teacher.partial/run", "out", "teacher"),
        ("alone", "alone", "alone"),
        ("out/teacher", "out", "teacher"),
    ],
)
def test_followers_keep_their_files_where_they_survive(tmp_path: Path, path: str, base: str, name: str) -> None:
    run = FollowedRun(write_run(tmp_path / path, steps=6))
    if path == "out/teacher":  # complete: its run folder is gone
        (run.path / "manifest.json").write_text("{}")
    assert (run.base, run.name) == (tmp_path / base, name)
    assert run.parameters() == {"loss.soft": 5.0, "seed": 1, "precision": "bf16", "phases": "[]"}


def test_a_line_that_is_not_whole_yet_is_read_later(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind": "train", "step": 1, "total": 2.5, "note": "x", "soft": null}\n{"kind": "tr')
    tail = Tail(path)
    (point,) = tail.read()
    assert (point.kind, point.step, point.values) == ("train", 1, {"train/total": 2.5})
    with path.open("a") as file:
        file.write('ain", "step": 2, "steps": 2}\n')
    assert [point.step for point in tail.read()] == [2]
    assert tail.read() == []


def test_a_run_ends_with_the_validation_of_its_last_step(tmp_path: Path) -> None:
    """The validation takes long on real data: a follower that ended at the last step would lose it."""
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind": "validation", "step": 1, "steps": 2}\n{"kind": "train", "step": 2, "steps": 2}\n')
    tail = Tail(path)
    assert (len(tail.read()), tail.finished) == (2, False)
    with path.open("a") as file:
        file.write('{"kind": "validation", "step": 2, "steps": 2, "accuracy": 0.5}\n')
    assert [point.values for point in tail.read()] == [{"validation/accuracy": 0.5}]
    assert tail.finished
    assert (tail.read(), tail.finished) == ([], True)
    # It falls back to an earlier checkpoint.
    write_run(tmp_path, steps=3, upto=2)
    assert (len(tail.read()), tail.finished) == (2, False)


def test_a_run_without_steps_has_an_end(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind": "validation", "step": 0, "steps": 0, "accuracy": 0.5}\n')
    tail = Tail(path)
    assert (len(tail.read()), tail.finished) == (1, True)


def test_a_damaged_line_is_named_and_costs_no_other(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    first, damaged, last = '{"kind": "train", "step": 1}', '{"kind": "tr\0\0', '{"kind": "train", "step": 3}'
    path.write_text(f"{first}\n{damaged}\n{last}\n")
    tail = Tail(path)
    for _ in range(2):
        with pytest.raises(StageError, match=r"metrics.jsonl: line 2 is not a line of metrics: correct or delete it$"):
            tail.read()
    path.write_text(f"{first}\n{last}\n")
    assert [point.step for point in tail.read()] == [1, 3]


def test_values_that_no_tracker_draws_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(
        '{"kind": "train", "step": 1, "total": NaN, "soft": -Infinity, "masked": 2, "note": "x", "whole": true}\n'
    )
    (point,) = Tail(tmp_path / "metrics.jsonl").read()
    assert point.values == {"train/masked": 2.0}


def test_another_run_in_the_same_place_gets_its_own_curve(tmp_path: Path, drawn: Path) -> None:
    environ = {"PYTHONPATH": os.environ["PYTHONPATH"]}
    run = write_run(tmp_path / "out/runs/student", steps=6)
    assert follow(run, "trackio", **environ).returncode == 0
    drawn.unlink()
    shutil.rmtree(run)
    write_run(run, steps=6)
    described = json.loads((run / "recipe.json").read_text())
    (run / "recipe.json").write_text(json.dumps(described | {"recipe": described["recipe"] | {"seed": 2}}))
    done = follow(run, "trackio", **environ)
    assert "8 new lines to step 6" in done.stdout
    assert lines(drawn) == ALL


def test_a_run_that_goes_away_ends_its_follower(tmp_path: Path, drawn: Path) -> None:
    run = write_run(tmp_path / "out/runs/student", steps=6, upto=5)
    following = follower.Follower(FollowedRun(run), "trackio")
    (tmp_path / "out/.follow").mkdir()
    (run / "recipe.json").write_text('{"recipe": {"seed": 2}, "inputs": {}}')
    with pytest.raises(StageError, match="holds another run now: run the same command again to draw that one"):
        following.draw()
    shutil.rmtree(run)
    with pytest.raises(StageError, match="has no metrics"):
        following.draw()


def test_a_tracker_that_fails_is_one_line_of_the_command_and_keeps_its_curve(tmp_path: Path, drawn: Path) -> None:
    run = write_run(tmp_path / "run", steps=6)
    use(tmp_path, "def init(*_, **__): raise RuntimeError('no server\\nat all')\n")
    done = follow(run, "trackio", PYTHONPATH=os.environ["PYTHONPATH"])
    state = run / ".follow/run-trackio.json"
    assert (done.returncode, done.stderr) == (
        1,
        f"error: trackio: no server: run the same command again, or delete {state} for a new curve\n",
    )
    curve = json.loads(state.read_text())["curve"]
    use(tmp_path, RECORDS)
    assert follow(run, "trackio", PYTHONPATH=os.environ["PYTHONPATH"]).returncode == 0
    assert json.loads(drawn.read_text().splitlines()[0]) == ["name", curve]


def test_a_state_that_was_cut_is_named(tmp_path: Path, drawn: Path) -> None:
    run = write_run(tmp_path / "run", steps=6)
    (run / ".follow").mkdir()
    (run / ".follow/run-trackio.json").write_text('{"curve": "a')
    done = follow(run, "trackio", PYTHONPATH=os.environ["PYTHONPATH"])
    assert done.returncode == 1
    assert done.stderr.endswith("run-trackio.json was cut or changed: delete it to draw the run from the start\n")


def test_a_full_disk_costs_the_run_one_line(tmp_path: Path, drawn: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with small_disk(tmp_path / "small disk", 64) as disk:
        run = write_run(disk / "run", steps=6)
        with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as filler:
            while True:
                filler.write(bytes(1024))
        with followers.following(run, ["trackio"], 10):
            pass
        (line,) = capfd.readouterr().err.splitlines()
        assert line.startswith("warning: trackio: [Errno 28] No space left")
        (disk / "filler").unlink()
        (command,) = re.findall(r"stillhouse follow (.*) --to", line)
        assert shlex.split(command) == [str(run)]
        done = follow(run, "trackio", PYTHONPATH=os.environ["PYTHONPATH"])
        assert done.returncode == 0, done.stderr
    assert lines(drawn) == ALL


def test_a_folder_of_that_name_is_not_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``tensorboard/`` in the folder where a run starts."""
    (tmp_path / "trackio").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(StageError, match="trackio is not installed"):
        trackers.check(["trackio"])


def test_the_state_survives(tmp_path: Path) -> None:
    state = State(tmp_path / "state.json", "run", "id")
    tail = Tail(write_run(tmp_path / "run", steps=3) / "metrics.jsonl")
    points = tail.read()
    state.add(points)
    again = State.read(tmp_path / "state.json", "run")
    assert (again.curve, again.drawn) == ("id", {"train": 3, "validation": 3})
    assert not any(map(again.is_new, points))
    assert State.read(tmp_path / "state.json", "another").curve == ""
