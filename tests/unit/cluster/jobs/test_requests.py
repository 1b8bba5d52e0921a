"""Requests to the job queue: cancel, retry, deadlines, limits, priorities, joining, and the command line."""

import json
import os
import re
import socket
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import paths
import psutil
import pytest
from ray_clusters import free_ports
from toy_stage_jobs import await_running, make_corpus, toy_job
from waiting import wait_until

from cluster.actors import ray_cluster
from cluster.artifacts import artifact, errors
from cluster.artifacts.errors import StageError
from cluster.jobs import cli as jobs_cli
from cluster.jobs import client, job
from cluster.jobs.client import Queue
from cluster.jobs.failures import RetryPolicy
from cluster.jobs.job import Job
from cluster.jobs.queue_actor import PORT, port_from_environment
from distill.launch import run_pipeline

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Queue]:
    """The queue of a cluster of two CPUs, which retries after a tenth of a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(paths.SUPPORT), prepend=os.pathsep)
        patch.delenv(ray_cluster.ADDRESS, raising=False)
        with ray_cluster.connect(2):
            policy = RetryPolicy(max_deaths=2, max_outages=2, first_seconds=0.1, longest_seconds=0.2)
            yield client.start(tmp_path_factory.mktemp("ledger"), policy)


@pytest.fixture
def queue(shared: Queue) -> Iterator[Queue]:
    """The shared queue, emptied and without limits after each test."""
    yield shared
    shared.drain(False)
    shared.limit({}, {})
    open_ids = [line["id"] for line in shared.list() if line["state"] in job.OPEN]
    shared.wait(shared.cancel(open_ids))


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return make_corpus(tmp_path)


def _gated(corpus: Path, name: str, text: str = "toy", **given: Any) -> Job:
    """A job that runs until the file ``gate`` exists."""
    return toy_job(corpus, name, {"gate": str(corpus.with_name("gate")), "text": text}, **given)


def _open_gate(corpus: Path) -> None:
    corpus.with_name("gate").touch()


def _states(queue: Queue, ids: Sequence[str]) -> list[str]:
    return [queue.show(job)["state"] for job in ids]


def _started(corpus: Path, *names: str) -> list[str]:
    """Names of the jobs in the order of their start."""
    return sorted(names, key=lambda name: artifact.read(corpus.with_name(name)).facts["started"])


def test_cancelling_a_job_ends_its_children_and_dependent_jobs(corpus: Path, queue: Queue) -> None:
    child = corpus.with_name("child")
    running = toy_job(corpus, "running", {"gate": str(corpus / "never"), "child": str(child)})
    ids = queue.submit([running, _gated(corpus, "waiting", cpus=2), toy_job(corpus, "heir", after=("running",))])
    wait_until(child.exists)
    started = psutil.Process(int(child.read_text()))
    worker = psutil.Process(next(e["about"]["process"] for e in _events(queue) if e["event"] == "placed"))
    assert queue.cancel([*ids[:2], ids[0]]) == ids[:2]
    found = queue.wait(ids)
    assert [(one.state, one.error, one.failure) for one in found] == [
        ("cancelled", "it was cancelled", None),
        ("cancelled", "it was cancelled", None),
        ("failed", "it comes after running, which was cancelled", "dependency"),
    ]
    wait_until(lambda: not started.is_running() and not worker.is_running())
    assert queue.cancel(ids) == ()
    # A new submission makes the artifact: the cancelled job no longer claims its path.
    again = queue.submit([toy_job(corpus, "running", {"gate": str(corpus), "child": str(child)})])
    assert queue.wait(again)[0].state == "done"


def _events(queue: Queue) -> list[dict[str, Any]]:
    newest = sorted(queue.ledger.glob("segment-*.jsonl"))[-1]
    return [json.loads(line) for line in newest.read_text().splitlines()]


def test_retrying_a_job_retries_its_failed_dependents(corpus: Path, queue: Queue) -> None:
    (corpus / "missing").mkdir()
    wrong = Job("wrong", "toy_stage", {}, {"corpus": corpus.with_name("later")}, corpus.with_name("wrong"))
    ids = queue.submit(
        [
            wrong,
            toy_job(corpus, "heir", after=("wrong",)),
            toy_job(corpus, "grandchild", after=("heir",)),
            toy_job(corpus, "other"),
        ]
    )
    found = queue.wait(ids)
    assert [(one.state, one.failure) for one in found] == [
        ("failed", "user"),
        ("failed", "dependency"),
        ("failed", "dependency"),
        ("done", None),
    ]
    assert "later does not exist" in str(found[0].error)
    corpus.rename(corpus.with_name("later"))
    corpus.symlink_to(corpus.with_name("later"))
    with pytest.raises(StageError, match=rf"{ids[3]} \(other\) is done: nothing to retry"):
        queue.retry([ids[3]])
    assert queue.retry(["wrong"]) == tuple(ids[:3])
    assert [one.state for one in queue.wait(ids)] == ["done"] * 4


def test_only_one_of_two_conflicting_jobs_is_retried(corpus: Path, queue: Queue) -> None:
    ids: list[str] = []
    for text in ("one", "two"):
        ids += queue.submit([_gated(corpus, "place", text)])
        queue.cancel(ids[-1:])
    with pytest.raises(StageError, match=r"differ, and both make .*: retry one of them"):
        queue.retry(ids)
    _open_gate(corpus)
    assert queue.wait(queue.retry(ids[1:]))[0].state == "done"


def test_failed_training_cancels_its_side_jobs_and_raises_its_error(corpus: Path, queue: Queue) -> None:
    job = _gated(corpus, "probes")
    with pytest.raises(ValueError, match="it diverged"), run_pipeline._submitted([job], queue.ledger):
        raise ValueError("it diverged")
    found = next(line for line in queue.list() if line["name"] == job.name)
    assert (found["state"], found["error"]) == ("cancelled", "it was cancelled")


def test_waiting_clients_report_problems_of_the_queue(queue: Queue, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        queue.serve(taken.getsockname()[1])
        wait_until(lambda: queue.about()["trouble"])
        with errors.logging_to_stderr():
            queue._pause(1.0)
    assert "the job queue has a problem and keeps trying: metrics port" in capsys.readouterr().err


def test_a_deadline_ends_waiting_and_running_jobs(corpus: Path, queue: Queue) -> None:
    running = _gated(corpus, "running", cpus=2)
    ids = queue.submit([running])
    await_running(corpus, "running")
    waiting = queue.submit([toy_job(corpus, "waiting", deadline=0.5)])
    assert queue.wait(waiting)[0].error == "it still waited at its deadline, 0.5 s after submission"
    queue.cancel(ids)
    late = queue.wait(queue.submit([_gated(corpus, "late", deadline=3)]))[0]
    assert (late.state, late.failure) == ("failed", "deadline")
    assert late.error == "it still ran at its deadline, 3 s after submission"


def test_a_job_submitted_twice_runs_once(corpus: Path, queue: Queue, capsys: pytest.CaptureFixture[str]) -> None:
    job = _gated(corpus, "job")
    first = queue.submit([job])
    await_running(corpus, "job")
    # Placement, name and spelling of the path do not change what the job makes.
    place = corpus / ".." / "job"
    same = Job("another-name", "toy_stage", {**job.recipe, "placement": {"rows": 4}}, job.inputs, place, priority=5)
    assert queue.submit([same]) == first
    capsys.readouterr()
    with errors.logging_to_stderr():
        assert queue.submit([replace(job, alone=True, deadline=5.0)]) == first
    assert "already in the queue, where alone is no, not yes, deadline is none, not 5" in capsys.readouterr().err
    differs = r"job job: .* \(job, by .*, running\) makes .*/job too, and differs \(recipe.text: \"toy\" there, \"x\""
    with pytest.raises(StageError, match=differs):
        queue.submit([_gated(corpus, "job", text="x")])
    with pytest.raises(StageError, match="jobs job and twin would make the same"):
        queue.submit([job, Job("twin", "toy_stage", job.recipe, job.inputs, job.out)])
    with pytest.raises(StageError, match=r"jobs one .* and two .* differ, and both make"):
        queue.submit([Job(name, "toy_stage", {"text": name}, job.inputs, corpus / "out") for name in ("one", "two")])
    _open_gate(corpus)
    assert [(one.state, one.attempts) for one in queue.wait(first)] == [("done", 1)]
    assert artifact.read(job.out).facts["attempts"] == 1


def test_a_job_may_come_after_one_of_an_earlier_submission_but_not_after_itself(corpus: Path, queue: Queue) -> None:
    first = queue.submit([_gated(corpus, "first")])
    second = queue.submit([toy_job(corpus, "second", after=(*first,))])
    assert queue.show(second[0])["why"] == "comes after first"
    queue.cancel(first)
    assert queue.wait(second)[0].failure == "dependency"
    circle = [toy_job(corpus, "second", after=(*first,)), _gated(corpus, "first", after=("second",))]
    with pytest.raises(StageError, match="job first would wait for itself"):
        queue.submit(circle)


def test_priorities_and_limits_decide_who_is_next(corpus: Path, queue: Queue) -> None:
    held = queue.submit([_gated(corpus, "holds", cpus=2)])
    await_running(corpus, "holds")
    late = [
        toy_job(corpus, "low", cpus=2, user="ann"),
        toy_job(corpus, "high", cpus=2, priority=1),
        toy_job(corpus, "low-2", cpus=2),
    ]
    ids = queue.submit(late)
    raised = queue.submit([toy_job(corpus, "low-2", cpus=2, priority=2)])
    assert raised == tuple(ids[2:])
    queue.limit({"ann": 0}, {})
    _open_gate(corpus)
    queue.wait([*held, *ids[1:]])
    assert _started(corpus, "high", "low-2") == ["low-2", "high"]
    assert queue.show(ids[0])["why"] == "user ann may run 0 at a time"
    queue.limit({"*": 8}, {})
    assert queue.wait(ids[:1])[0].state == "done"


def test_a_job_that_waits_for_its_own_jobs_blocks_no_other(corpus: Path, queue: Queue) -> None:
    queue.limit({"*": 1}, {"*": 1})
    watcher = queue.submit([_gated(corpus, "watcher", cpus=0)])
    await_running(corpus, "watcher")
    ids = queue.submit([toy_job(corpus, "bench", alone=True), toy_job(corpus, "child")])
    assert [one.state for one in queue.wait(ids)] == ["done", "done"]
    assert _states(queue, watcher) == ["running"]
    _open_gate(corpus)
    assert queue.wait(watcher)[0].state == "done"


def test_a_limit_that_is_not_named_stays(queue: Queue) -> None:
    queue.limit({"ann": 2}, {"slow": 1})
    queue.limit(kinds={"slow": 3})
    assert queue.about()["limits"] == {"user": {"ann": 2}, "kind": {"slow": 3}}
    queue.limit({})
    assert queue.about()["limits"] == {"user": {}, "kind": {"slow": 3}}


def test_an_incomplete_last_line_of_the_log_is_shown_after_the_job_has_ended(corpus: Path, queue: Queue) -> None:
    ids = queue.submit([_gated(corpus, "job")])
    await_running(corpus, "job")
    log = Path(queue.show(ids[0])["log"])
    with log.open("a") as file:
        file.write("Fatal Python error: Segmentation fau")
    assert queue.log(ids[0])["text"] == "the toy says toy\n"
    queue.wait(queue.cancel(ids))
    assert queue.log(ids[0])["text"].endswith("\nFatal Python error: Segmentation fau")
    assert queue.log(ids[0], -20)["text"] == "or: Segmentation fau"


def test_outages_are_retried_a_limited_number_of_times(corpus: Path, queue: Queue) -> None:
    found = queue.wait(queue.submit([toy_job(corpus, "job", {"behavior": "outage"})]))[0]
    assert (found.state, found.failure, found.attempts) == ("failed", "cluster", 2)
    assert found.error == "a service it needs failed 2 times: the store does not answer: reset by peer"


def test_a_kind_has_its_limit(corpus: Path, queue: Queue) -> None:
    queue.limit({}, {"slow": 1})
    ids = queue.submit(
        [_gated(corpus, "one", kind="slow"), _gated(corpus, "two", kind="slow"), toy_job(corpus, "other")]
    )
    assert queue.wait(ids[2:])[0].state == "done"
    assert _states(queue, ids) == ["running", "waiting", "done"]
    assert queue.show(ids[1])["why"] == "kind slow may run 1 at a time"


def test_after_out_of_memory_half_the_micro_batch_is_tried_once(corpus: Path, queue: Queue) -> None:
    def hungry(name: str, room: int) -> Job:
        return toy_job(corpus, name, {"room": room, "placement": {"rows": 8}})

    enough, never = queue.wait(queue.submit([hungry("enough", 4), hungry("never", 2)]))
    assert (enough.state, enough.attempts) == ("done", 2)
    assert artifact.read(corpus.with_name("enough")).facts["rows"] == 4
    assert Path(str(enough.log)).read_text().count("this attempt has half the micro-batch") == 1
    assert (never.state, never.failure, never.attempts) == ("failed", "memory", 2)
    assert re.fullmatch(
        r"ran out of memory twice, the second time with half .*: MemoryError: no room for 4 rows; "
        r"its worker had up to [\d.]+ GiB, [\d.]+ GiB of [\d.]+ GiB are free on the node",
        str(never.error),
    )


def test_a_job_waits_while_another_process_makes_its_artifact(corpus: Path, queue: Queue) -> None:
    job = toy_job(corpus, "contested")
    with artifact.create(job.out, kind="dataset", inputs={}, recipe={"of": "another process"}):
        ids = queue.submit([job])
        wait_until(lambda: "another process is making" in queue.show(ids[0])["why"])
        wait_until(lambda: queue.show(ids[0])["attempts"] > 3)
    found = queue.wait(ids)[0]
    assert (found.state, found.failure) == ("failed", "user")
    assert "was made differently" in str(found.error)


def test_alone_on_a_node_a_job_has_the_threads_it_asked_for(corpus: Path, queue: Queue) -> None:
    assert queue.wait(queue.submit([toy_job(corpus, "alone", alone=True)]))[0].state == "done"
    assert artifact.read(corpus.with_name("alone")).facts["threads"] == "1"
    # Earlier work of a process would affect the measurement.
    pair = [toy_job(corpus, name, alone=True) for name in ("next", "last")]
    one, other = (queue.show(job)["history"] for job in queue.submit(pair) if queue.wait([job]))
    processes = [[what for _, what in history if what.startswith("runs on")] for history in (one, other)]
    assert processes[0] != processes[1]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"cpus": -1}, "job odd needs -1 CPU: write a number that is not negative"),
        ({"cpus": 1e-5}, "job odd needs 1e-05 CPU: write 0, or 0.0001 at least"),
        ({"gpus": 1.5}, "job odd needs 1.5 GPUs: write a share below 1, or a whole number"),
        ({"resources": {"CPU": 1}}, "job odd names the resource CPU: write cpus instead"),
        ({"resources": {"memory": 1}}, "job odd names the resource memory, which the queue does not schedule: leave"),
        ({"deadline": 0}, "job odd has a deadline of 0 s: write the seconds it may take"),
        (
            {"resources": {"quiet": 1}},
            "needs 1 CPUs, 0 GPUs and 1 quiet on one node, the nodes have 2 CPUs, .* 0 quiet:",
        ),
    ],
)
def test_invalid_jobs_are_refused(corpus: Path, queue: Queue, given: dict[str, Any], message: str) -> None:
    with pytest.raises(StageError, match=message):
        queue.submit([toy_job(corpus, "odd", **given)])


def test_an_invalid_port_is_refused(queue: Queue) -> None:
    with pytest.raises(StageError, match="metrics port 70000: write a number from 1 to 65535"):
        queue.serve(70_000)


def test_a_port_may_come_from_the_environment_of_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PORT, raising=False)
    assert port_from_environment() is None
    monkeypatch.setenv(PORT, "9401")
    assert port_from_environment() == 9401


def test_jobs_are_metrics(corpus: Path, queue: Queue) -> None:
    port = free_ports(1)[0]
    queue.serve(port)
    done = queue.submit([toy_job(corpus, "done", kind="measured"), _gated(corpus, "running", kind="measured")])
    queue.wait(done[:1])
    queue.submit([toy_job(corpus, "waiting", kind="measured", cpus=2)])
    await_running(corpus, "running")

    def served() -> dict[str, float]:
        text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
        return {name: float(value) for name, value in re.findall(r"^(stillhouse_job\S+) (\S+)$", text, re.MULTILINE)}

    wanted = {
        'stillhouse_jobs_waiting{kind="measured"}': 1.0,
        'stillhouse_jobs_running{kind="measured"}': 1.0,
        'stillhouse_jobs_ended_total{kind="measured",state="done"}': 1.0,
        'stillhouse_job_attempts_total{kind="measured"}': 2.0,
    }
    wait_until(lambda: {name: served().get(name) for name in wanted} == wanted)


@pytest.fixture
def command(queue: Queue, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run ``python -m cluster.jobs``; returns its output."""
    monkeypatch.setenv(ray_cluster.ADDRESS, "of the cluster this process is connected to")

    def run(*words: object) -> str:
        jobs_cli.main([str(word) for word in words])
        return capsys.readouterr().out

    return run


