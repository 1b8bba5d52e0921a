"""Operations, memory and network traffic of a step against published and counted numbers."""

import pytest
from planned_runs import BERT, HALF, make_training

from distill.cost_model import costs
from distill.modeling import fused_head


@pytest.mark.parametrize(
    ("seq_len", "positions", "of_teacher", "of_student", "together"),
    [
        (128, "all", 0.223, 0.406, 0.629),
        (512, "all", 0.237, 0.427, 0.664),
        (128, "masked", None, None, 0.465),
        (512, "masked", None, None, 0.501),
    ],
)
def test_operations_per_token_are_those_of_the_analysis(
    seq_len: int, positions: str, of_teacher: float | None, of_student: float | None, together: float
) -> None:
    training = make_training(loss={"soft_positions": positions})
    share = costs.head_share(training, seq_len)
    if of_teacher is not None and of_student is not None:
        assert costs.teacher_flops(BERT, HALF, seq_len, share, training.loss) / 1e9 == pytest.approx(
            of_teacher, abs=5e-4
        )
        assert costs.student_flops(HALF, seq_len, share) / 1e9 == pytest.approx(of_student, abs=5e-4)
    found = costs.step_flops_per_token(training, BERT, HALF, seq_len) / 1e9
    # The analysis took exactly 15 %; a row has a whole number of labels.
    assert found == pytest.approx(together, abs=5e-4 if positions == "all" else 2e-3)


def test_a_teacher_without_a_soft_loss_needs_no_head() -> None:
    training = make_training(loss={"soft": 0.0})
    operations = costs.teacher_flops(BERT, HALF, 128, costs.head_share(training, 128), training.loss)
    assert operations == costs.layers_flops(BERT, 128)


LAYERS_ONLY = {"soft": 0.0, "masked": 0.0, "cosine": 0.0, "hidden": 1.0, "relation": 1.0}


def test_losses_between_layers_cost_layers_and_relations_and_no_head() -> None:
    training = make_training(loss=LAYERS_ONLY)
    of_models = costs.layers_flops(BERT, 128) + 3 * costs.layers_flops(HALF, 128)
    # Three relations of 128 x 768 multiply-adds: one product of the teacher, three of the student.
    relations = 3 * 4 * 2 * 128 * 768
    assert costs.step_flops_per_token(training, BERT, HALF, 128) == of_models + relations
    assert costs.head_bytes(training, HALF, 0, 512, "gpu") == 0
    assert costs.layer_loss_bytes_per_token(BERT, HALF, "fp16", training.loss) == 2 * 768 * (6 + 3 + 6 + 3)


def test_a_teacher_runs_up_to_the_last_layer_that_is_compared() -> None:
    training = make_training(loss={**LAYERS_ONLY, "hidden": 0.0, "relation_layer": 6})
    operations = costs.teacher_flops(BERT, HALF, 128, costs.head_share(training, 128), training.loss)
    assert operations == costs.layers_flops(BERT, 128) / 2 + 2 * 3 * 768**2


def test_memory_per_token_is_that_of_the_analysis() -> None:
    assert costs.activation_bytes_per_token(HALF, "fp16") / 2**10 == pytest.approx(153, abs=1)
    naive = make_training(placement={"head": "naive"})
    assert costs.head_bytes(naive, HALF, 1, 2048, "gpu") / 2**10 == pytest.approx(715, abs=1)
    in_chunks = [costs.head_bytes(make_training(), HALF, positions, 512, "gpu") for positions in (512, 8192, 65_536)]
    assert len({*in_chunks}) == 1, "a fused head takes the same for any number of tokens"


def test_the_fused_head_is_planned_with_the_memory_it_plans_with_itself() -> None:
    memory = 2**32
    chunk = fused_head.chunk_positions(BERT.vocabulary, 2, memory, "cuda")
    gradient = 2 * 4 * HALF.vocabulary * HALF.hidden
    planned = costs.head_bytes(make_training(), HALF, 10**6, chunk, "gpu") - gradient
    assert 0.9 * memory / 32 < planned <= memory / 32


@pytest.mark.parametrize(("stage", "times"), [(0, 2), (1, 2), (2, 2), (3, 1 + 2 * 4)])
def test_a_ring_carries_gradients_once_and_weights_as_often_as_they_are_gathered(stage: int, times: int) -> None:
    weights = 2 * HALF.parameters
    assert costs.network_bytes(HALF, "fp16", stage, 8, micros=4) == pytest.approx(7 / 8 * times * weights)
    assert costs.network_bytes(HALF, "fp16", stage, 1, micros=4) == 0
