"""Followers with the real trackers: TensorBoard files, Weights & Biases offline, a local MLflow server, Trackio."""

import contextlib
import json
import os
import shutil
import socket
import sqlite3
import struct
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import followed_runs
import pytest
from followed_runs import follow, needs, write_run
from small_disk import small_disk
from waiting import wait_until

CURVE = [(step, 10.0 / step) for step in range(1, 7)]


def scalars(folder: Path, tag: str = "train/total") -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, pytest.approx(event.value)) for event in events.Scalars(tag)]


@needs("tensorboard")
def test_tensorboard_draws_a_finished_run_once(tmp_path: Path) -> None:
    run = write_run(tmp_path / "out/runs/student", steps=6)
    for lines in (8, 0):
        done = follow(run, "tensorboard")
        assert done.returncode == 0, done.stderr
        assert f"{lines} new line" in done.stdout
    folder = tmp_path / "out/tensorboard/student"
    assert scalars(folder) == CURVE
    assert [step for step, _ in scalars(folder, "validation/accuracy")] == [3, 6]


@needs("tensorboard")
def test_a_run_that_falls_back_draws_no_step_twice(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", steps=6, upto=5)
    assert follow(run, "tensorboard", "--once").returncode == 0
    # It resumes from step 3: the log is replaced, and steps 4 and 5 come again.
    write_run(run, steps=6, resume_at=3)
    assert follow(run, "tensorboard").returncode == 0
    assert scalars(run / "tensorboard/run") == CURVE


@needs("tensorboard")
def test_what_tensorboard_has_counts_where_the_follower_died_before_it_noted_it(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", steps=6, upto=5)
    assert follow(run, "tensorboard", "--once").returncode == 0
    state = run / ".follow/run-tensorboard.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"drawn": {"train": 1}}))
    write_run(run, steps=6, resume_at=5)
    assert follow(run, "tensorboard").returncode == 0
    assert scalars(run / "tensorboard/run") == CURVE


@needs("tensorboard")
def test_another_run_in_the_same_place_has_its_own_curves(tmp_path: Path) -> None:
    run = write_run(tmp_path / "out/runs/student", steps=6)
    assert follow(run, "tensorboard").returncode == 0
    described = json.loads((run / "recipe.json").read_text())
    (run / "recipe.json").write_text(json.dumps(described | {"inputs": {"teacher": "another"}}))
    for _ in range(2):
        assert follow(run, "tensorboard").returncode == 0
    assert [scalars(tmp_path / "out/tensorboard" / name) for name in ("student", "student-2")] == [CURVE, CURVE]


@needs("tensorboard")
def test_curves_that_were_deleted_are_drawn_again(tmp_path: Path) -> None:
    run = write_run(tmp_path / "out/runs/student", steps=6)
    for _ in range(2):
        assert "8 new lines to step 6" in follow(run, "tensorboard").stdout
        assert scalars(tmp_path / "out/tensorboard/student") == CURVE
        shutil.rmtree(tmp_path / "out/tensorboard")


@needs("tensorboard")
def test_a_follower_that_died_before_it_noted_anything_draws_no_step_twice(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", steps=6)
    assert follow(run, "tensorboard").returncode == 0
    state = run / ".follow/run-tensorboard.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"drawn": {}}))
    assert follow(run, "tensorboard").returncode == 0
    assert scalars(run / "tensorboard/run") == CURVE


@needs("tensorboard")
def test_tensorboard_on_a_full_disk_is_one_line_and_draws_the_rest_later(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 128) as disk:
        run = write_run(disk / "run", steps=600)
        with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as filler:
            while True:
                filler.write(bytes(1024))
        with (disk / "filler").open("r+b") as filler:
            filler.truncate((disk / "filler").stat().st_size - 5 * 4096)
        done = follow(run, "tensorboard")
        assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
        assert "No space left" in done.stderr
        (disk / "filler").unlink()
        done = follow(run, "tensorboard")
        assert done.returncode == 0, done.stderr
        assert scalars(run / "tensorboard/run") == [(step, 10.0 / step) for step in range(1, 601)]


@needs("wandb")
def test_weights_and_biases_continues_the_same_run_offline(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", steps=6, upto=4)
    offline = {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    assert follow(run, "wandb", "--once", **offline).returncode == 0
    write_run(run, steps=6, resume_at=4)
    done = follow(run, "wandb", **offline)
    assert done.returncode == 0, done.stderr
    folders = sorted((run / "wandb").glob("offline-run-*"))
    assert len({folder.name.rpartition("-")[2] for folder in folders}) == 1, "one id"
    assert len(folders) == 2
    values = [values for folder in folders for values in wandb_values(folder)]
    assert [values["step"] for values in values if "train/total" in values] == [1, 2, 3, 4, 5, 6]
    assert [values["step"] for values in values if "validation/accuracy" in values] == [3, 6]


def wandb_values(folder: Path) -> list[dict[str, Any]]:
    """What the records of an offline run hold, which LevelDB's log format has, line by line."""
    from wandb.proto import wandb_internal_pb2

    (file,) = folder.glob("*.wandb")
    data, place, record, found = file.read_bytes(), 7, b"", []  # after the file's own header
    while place + 7 <= len(data):
        if (left := 32768 - place % 32768) < 7:
            place += left  # a block ends with padding
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            parsed = wandb_internal_pb2.Record.FromString(record)
            if parsed.WhichOneof("record_type") == "history":
                items = parsed.history.item
                found.append({item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items})
            record = b""
    return found


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a real MLflow server on this machine."""
    folder = tmp_path_factory.mktemp("mlflow")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/runs.db", "--default-artifact-root", str(folder / "files")]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, cwd=folder, env=followed_runs.environment("mlflow"), start_new_session=True
        )
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        try:
            return urllib.request.urlopen(f"{url}/health", timeout=5).status == 200
        except (urllib.error.URLError, OSError):
            return False

    try:
        wait_until(answers, process, what="the server answers")
        yield url
    finally:
        os.killpg(process.pid, 9)
        process.wait()


@needs("mlflow")
def test_mlflow_continues_the_same_run_on_a_server(tmp_path: Path, server: str) -> None:
    run = write_run(tmp_path / "out/runs/student", steps=6, upto=4)
    assert follow(run, "mlflow", "--once", MLFLOW_TRACKING_URI=server).returncode == 0
    state = tmp_path / "out/.follow/student-mlflow.json"
    curve = json.loads(state.read_text())["curve"]
    # The follower died before it noted what the server had taken.
    state.write_text(json.dumps(json.loads(state.read_text()) | {"drawn": {}}))
    write_run(run, steps=6, resume_at=3)
    done = follow(run, "mlflow", MLFLOW_TRACKING_URI=server)
    assert done.returncode == 0, done.stderr

    def answer(what: str) -> Any:
        with urllib.request.urlopen(f"{server}/api/2.0/mlflow/{what}", timeout=60) as response:
            return json.load(response)

    points = answer(f"metrics/get-history?run_id={curve}&metric_key=train/total")["metrics"]
    assert sorted((int(point["step"]), point["value"]) for point in points) == CURVE
    found = answer(f"runs/get?run_id={curve}")["run"]
    assert (found["info"]["status"], found["info"]["run_name"]) == ("FINISHED", "out/student")
    assert {"key": "loss.soft", "value": "5.0"} in found["data"]["params"]


@needs("trackio")
def test_trackio_continues_the_same_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", steps=6, upto=4)
    place = {"TRACKIO_DIR": str(tmp_path / "trackio")}
    assert follow(run, "trackio", "--once", **place).returncode == 0
    write_run(run, steps=6, resume_at=3)
    done = follow(run, "trackio", **place)
    assert done.returncode == 0, done.stderr
    (database,) = (tmp_path / "trackio").glob("*.db")
    rows = sqlite3.connect(database).execute("select run_name, step, metrics from metrics order by step").fetchall()
    assert len({name for name, _, _ in rows}) == 1
    drawn = [(step, json.loads(values)) for _, step, values in rows]
    assert [(step, values["train/total"]) for step, values in drawn if "train/total" in values] == CURVE
