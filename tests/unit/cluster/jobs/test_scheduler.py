"""The scheduler: order, reservations, backfilling and exclusive jobs, by example and on random queues."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.jobs.job import Job
from cluster.jobs.nodes import unmet_need
from cluster.jobs.scheduler import Need, Node, Placements, choose_nodes

Case = tuple[str, Need, float]
"""A job: its needs and its duration."""


def cpus(count: float, gpus: float = 0, alone: bool = False) -> Need:
    amounts = {"CPU": count, "GPU": gpus}
    return Need({name: amount for name, amount in amounts.items() if amount}, alone)


def node(total: Mapping[str, float], *running: Mapping[str, float], others: float = 0, exclusive: bool = False) -> Node:
    free = {name: amount - sum(taken.get(name, 0) for taken in running) for name, amount in total.items()}
    return Node(total, {**free, "CPU": free["CPU"] - others}, running, exclusive)


def plan(nodes: Sequence[Node], *waiting: Need, reserved: Mapping[str, str] | None = None) -> Placements:
    line = [(str(number), need) for number, need in enumerate(waiting)]
    return choose_nodes(line, {f"n{number}": found for number, found in enumerate(nodes)}, reserved or {})


def started(found: Placements) -> list[str]:
    return [job for job, _ in found.starts]


def test_jobs_start_in_order_as_long_as_they_fit() -> None:
    assert started(plan([node({"CPU": 2})], cpus(1), cpus(1), cpus(1))) == ["0", "1"]


def test_no_job_takes_resources_reserved_for_the_first() -> None:
    one = {"CPU": 1.0}
    found = plan([node({"CPU": 2}, one)], cpus(2), cpus(1))
    assert found == Placements([], {"0": "n0"})


@pytest.mark.parametrize(
    ("running", "passing"),
    [
        # The first job needs three of four CPUs. When the large job ends, one CPU is left over, so one job may start
        # now.
        ([2.0], 1),
        # When the first of two small jobs ends, the first job fits exactly: no other job may start.
        ([1.0, 1.0], 0),
        ([3.0], 1),
        ([0.5, 0.5, 1.0], 0),
    ],
)
def test_resources_the_first_job_cannot_use_are_given_to_others(running: list[float], passing: int) -> None:
    busy = [{"CPU": count} for count in running]
    assert len(started(plan([node({"CPU": 4}, *busy)], cpus(3), *[cpus(1)] * 4))) == passing


def test_other_resources_than_those_it_waits_for_are_free_for_others() -> None:
    found = plan([node({"CPU": 4, "GPU": 1}, {"CPU": 1, "GPU": 1})], cpus(1, gpus=1), cpus(1), cpus(1), cpus(1))
    assert started(found) == ["1", "2"], "one CPU is kept for the job that waits for the GPU"


def test_a_reservation_takes_the_node_where_the_fewest_jobs_must_end_and_stays() -> None:
    small, large = {"CPU": 1.0}, {"CPU": 4.0}
    nodes = [node({"CPU": 4}, small, small, small, small), node({"CPU": 4}, large)]
    assert plan(nodes, cpus(4)).reserved == {"0": "n1"}
    assert plan(nodes, cpus(4), reserved={"0": "n0"}).reserved == {"0": "n0"}


def test_two_large_jobs_reserve_two_nodes() -> None:
    nodes = [node({"CPU": 2}, {"CPU": 1.0}), node({"CPU": 2}, {"CPU": 1.0})]
    assert plan(nodes, cpus(2), cpus(2), cpus(1)) == Placements([], {"0": "n0", "1": "n1"})


def test_resources_held_by_other_users_are_not_reserved() -> None:
    found = plan([node({"CPU": 4}, {"CPU": 1.0}, others=2)], cpus(4), cpus(1))
    assert (started(found), found.reserved) == (["1"], {})


def test_a_job_too_large_for_every_node_blocks_no_other() -> None:
    assert started(plan([node({"CPU": 2})], cpus(3), cpus(0, gpus=1), cpus(1, alone=True))) == ["2"]


def test_an_exclusive_job_takes_an_empty_node() -> None:
    whole = {"CPU": 4.0, "GPU": 2.0}
    assert started(plan([node(whole)], cpus(1, alone=True), cpus(1))) == ["0"]
    nodes = [node(whole, {"CPU": 1.0}), node({"CPU": 1})]
    assert plan(nodes[:1], cpus(1, alone=True), cpus(1)) == Placements([], {"0": "n0"})
    assert plan(nodes, cpus(2, alone=True), cpus(1)) == Placements([("1", "n1")], {"0": "n0"})
    assert started(plan([node(whole, whole, exclusive=True)], cpus(0.5))) == []
    assert started(plan([node(whole, others=1)], cpus(1, alone=True), cpus(1))) == ["1"]


def test_jobs_without_resources_start_at_once_and_block_no_other() -> None:
    whole = {"CPU": 4.0}
    # A job that waits for its own jobs would never end if those waited behind an exclusive job.
    assert started(plan([node(whole, {})], cpus(1, alone=True), cpus(0), cpus(1))) == ["0", "1"]
    assert started(plan([node(whole, whole, exclusive=True)], cpus(0))) == ["0"]
    assert started(plan([node(whole, {"CPU": 1.0}, {})], cpus(4), cpus(0), cpus(3))) == ["1"]
    nodes = [node(whole, whole, exclusive=True), node({"CPU": 1})]
    assert plan(nodes, cpus(0)).starts == [("0", "n1")]


def test_a_job_without_a_gpu_leaves_nodes_with_gpus_to_others() -> None:
    nodes = [node({"CPU": 8, "GPU": 1}), node({"CPU": 2})]
    assert plan(nodes, cpus(1), cpus(1), cpus(1)).starts == [("0", "n1"), ("1", "n1"), ("2", "n0")]


def test_a_warm_worker_is_used_again() -> None:
    need = cpus(1)
    warm = Node({"CPU": 2}, {"CPU": 1}, ({"CPU": 1.0},), warm=frozenset({need.shape}))
    assert plan([node({"CPU": 2}), warm], need).starts == [("0", "n1")]


def test_scheduling_thousands_of_jobs_is_fast() -> None:
    draw = random.Random(0)
    needs = [cpus(draw.choice([1, 2, 3]), draw.choice([0, 0, 0.25, 1])) for _ in range(5000)]
    nodes = [node({"CPU": 16, "GPU": 4}, *[{"CPU": 0.5 + 0.01 * k} for k in range(20)]) for _ in range(8)]
    found = plan(nodes, *needs)
    assert found.starts
    assert found.reserved


class Simulation:
    """Run jobs that are all submitted at time 0 on nodes with these CPUs and GPUs."""

    def __init__(self, totals: Sequence[Mapping[str, float]], line: Sequence[Case]) -> None:
        self._nodes = {f"n{number}": total for number, total in enumerate(totals)}
        self._waiting = list(line)
        self._now = 0.0
        self._running: list[tuple[float, str, Mapping[str, float], bool, int]] = []
        self.begins: dict[str, float] = {}
        self.latest: dict[str, float] = {}
        """Latest start of a job with a reservation: when the earlier jobs on its node have ended."""
        self._reserved: dict[str, str] = {}

    def run(self) -> dict[str, float]:
        """Start of each job."""
        now = 0.0
        while self._waiting or self._running:
            self._start(now)
            assert self._running, "jobs wait although no job runs"
            now = min(end for end, *_ in self._running)
            self._running = [one for one in self._running if one[0] > now]
        return self.begins

    def _start(self, now: float) -> None:
        self._now = now
        found = choose_nodes([(name, need) for name, need, _ in self._waiting], self._look(), self._reserved)
        self._reserved = found.reserved
        for name, place in found.starts:
            case = next(case for case in self._waiting if case[0] == name)
            self._waiting.remove(case)
            taken = case[1].on(node(self._nodes[place]))
            self._running.append((now + case[2], place, taken, case[1].alone, int(name)))
            self.begins[name] = now
        self._note_promise()
        for name, found_node in self._look().items():
            assert min(found_node.free.values()) >= -1e-9, f"{name} is overcommitted"
            assert not found_node.exclusive or len(found_node.running) == 1, "an exclusive job shares its node"

    def _note_promise(self) -> None:
        """The first job starts no later than it would without the later jobs."""
        job = self._waiting[0][0] if self._waiting else ""
        if job in self._reserved and job not in self.latest:
            here = [(end, number) for end, at, *_, number in self._running if at == self._reserved[job]]
            self.latest[job] = max(
                end for end, number in here if number < int(job) or self.begins[str(number)] < self._now
            )

    def _look(self) -> dict[str, Node]:
        found = {}
        for name, total in self._nodes.items():
            here = [(taken, alone) for _, place, taken, alone, _ in self._running if place == name]
            found[name] = node(total, *[taken for taken, _ in here], exclusive=any(alone for _, alone in here))
        return found


def _random_queue(seed: int, nodes: int) -> tuple[list[Mapping[str, float]], list[Case]]:
    draw = random.Random(seed)
    totals = [{"CPU": float(draw.randint(2, 8)), "GPU": float(draw.randint(0, 2))} for _ in range(nodes)]
    line = []
    for number in range(draw.randint(5, 30)):
        total = draw.choice(totals)
        need = cpus(
            draw.choice([0.5, 1, 1, 2, draw.randint(1, int(total["CPU"]))]),
            draw.choice([0, 0, min(0.25, total["GPU"]), min(1, total["GPU"])]),
            alone=draw.random() < 0.1,
        )
        line.append((str(number), need, draw.choice([1.0, 2.0, 3.5, draw.uniform(0.1, 9)])))
    return totals, line


@pytest.mark.parametrize("nodes", [1, 2, 3])
def test_random_queues_end_and_never_overcommit_a_node(nodes: int) -> None:
    for seed in range(100):
        totals, line = _random_queue(seed, nodes)
        assert len(Simulation(totals, line).run()) == len(line), seed


def test_later_jobs_never_delay_the_first() -> None:
    for seed in range(300):
        _check_first_is_not_delayed(*_random_queue(seed, nodes=1))


@pytest.mark.parametrize("nodes", [1, 2, 3])
def test_jobs_on_the_reserved_node_bound_the_wait(nodes: int) -> None:
    promises = 0
    for seed in range(150):
        found = Simulation(*_random_queue(seed, nodes))
        begins = found.run()
        promises += len(found.latest)
        late = {job: latest for job, latest in found.latest.items() if begins[job] > latest}
        assert late == {}, seed
    assert promises > 150


def _check_first_is_not_delayed(totals: Sequence[Mapping[str, float]], line: Sequence[Case]) -> None:
    first = plan([node(totals[0])], *[need for _, need, _ in line])
    begun = {str(job) for job in started(first)}
    head = next((number for number, case in enumerate(line) if case[0] not in begun), None)
    if head is None:
        return
    # Both queues run the jobs that started at once; one of them has no later jobs.
    alone = Simulation(totals, line[: head + 1]).run()
    crowded = Simulation(totals, line).run()
    assert crowded[str(head)] <= alone[str(head)]


def test_benchmark_nodes_run_only_measurements() -> None:
    kept, busy, free = node({"CPU": 4, "benchmark": 1}), node({"CPU": 8}, {"CPU": 1.0}), node({"CPU": 8})
    assert plan([kept, busy, free], cpus(1, alone=True), cpus(1)).starts == [("0", "n0"), ("1", "n2")]
    # A measurement waits for the benchmark node although another node is empty; so does a job too large for the others.
    measuring = node({"CPU": 4, "benchmark": 1}, {"CPU": 4.0}, exclusive=True)
    assert plan([measuring, free], cpus(1, alone=True)) == Placements([], {"0": "n0"})
    assert plan([kept], cpus(1)) == Placements()
    assert plan([free], cpus(1, alone=True)).starts == [("0", "n0")]
    assert plan([kept, free], Need({"CPU": 1.0, "benchmark": 1.0})).starts == [("0", "n0")]


def test_a_job_that_fits_only_on_a_benchmark_node_is_refused() -> None:
    job = Job("large", "cluster.tokens", {}, {}, Path("out"), cpus=16)
    nodes = {"a": {"CPU": 32.0, "benchmark": 1.0}, "b": {"CPU": 8.0}}
    assert "the nodes have 8 CPUs and 0 GPUs" in str(unmet_need(job, nodes))
    assert "all are kept for measurements" in str(unmet_need(job, {"a": nodes["a"]}))
    assert unmet_need(replace(job, alone=True), nodes) is None
    assert unmet_need(replace(job, alone=True, cpus=8, gpus=1), {**nodes, "c": {"CPU": 8.0, "GPU": 1.0}}) is None
