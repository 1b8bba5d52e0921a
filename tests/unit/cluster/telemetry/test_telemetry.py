"""Metrics: names by Prometheus's rules, the endpoint, exact steps on disk; progress on a terminal and in a log."""

import json
import os
import pty
import re
import subprocess
import sys
import termios
import urllib.request
from pathlib import Path

import pytest
from metrics_endpoint import scraped
from prometheus_client.metrics import MetricWrapperBase
from ray_clusters import free_ports

from cluster.artifacts import commit
from cluster.telemetry import exporter, metrics, metrics_log, progress
from cluster.telemetry.metrics_log import MetricsLog, read_metrics
from distill.train import teacher

METRICS = {name: value for name, value in vars(metrics).items() if isinstance(value, MetricWrapperBase)}

UNITS = ("_seconds", "_bytes", "_ratio", "_nats", "_per_second")
DIMENSIONLESS = {
    "stillhouse_step",
    "stillhouse_steps",
    "stillhouse_probe_step",
    "stillhouse_actors",
    "stillhouse_jobs_waiting",
    "stillhouse_jobs_running",
    "stillhouse_learning_rate",
    "stillhouse_gradient_norm",
    "stillhouse_loss_scale",
    "stillhouse_workers",
    "stillhouse_node_workers",
    "stillhouse_checkpoint_interval_steps",
    "stillhouse_queue_draining",
}
NOT_BASE = re.compile(r"_(ms|milliseconds|minutes|hours|kb|mb|gb|kilobytes|megabytes|percent|pct|bits)(_|$)")

SHOWING = """
from cluster.artifacts import errors
from cluster.telemetry import progress

with errors.logging_to_stderr():
    progress.PLAIN_SECONDS = 0.0
    with progress.Progress("rows", 4, "rows") as shown:
        shown.advance(note={"loss": "0.5"})
        progress.say("in between")
        shown.advance()
        shown.advance(2)
    list(progress.progress(range(2), "shards", 2, "shards"))
"""


def _train_lines(log: MetricsLog, steps: range) -> None:
    for step in steps:
        log.write(kind="train", step=step, total=1.0 / step)


