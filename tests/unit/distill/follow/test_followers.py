"""Followers beside a run: they end with it, and a tracker that fails or hangs harms nothing.

The tracker is a stand-in for the library ``trackio``, which writes what it gets to a file.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from followed_runs import environment, follow, write_run
from train_processes import curve, train
from waiting import wait_until

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
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "library"), environment()["PYTHONPATH"]]))
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
    with pytest.raises(ConnectionError):
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
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: object())
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
    assert tail.finished
    assert tail.read() == []


def test_the_state_survives(tmp_path: Path) -> None:
    state = State(tmp_path / "state.json", "id")
    tail = Tail(write_run(tmp_path / "run", steps=3) / "metrics.jsonl")
    points = tail.read()
    state.add(points)
    again = State.read(tmp_path / "state.json")
    assert (again.curve, again.drawn) == ("id", {"train": 3, "validation": 3})
    assert not any(map(again.is_new, points))
