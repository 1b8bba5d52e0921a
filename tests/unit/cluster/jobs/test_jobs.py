"""Jobs on a real Ray cluster: order, outcomes, dependencies of failed jobs, retries, and exclusive jobs."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from toy_stage_jobs import await_running, make_corpus, queue_of_two_cpus, toy_job
from waiting import wait_until

from cluster.actors import ray_cluster
from cluster.artifacts import artifact, commit
from cluster.artifacts.errors import StageError
from cluster.jobs import client
from cluster.jobs.failures import RetryPolicy
from cluster.jobs.job import Job, Outcome

DEATHS = 3


@pytest.fixture(scope="module", autouse=True)
def ray_of_two_cpus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cluster of two CPUs and its job queue, which retries after a tenth of a second."""
    with queue_of_two_cpus(tmp_path_factory.mktemp("ledger"), RetryPolicy(max_deaths=DEATHS, first_seconds=0.1)):
        yield


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return make_corpus(tmp_path)


def _run(corpus: Path, *wanted: Job) -> dict[str, Outcome]:
    found = client.run(wanted, corpus.with_name("logs"))
    assert [outcome.name for outcome in found] == [job.name for job in wanted]
    return {outcome.name: outcome for outcome in found}


def _times(corpus: Path, name: str) -> tuple[float, float]:
    """Start and end of a job's work, on the machine's monotonic clock."""
    facts = artifact.verify(corpus.with_name(name)).facts
    return facts["started"], facts["ended"]


def _states(queue: client.Queue, ids: Sequence[str]) -> list[str]:
    return [queue.show(job)["state"] for job in ids]


def _await_reservation(queue: client.Queue, job: str) -> None:
    """Wait until a round of the scheduler has reserved a node for a job that does not fit yet."""
    wait_until(lambda: queue.show(job)["why"] == "next on its node")


def _log(outcome: Outcome) -> str:
    assert outcome.log
    return Path(outcome.log).read_text(encoding="utf-8")


def test_jobs_wait_for_their_dependencies_and_are_skipped_the_second_time(corpus: Path) -> None:
    gate = corpus.with_name("gate")
    first = toy_job(corpus, "first", {"gate": str(gate)})
    chained = Job(
        "second",
        "toy_stage",
        {},
        {"corpus": first.out},
        corpus.with_name("second"),
        after=("first",),
    )
    last = toy_job(corpus, "last", after=("first", "second"))
    queue = client.queue()
    ids = queue.submit([first, chained, last])
    await_running(corpus, "first")
    assert _states(queue, ids) == ["running", "waiting", "waiting"]
    gate.touch()
    assert [outcome.state for outcome in queue.wait(ids)] == ["done"] * 3
    assert _times(corpus, "first")[1] <= _times(corpus, "second")[0]
    assert _times(corpus, "second")[1] <= _times(corpus, "last")[0]
    assert artifact.read(chained.out).inputs == {"corpus": artifact.read(first.out).identity}
    before = [artifact.verify(job.out) for job in (first, chained, last)]
    again = _run(corpus, first, chained, last)
    assert [outcome.state for outcome in again.values()] == ["skipped"] * 3
    assert [artifact.verify(job.out) for job in (first, chained, last)] == before


def test_the_error_of_a_failed_job_is_printed_once(corpus: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "stillhouse")
    _run(corpus, toy_job(corpus, "refused", {"behavior": "refuse"}))
    lines = [line for line in caplog.messages if "the toy refuses" in line]
    assert lines == ["refused: failed: the toy refuses: write behavior = work"]


def test_a_failed_job_stops_only_those_that_come_after_it(corpus: Path) -> None:
    found = _run(
        corpus,
        toy_job(corpus, "refused", {"behavior": "refuse"}),
        toy_job(corpus, "dependant", after=("refused",)),
        toy_job(corpus, "further", after=("dependant",)),
        toy_job(corpus, "buggy", {"behavior": "bug"}),
        toy_job(corpus, "misspelt", {"txt": "x"}),
        toy_job(corpus, "sound"),
        toy_job(corpus, "after-sound", after=("sound",)),
    )
    assert {name: outcome.state for name, outcome in found.items()} == {
        "refused": "failed",
        "dependant": "failed",
        "further": "failed",
        "buggy": "failed",
        "misspelt": "failed",
        "sound": "done",
        "after-sound": "done",
    }
    assert found["refused"].error == "the toy refuses: write behavior = work"
    assert found["dependant"].error == "it comes after refused, which failed"
    assert found["further"].error == "it comes after dependant, which failed"
    assert found["misspelt"].error == "misspelt: unknown key txt; did you mean text?"
    assert found["buggy"].error == f"RuntimeError: a bug in the toy (a bug: see {found['buggy'].log})"
    assert _log(found["refused"]).splitlines()[-1] == "error: the toy refuses: write behavior = work"
    assert "Traceback" not in _log(found["refused"])
    assert re.search(r"Traceback \(most recent call last\):(\n.*)+RuntimeError: a bug in the toy", _log(found["buggy"]))
    assert not corpus.with_name("dependant").exists()


@pytest.mark.long
def test_every_job_has_its_own_log(corpus: Path) -> None:
    found = _run(corpus, toy_job(corpus, "one", {"text": "ONE"}), toy_job(corpus, "two", {"text": "TWO"}))
    assert _log(found["one"]) == "the toy says ONE\n"
    assert _log(found["two"]) == "the toy says TWO\n"
    again = _run(corpus, toy_job(corpus, "one", {"text": "ONE"}))
    assert _log(again["one"]) == f"the toy says ONE\n{corpus.with_name('one')} is already complete\n"