def test_the_command_line(corpus: Path, queue: Queue, command: Any, capsys: pytest.CaptureFixture[str]) -> None:
    out = corpus.with_name("out")
    submit = ["submit", "toy_stage", "default", "--corpus", corpus, "--out", out, "--set", "behavior=refuse"]
    job = command(*submit, "--name", "refused", "--user", "ann", "--priority", 3, "--deadline", "2h").strip()
    behind = command("submit", "toy_stage", "default", "--corpus", corpus, "--out", f"{out}-2", "--after", job).strip()
    with pytest.raises(SystemExit, match="1"):
        command("wait", job, behind)
    assert capsys.readouterr().out.splitlines() == [
        "refused: failed: the toy refuses: write behavior = work",
        "out-2: failed: it comes after refused, which failed",
    ]
    listed = {line["id"]: line for line in json.loads(command("list", "--all", "--json"))}
    assert (listed[job]["name"], listed[job]["user"], listed[job]["priority"]) == ("refused", "ann", 3)
    assert job not in command("list")
    line = next(line for line in command("list", "--all", "--user", "ann").splitlines() if line.startswith(job))
    assert re.match(rf"{job}  refused  failed  dataset  ann +3 +1 .*the toy refuses", line)
    shown = command("show", job[:6])
    assert re.search(r"why +the toy refuses: write behavior = work", shown)
    assert "| the toy says toy" in shown
    assert re.search(rf"after +{job}", command("show", behind))
    assert command("logs", job).startswith("the toy says toy\n")
    assert command("retry", job).split() == [job, behind]
    with pytest.raises(SystemExit, match="1"):
        command("wait", job)
    capsys.readouterr()
    assert command("cancel", job) == ""
    assert command("drain") == command("drain", "--off") == ""
    assert command("start", "--limit-user", "ann=2", "--limit-kind", "*=9").strip() == str(queue.ledger)
    assert queue.about()["limits"] == {"user": {"ann": 2}, "kind": {"*": 9}}
    fine = ["submit", "toy_stage", "default", "--corpus", corpus, "--out", f"{out}-3", "--wait"]
    assert re.fullmatch(r"\w{12}\n", command(*fine))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["show", "nobody"], "error: nobody is not the id of one job of the queue"),
        (["list", "--ledger", "elsewhere"], "error: the queue of this cluster has the ledger .*, not .*elsewhere"),
        (["submit", "no.stage", "default"], "error: no stage no.stage: "),
        (["submit", "toy_stage", "default", "--corpus", "x", "--out", "y", "--set", "txt=1"], "did you mean text?"),
    ],
)
def test_the_command_line_says_what_is_wrong(
    command: Any, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    with pytest.raises(SystemExit, match="1"):
        command(*words)
    assert re.search(message, capsys.readouterr().err)


def test_without_a_cluster_the_command_line_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(ray_cluster.ADDRESS, raising=False)
    with pytest.raises(SystemExit, match="1"):
        jobs_cli.main(["list"])
    assert capsys.readouterr().err.startswith("error: no cluster is named: set RAY_ADDRESS to its head's host:6379")
