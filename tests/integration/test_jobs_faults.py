"""Kill the queue's actor, nodes, drivers and whole cluster: no job is lost, and none is finished twice."""

import contextlib
import json
import os
import random
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import paths
import pytest
import ray_clusters
import tiny_pipeline
from driver_processes import JobQueueClient, RefusedError
from ray_clusters import Cluster, Node
from toy_stage_jobs import make_corpus
from waiting import wait_until

pytestmark = pytest.mark.long

QUICK = {"max_deaths": 3, "first_seconds": 0.2, "longest_seconds": 1.0}


class Place:
    """A folder with an input, a ledger and a tally of finished jobs."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.ledger, self.tally = folder, folder / "ledger", folder / "tally.txt"
        self.gate = folder / "gate"
        make_corpus(folder)
        self._clients: list[JobQueueClient] = []

    def job(self, name: str, *, gated: bool = False, after: tuple[str, ...] = (), **recipe: Any) -> dict[str, Any]:
        values = {"text": name, "tally": str(self.tally), "gate": str(self.gate) if gated else "", **recipe}
        places = {"inputs": {"corpus": str(self.folder / "corpus")}, "out": str(self.folder / "out" / name)}
        return {"name": name, "stage": "toy_stage", "recipe": values, **places, "after": after}

    def finished(self) -> Counter[str]:
        return Counter(self.tally.read_text().split()) if self.tally.exists() else Counter()

    def client(self, cluster: Cluster) -> JobQueueClient:
        return self.client_of(cluster.environment)

    def client_of(self, environment: dict[str, str]) -> JobQueueClient:
        self._clients.append(JobQueueClient(self.folder / "client.log", environment))
        return self._clients[-1]

    def begun(self, *names: str) -> bool:
        return all((self.folder / "out" / f".{name}.partial" / "text.txt").exists() for name in names)

    def end(self) -> None:
        for client in self._clients:
            with contextlib.suppress(OSError):
                client.end()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    # Workers find the toy stage by name, as they find an installed one.
    monkeypatch.setenv("PYTHONPATH", str(paths.SUPPORT), prepend=os.pathsep)
    found = Place(tmp_path)
    yield found
    found.end()


def _names(*outcomes: dict[str, Any]) -> dict[str, tuple[str, int]]:
    return {outcome["name"]: (outcome["state"], outcome["attempts"]) for outcome in outcomes}


def test_a_killed_queue_restarts_and_reattaches_its_workers(place: Place) -> None:
    with ray_clusters.running_cluster(place.folder, nodes=2) as cluster:
        client = place.client(cluster)
        client.request("start", str(place.ledger), QUICK)
        names = [f"job-{number}" for number in range(6)]
        ids = client.request("submit", [place.job(name, gated=True) for name in names])
        wait_until(lambda: place.begun("job-0", "job-1"))
        client.request("cancel", ids[5:])
        for _ in range(2):
            os.kill(client.request("about")["process"], signal.SIGKILL)
            # The queue is dead or restarting when this submission arrives.
            assert client.request("submit", [place.job("job-3", gated=True)]) == [ids[3]]
        late = client.request("submit", [place.job("late", after=(ids[0],))])
        place.gate.touch()
        outcomes = client.request("wait", [*ids, *late])
        segments = len(list(place.ledger.glob("segment-*")))
    assert _names(*outcomes) == {**dict.fromkeys([*names[:5], "late"], ("done", 1)), "job-5": ("cancelled", 0)}
    assert place.finished() == Counter([*names[:5], "late"])
    assert segments == 3


def test_the_next_queue_resumes_a_stopped_one_and_another_ledger_is_refused(place: Place) -> None:
    with ray_clusters.running_cluster(place.folder, nodes=1) as cluster:
        client = place.client(cluster)
        client.request("start", str(place.ledger), QUICK)
        ids = client.request("submit", [place.job("one", gated=True), place.job("two")])
        wait_until(lambda: place.begun("one"))
        with pytest.raises(RefusedError, match=f"ledger {place.ledger}, not .*other"):
            client.request("start", str(place.folder / "other"), QUICK)
        client.request("drain", True)
        assert client.request("stop")
        # A job that ends while no queue runs is not lost: its worker reports it later.
        place.gate.touch()
        wait_until(lambda: (place.folder / "out" / "one").exists())
        client.request("start", str(place.ledger), QUICK)
        assert _names(*client.request("wait", ids[:1])) == {"one": ("done", 1)}
        assert client.request("show", "two")["why"] == "the queue is drained"
        client.request("drain", False)
        assert _names(*client.request("wait", ids)) == {"one": ("done", 1), "two": ("done", 1)}


@pytest.mark.parametrize(
    "leave", [Node.kill, pytest.param(Node.drain, marks=pytest.mark.rare)], ids=["lost", "drained"]
)
def test_jobs_of_a_node_that_leaves_run_elsewhere(place: Place, leave: Callable[[Node], None]) -> None:
    with ray_clusters.running_cluster(place.folder, nodes=2, isolated=ray_clusters.namespaces_work()) as cluster:
        client = place.client(cluster)
        client.request("start", str(place.ledger), QUICK)
        names = ["one", "two", "three"]
        ids = client.request("submit", [place.job(name, gated=True) for name in names])

        def history() -> list[str]:
            return [what for job in ids for _, what in client.request("show", job)["history"]]

        wait_until(lambda: place.begun("one", "two"))
        leave(cluster.nodes[1])
        wait_until(lambda: any("the node it ran on is gone" in what for what in history()))
        place.gate.touch()
        outcomes = client.request("wait", ids)
        told = history()
    assert {outcome["state"] for outcome in outcomes} == {"done"}
    assert sorted(outcome["attempts"] for outcome in outcomes) == [1, 1, 2]
    assert [what for what in told if "failed:" in what] == ["attempt 1 failed: the node it ran on is gone"]
    assert place.finished() == Counter(names)


def test_jobs_continue_after_their_driver_is_killed(place: Place) -> None:
    with ray_clusters.running_cluster(place.folder, nodes=1) as cluster:
        driver, other = place.client(cluster), place.client(cluster)
        wanted = [place.job("one", gated=True), place.job("two", after=("one",))]
        driver.send("run", wanted, str(place.ledger))
        wait_until(lambda: place.begun("one"))
        driver.end()
        ids = other.request("submit", wanted)
        place.gate.touch()
        outcomes = other.request("wait", ids)
    # The second submission joined the first.
    assert _names(*outcomes) == {"one": ("done", 1), "two": ("done", 1)}
    assert place.finished() == Counter(["one", "two"])


def test_jobs_of_an_interrupted_command_on_a_private_cluster_are_cancelled(place: Place) -> None:
    environment = tiny_pipeline.environment()
    first, second = (place.client_of(environment) for _ in range(2))
    first.send("run", [place.job("one", gated=True), place.job("two", after=("one",))], str(place.ledger))
    wait_until(lambda: place.begun("one"))
    first.end()
    with sorted(place.ledger.glob("segment-*.jsonl"))[-1].open("a") as newest:
        newest.write('{"at": 0, "event": "drained", "on": true}\n')  # an earlier cluster may have been drained
    changed = [place.job("one", text="changed"), place.job("three")]
    outcomes = second.request("run", changed, str(place.ledger))
    assert {outcome["name"]: outcome["state"] for outcome in outcomes} == {"one": "done", "three": "done"}
    states = {(line["name"], line["state"], line["error"]) for line in second.request("list")}
    assert ("two", "cancelled", "the command that needed it was interrupted") in states
    assert place.finished() == Counter(["changed", "three"])


def test_a_ledger_outlives_its_cluster(place: Place) -> None:
    names = ["done", "running", "waiting", "behind"]
    with ray_clusters.running_cluster(place.folder, nodes=1) as cluster:
        client = place.client(cluster)
        client.request("start", str(place.ledger), QUICK)
        wanted = [place.job("done"), place.job("running", gated=True), place.job("waiting")]
        ids = client.request("submit", [*wanted, place.job("behind", after=("running",))])
        wait_until(lambda: place.begun("running"))
        client.request("limit", {"*": 7}, {})
        for node in cluster.nodes[::-1]:
            node.kill()
        client.end()
    (place.folder / "again").mkdir()
    place.gate.touch()
    with ray_clusters.running_cluster(place.folder / "again", nodes=2) as cluster:
        client = place.client(cluster)
        client.request("start", str(place.ledger), QUICK)
        outcomes = client.request("wait", ids)
        assert client.request("about")["limits"] == {"user": {"*": 7}, "kind": {}}
    attempts = {"done": 1, "running": 2, "waiting": 1, "behind": 1}
    assert _names(*outcomes) == {name: ("done", attempts[name]) for name in names}
    assert place.finished() == Counter(names)


@pytest.mark.rare
def test_concurrent_submissions_of_one_job_get_the_same_id(place: Place) -> None:
    with ray_clusters.running_cluster(place.folder, nodes=2) as cluster:
        people = [place.client(cluster), place.client(cluster)]
        wanted = [place.job(f"job-{number}") for number in range(40)]
        for person in people:
            person.send("run", wanted, str(place.ledger))
        theirs, others = (person.receive() for person in people)
        assert [outcome["id"] for outcome in theirs] == [outcome["id"] for outcome in others]
        assert {outcome["state"] for outcome in theirs} == {"done"}
        people[0].request("submit", [place.job("same", gated=True, text="a")])
        with pytest.raises(RefusedError, match=r'makes .* too, and differs \(recipe.text: "a" there, "b" asked'):
            people[1].request("submit", [place.job("same", gated=True, text="b")])
    assert place.finished() == Counter(f"job-{number}" for number in range(40))


@pytest.mark.rare
def test_a_thousand_jobs_while_the_queue_and_workers_are_killed(place: Place) -> None:
    count, draw = 1000, random.Random(0)
    with ray_clusters.running_cluster(place.folder, nodes=2) as cluster:
        client, killer = place.client(cluster), place.client(cluster)
        client.request("start", str(place.ledger), {"max_deaths": 10, "first_seconds": 0.1, "longest_seconds": 0.1})
        wanted = [place.job(f"job-{n}", after=(f"job-{n - 7}",) if n % 7 == 0 and n else ()) for n in range(count)]
        client.send("run", wanted, str(place.ledger))
        for share in (0.2, 0.4, 0.6):
            wait_until(lambda share=share: sum(place.finished().values()) > share * count)  # type: ignore[misc]
            os.kill(killer.request("about")["process"], signal.SIGKILL)
            node = draw.choice(cluster.nodes[1:])
            for process in node.processes():
                with contextlib.suppress(ray_clusters.psutil.NoSuchProcess):
                    if "job_worker.Worker" in " ".join(process.cmdline()) or "ray::Worker" in " ".join(
                        process.cmdline()
                    ):
                        process.kill()
        outcomes = client.receive()
    assert Counter(outcome["state"] for outcome in outcomes) == {"done": count}
    # A worker may die between its last line and its artifact; complete artifacts are never made again.
    assert place.finished().keys() == {f"job-{n}" for n in range(count)}
    again = [name for name, times in place.finished().items() if times > 1]
    tried = {outcome["name"] for outcome in outcomes if outcome["attempts"] > 1}
    assert {*again} <= tried
    events = [line for path in place.ledger.glob("segment-*") for line in path.read_text().splitlines()]
    ended = Counter(json.loads(line)["id"] for line in events if '"event": "ended"' in line)
    assert {*ended.values()} == {1}, "a job has ended twice"