def test_a_job_whose_worker_is_killed_is_tried_again_and_continues(corpus: Path) -> None:
    found = _run(corpus, toy_job(corpus, "dies-once", {"deaths": 1}), toy_job(corpus, "calm"))
    assert found["dies-once"].state == "done"
    assert artifact.verify(corpus.with_name("dies-once")).facts["attempts"] == 2
    assert _log(found["dies-once"]).count("the toy says") >= 1
    assert found["calm"].state == "done"


@pytest.mark.long
def test_a_job_whose_workers_keep_dying_fails_and_keeps_its_files(corpus: Path) -> None:
    found = _run(corpus, toy_job(corpus, "dies", {"deaths": 99}), toy_job(corpus, "heir", after=("dies",)))
    assert found["dies"].state == "failed"
    assert re.fullmatch(
        rf"its worker died {DEATHS} times: process \d+ on .* was killed or .*", str(found["dies"].error)
    )
    assert (found["dies"].failure, found["dies"].attempts) == ("cluster", DEATHS)
    partial = commit.staging(corpus.with_name("dies"))
    assert (partial / "attempts.txt").stat().st_size == DEATHS
    assert found["heir"].state == "failed"


@pytest.mark.long
def test_exclusive_jobs_run_alone_and_others_share_the_cluster(corpus: Path) -> None:
    gates = [corpus.with_name(name) for name in ("gate-of-the-first-pair", "gate-of-alone")]

    def pair(pipe: str, *names: str, gate: str) -> list[Job]:
        os.mkfifo(corpus.with_name(pipe))
        meeting = {"meeting": str(corpus.with_name(pipe)), "gate": gate}
        return [
            toy_job(corpus, name, {**meeting, "side": side}, cpus=0.5) for name, side in zip(names, "rw", strict=True)
        ]

    # A pair ends only if both of its jobs run at the same time.
    before = pair("first", "one", "two", gate=str(gates[0]))
    after = pair("second", "three", "four", gate="")
    alone = toy_job(corpus, "alone", {"gate": str(gates[1])}, cpus=0.5, alone=True)
    queue = client.queue()
    ids = queue.submit([*before, alone, *after])
    await_running(corpus, "one", "two")
    _await_reservation(queue, ids[2])
    assert _states(queue, ids) == ["running", "running", "waiting", "waiting", "waiting"]
    gates[0].touch()
    await_running(corpus, "alone")
    assert _states(queue, ids) == ["done", "done", "running", "waiting", "waiting"]
    gates[1].touch()
    assert {outcome.state for outcome in queue.wait(ids)} == {"done"}
    started, ended = _times(corpus, "alone")
    assert max(_times(corpus, job.name)[1] for job in before) <= started
    assert ended <= min(_times(corpus, job.name)[0] for job in after)


@pytest.mark.long
def test_nothing_overtakes_a_job_that_waits_for_room(corpus: Path) -> None:
    gate = corpus.with_name("gate")
    small = toy_job(corpus, "small", {"gate": str(gate)})
    queue = client.queue()
    ids = queue.submit([small, toy_job(corpus, "large", cpus=2), toy_job(corpus, "late")])
    await_running(corpus, "small")
    _await_reservation(queue, ids[1])
    assert _states(queue, ids) == ["running", "waiting", "waiting"]
    gate.touch()
    assert {outcome.state for outcome in queue.wait(ids)} == {"done"}
    assert _times(corpus, "small")[1] <= _times(corpus, "large")[0]
    assert _times(corpus, "large")[1] <= _times(corpus, "late")[0]


@pytest.mark.long
def test_a_job_that_waits_for_another_lets_others_pass(corpus: Path) -> None:
    _run(
        corpus,
        toy_job(corpus, "first", {"gate": str(corpus.with_name("free"))}),  # waits for the artifact of "free"
        toy_job(corpus, "dependant", after=("first",)),
        toy_job(corpus, "free"),
    )
    assert _times(corpus, "free")[0] < _times(corpus, "dependant")[0]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"cpus": 3}, "job second needs 3 CPUs and 0 GPUs on one node, the nodes have 2 CPUs and .* ask for less"),
        ({"gpus": 99}, r"job second needs 1 CPUs and 99 GPUs on one node, the nodes have .* ask for less"),
        ({"after": ("nobody",)}, "job second comes after nobody, which is neither an earlier job"),
        ({"after": ("second",)}, "job second comes after second, which is neither an earlier job"),
        ({"after": ("third",)}, "job second comes after third, which is neither an earlier job"),
    ],
)
def test_jobs_that_could_never_run_are_refused_before_any_runs(
    corpus: Path, given: dict[str, Any], message: str
) -> None:
    wanted = [toy_job(corpus, "first"), toy_job(corpus, "second", **given), toy_job(corpus, "third", after=("second",))]
    with pytest.raises(StageError, match=message):
        client.run(wanted, corpus.with_name("logs"))
    assert not corpus.with_name("first").exists()


def test_two_jobs_of_one_name_are_refused(corpus: Path) -> None:
    with pytest.raises(StageError, match="two jobs are called same"):
        client.run([toy_job(corpus, "same"), toy_job(corpus, "same")], corpus.with_name("logs"))


def test_an_empty_submission_has_no_outcomes(tmp_path: Path) -> None:
    assert client.run([], tmp_path / "logs") == []


def test_connecting_inside_a_connection_leaves_it_open(corpus: Path) -> None:
    with ray_cluster.connect(1):
        pass
    assert _run(corpus, toy_job(corpus, "still-there"))["still-there"].state == "done"


def test_a_line_of_output_names_its_job_once() -> None:
    assert client.line_of("corpus", "corpus: 3 splits read") == "corpus: 3 splits read"
    assert client.line_of("tokens", "vocabulary: 4 shards in 2 s") == "tokens: vocabulary: 4 shards in 2 s"