def test_lines_of_later_steps_are_dropped_when_a_run_resumes(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    _train_lines(log, range(1, 6))
    log.write(kind="validation", step=3, total=0.5)
    log.close()
    resumed = MetricsLog(path, resume_at=3)
    _train_lines(resumed, range(4, 5))
    resumed.close()
    found = [(line["kind"], line["step"]) for line in read_metrics(path)]
    assert found == [("train", 1), ("train", 2), ("train", 3), ("validation", 3), ("train", 4)]
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_last_line_cut_by_a_crash_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind": "train", "step": 1}\n{"kind": "tr', encoding="utf-8")
    assert [line["step"] for line in read_metrics(path)] == [1]
    log = MetricsLog(path, resume_at=1)
    _train_lines(log, range(2, 3))
    log.close()
    assert [json.loads(line)["step"] for line in path.read_text(encoding="utf-8").splitlines()] == [1, 2]


def test_work_continues_when_the_port_is_in_use(caplog: pytest.LogCaptureFixture) -> None:
    (port,) = free_ports(1)
    caplog.set_level("INFO", logger="stillhouse")
    with exporter.serving(port):
        done = []
        with exporter.serving(port):
            done.append("the other's work")
        assert done
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            assert b"stillhouse_" in answer.read(), "the first one still answers"
    assert f"placement.metrics_port {port}: Address already in use: this process serves no metrics" in caplog.text


def test_a_broken_line_in_the_middle_is_refused_by_number(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"st\n{"step": 3}\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"metrics\.jsonl: line 2 is not JSON"):
        read_metrics(path)


def test_a_new_log_starts_empty_and_every_line_is_there_at_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert read_metrics(path) == []
    log = MetricsLog(path)
    for step in (1, 2):
        log.write(step=step, loss=float("nan"), scale=float("inf"), norm=None, tokens=3)
        assert read_metrics(path)[-1] == {"step": step, "loss": None, "scale": None, "norm": None, "tokens": 3}
    log.close()
    MetricsLog(path).close()
    assert path.read_text(encoding="utf-8") == ""


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_is_named_as_prometheus_wants(name: str) -> None:
    metric = METRICS[name]
    (family,) = metric.describe()
    # The library stores the name of a counter without _total.
    full = f"{family.name}_total" if family.type == "counter" else family.name
    assert re.fullmatch(r"stillhouse(_[a-z]+)+", full)
    assert not NOT_BASE.search(full)
    assert family.type in ("counter", "gauge", "histogram", "info")
    if family.type == "histogram":
        assert full.endswith(UNITS)
    if family.type == "gauge":
        assert not full.endswith("_total")
        assert full.endswith(UNITS) != (full in DIMENSIONLESS), f"{full}: end it with one of {UNITS}"
    assert len(family.documentation.split()) >= 3
    assert not family.documentation.endswith(".")
    assert "timestamp" not in full or full.endswith("_timestamp_seconds")


def test_every_dimensionless_name_is_still_declared() -> None:
    assert {family.name for metric in METRICS.values() for family in metric.describe()} >= DIMENSIONLESS


def test_recorded_values_are_served() -> None:
    port = free_ports(1)[0]
    exporter.serve(port)
    metrics.LOSS.labels("served", "soft").set(0.25)
    metrics.TOKENS.labels("served").inc(4096)
    metrics.JOB_WAIT.labels("served").observe(30.0)
    metrics.GRADIENT_NORM.labels("served").set(float("nan"))
    metrics.RUN.labels("served").info({"precision": "fp16"})
    lines = scraped(port)
    assert (
        lines.items()
        >= {
            'stillhouse_loss_nats{run="served",term="soft"}': "0.25",
            'stillhouse_tokens_total{run="served"}': "4096.0",
            'stillhouse_gradient_norm{run="served"}': "NaN",
            'stillhouse_job_wait_seconds_bucket{kind="served",le="10.0"}': "0.0",
            'stillhouse_job_wait_seconds_bucket{kind="served",le="60.0"}': "1.0",
            'stillhouse_run_info{precision="fp16",run="served"}': "1.0",
        }.items()
    )
    assert not [name for name in lines if "_created" in name], "undeclared series"
    with pytest.raises(OSError, match="in use"):
        exporter.serve(port)


def test_a_run_is_called_after_its_pipeline_too() -> None:
    assert metrics.run_name(Path("/shared/distilbert/runs/student")) == "distilbert/student"
    assert metrics.run_name(Path("/shared/alone")) == "alone"
    made = commit.staging(Path("/shared/distilbert/teacher")) / teacher.RUN
    assert metrics.run_name(made) == "distilbert/teacher", "the name of a teacher contains its pipeline"


def test_the_newest_line_is_found_however_long_the_file_is(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert metrics_log.newest_metrics(path, "train") is None
    log = MetricsLog(path)
    _train_lines(log, range(1, 5001))
    log.write(kind="validation", step=5000, total=0.5)
    log.close()
    with path.open("a") as file:
        file.write('{"kind": "train", "st')
    assert path.stat().st_size > 3 * 64 * 1024
    newest = metrics_log.newest_metrics(path, "train")
    assert newest is not None
    assert newest["step"] == 5000
    assert metrics_log.newest_metrics(path, "probe") is None


def test_a_label_that_people_name_has_so_many_values_and_no_more() -> None:
    named = [metrics.bounded("planted", f"name {number}") for number in range(2 * metrics.MOST_VALUES)]
    assert len({*named}) == metrics.MOST_VALUES + 1
    assert named[-1] == "other"
    assert metrics.bounded("planted", "name 3") == "name 3"


def test_progress_in_a_log_is_plain_lines() -> None:
    shown = subprocess.run([sys.executable, "-c", SHOWING], stderr=subprocess.PIPE, text=True, check=True).stderr
    assert re.sub(r"in [\d.]+ m?s", "in T", shown).splitlines() == [
        "rows: 1 of 4 rows, loss 0.5",
        "in between",
        "rows: 2 of 4 rows, 0 s left",
        "rows: 4 of 4 rows",
        "rows: 4 rows in T",
        "shards: 1 of 2 shards",
        "shards: 2 of 2 shards",
        "shards: 2 shards in T",
    ]


def test_progress_goes_back_with_the_work(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0.0)
    with caplog.at_level("INFO", "stillhouse"), progress.Progress("training", 120, "steps", 80) as shown:
        for done in (90, 100, 60, 80, 110):
            shown.reach(done)
    told = [re.sub(r"in [\d.]+ m?s", "in T", record.message) for record in caplog.records]
    assert told == [
        "training: 90 of 120 steps",
        "training: 100 of 120 steps, 0 s left",
        "training: 60 of 120 steps",
        "training: 80 of 120 steps",
        "training: 110 of 120 steps, 0 s left",
        "training: 110 steps in T",
    ]


def test_the_first_piece_of_work_tells_nothing_about_the_rest(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It loads models and compiles; a rest at its pace would be minutes where it is seconds."""
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0.0)
    now = [0.0]
    with caplog.at_level("INFO", "stillhouse"), monkeypatch.context() as patch:
        patch.setattr(progress.time, "monotonic", lambda: now[0])
        shown = progress.Progress("latency", 100, "inputs")
        now[0] = 60.0
        shown.advance()
        shown.advance(0)
        now[0] += 1.0
        shown.advance(2)
    assert caplog.messages == [
        "latency: 1 of 100 inputs",
        "latency: 1 of 100 inputs",
        "latency: 3 of 100 inputs, 48 s left",
    ]


def _on_terminal(term: str) -> str:
    """Run the program on a terminal; returns what it shows."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    with subprocess.Popen([sys.executable, "-c", SHOWING], stderr=theirs, env={**os.environ, "TERM": term}) as program:
        os.close(theirs)
        shown = b""
        with open(ours, "rb", buffering=0) as screen:
            try:
                while chunk := screen.read(4096):
                    shown += chunk
            except OSError:
                pass  # Linux reports the end of a terminal as an error
    assert program.returncode == 0
    return shown.decode()


def test_progress_on_a_terminal_is_a_bar() -> None:
    shown = _on_terminal("xterm")
    assert re.search(r"\rrows: 100%\|.*\| 4/4 \[", shown)
    assert re.search(r" 1/4 \[[\d:]+<\?, *\? rows/s", shown), "one row gives no pace"
    assert re.search(r"\rshards: 100%\|.*\| 2/2 \[", shown)
    assert "loss=0.5" in shown
    assert "\rin between\r\n" in re.sub(r"\r *\r", "\r", shown)
    assert "1 of 4" not in shown


def test_a_dumb_terminal_gets_plain_lines() -> None:
    shown = _on_terminal("dumb")
    assert "rows: 1 of 4 rows, loss 0.5\r\n" in shown
    assert "%" not in shown


def test_a_single_thing_is_no_plural(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "stillhouse"), progress.Progress("corpus", 1, "splits read") as shown:
        shown.advance()
    assert re.sub(r"in .*", "in T", caplog.messages[-1]) == "corpus: 1 split read in T"


def test_training_shows_the_terms_of_the_loss_and_agreement() -> None:
    line = {"total": 12.154, "soft": 0.00951, "masked": 5.86, "cosine": 0.0191, "tokens_per_second": 5900.4}
    assert progress.training_note(line, 0.834) == {
        "soft": "0.00951", "masked": "5.86", "cosine": "0.0191", "agreement": "83 %", "tokens/s": "5,900",
    }  # fmt: skip
    alone = {"total": 6.1, "soft": 0.0, "masked": 6.1, "cosine": 0.0, "tokens_per_second": 5900.4}
    assert list(progress.training_note(alone)) == ["masked", "tokens/s"]
