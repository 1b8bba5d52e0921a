"""Predicted time and memory of a step, and the layout with the fastest step."""

import pytest
from planned_runs import BERT, HALF, make_run, make_training

from distill.cost_model import costs, hardware, step_prediction
from distill.cost_model.step_prediction import Layout
from distill.modeling import model_shape
from distill.modeling.model_shape import ModelShape


def test_a_step_takes_its_operations_over_what_the_devices_sustain() -> None:
    cluster = hardware.cluster("8xV100-16GB")
    found = step_prediction.predict(make_training(), BERT, HALF, 512, cluster)
    operations = 4096 * 512 * costs.step_flops_per_token(make_training(), BERT, HALF, 512)
    assert found.compute_seconds == pytest.approx(operations / (8 * 125e12 * 0.35))
    assert found.micros == 4096 // 8 // 16
    assert found.overhead_seconds == pytest.approx(found.micros * cluster.device.overhead_seconds)
    assert found.network_seconds == pytest.approx(7 / 8 * 2 * 2 * HALF.parameters / 130e9)


def test_zero_shards_what_its_stage_says() -> None:
    cluster = hardware.cluster("8xV100-16GB")
    memory = {
        stage: step_prediction.predict(make_training(), BERT, HALF, 512, cluster, Layout(8, 16, stage)).memory
        for stage in (1, 2, 3)
    }
    assert memory[1]["optimizer state"] == 12 * HALF.parameters // 8
    assert memory[1]["weights"] == memory[2]["weights"] == 2 * HALF.parameters
    assert memory[3]["weights"] == 2 * HALF.parameters // 8


def test_a_teacher_too_large_for_a_card_is_sharded_then_offloaded() -> None:
    huge = ModelShape("huge", "bert", 48, 2560, 10240, 40, 30_522)
    enormous = ModelShape("enormous", "bert", 96, 8192, 32_768, 64, 30_522)
    few = model_shape.student_shape(BERT, 6)
    cluster = hardware.cluster("8xV100-16GB")
    placed = [
        step_prediction.best(make_training(), teacher, few, 128, cluster).layout.teacher
        for teacher in (BERT, huge, enormous)
    ]
    # 48 x 2560 is 7.8 GB in half precision and fits once; eight cards hold 96 layers of 8192 in no way.
    assert placed == ["replica", "replica", "offloaded"]
    sharing = ModelShape("wide", "bert", 48, 5120, 20_480, 40, 30_522)
    assert step_prediction.best(make_training(), sharing, few, 128, cluster).layout.teacher == "sharded"


def test_a_smaller_card_takes_a_smaller_micro_batch_of_the_naive_head() -> None:
    naive = make_training(placement={"head": "naive"})
    best = {
        head: step_prediction.best(training, BERT, HALF, 512, hardware.cluster("8xV100-16GB")).layout.micro_rows
        for head, training in (("naive", naive), ("fused", make_training()))
    }
    assert best["naive"] < best["fused"]


def test_network_bound_is_where_computing_takes_as_long() -> None:
    planned, cluster = make_run(), hardware.cluster("8xV100-16GB", "25GbE")
    bound = step_prediction.network_bound_above(planned.training, BERT, HALF, 512, cluster)
    assert bound is not None
    for workers, bounded in ((bound, False), (bound + 8, True)):
        step = planned.predict(cluster.of_workers(workers), Layout(workers, 1, 1))
        # Rows are rounded to the workers here; the bound divides them exactly.
        exact = step.compute_seconds * 4096 / (step.tokens / 512)
        assert (step.network_seconds > exact) is bounded
    faster = step_prediction.network_bound_above(
        planned.training, BERT, HALF, 512, hardware.cluster("8xV100-16GB", "100GbE")
    )
    assert faster is not None
    assert faster > 3 * bound
