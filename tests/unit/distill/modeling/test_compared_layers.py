"""Which layers a loss compares, what each model then computes, and the refusals."""

import dataclasses

import pytest

from cluster.models import encoder_parts
from distill.config import Loss
from distill.modeling.compared_layers import compared
from distill.modeling.masked_lm import ModelError, Taps
from distill.modeling.model_shape import KNOWN, student_shape

BERT = KNOWN["bert-base-uncased"]
HALF = student_shape(BERT, 6)
NONE = {"soft": 0.0, "masked": 0.0, "cosine": 0.0}


def test_the_uniform_map_pairs_the_last_layers() -> None:
    assert encoder_parts.uniform_pairs(3, 6) == ((0, 1), (1, 3), (2, 5))
    assert encoder_parts.uniform_pairs(6, 12) == ((0, 1), (1, 3), (2, 5), (3, 7), (4, 9), (5, 11))
    assert encoder_parts.uniform_pairs(4, 12) == ((0, 2), (1, 5), (2, 8), (3, 11))
    assert encoder_parts.uniform_pairs(1, 6) == ((0, 5),)
    assert encoder_parts.uniform_pairs(2, 2) == ((0, 0), (1, 1))


@pytest.mark.parametrize(
    ("values", "depth", "head"),
    [
        ({"hidden": 1.0}, 12, False),
        ({"hidden": 1.0, "hidden_layers": ((0, 3), (5, 7))}, 8, False),
        # The layer of the relations gives its queries, keys and values, and does not run.
        ({"relation": 1.0}, 11, False),
        ({"relation": 1.0, "relation_layer": 4}, 4, False),
        ({"relation": 1.0, "relation_layer": 4, "hidden": 1.0, "hidden_layers": ((0, 6),)}, 7, False),
        ({"relation": 1.0, "relation_layer": 9, "hidden": 1.0, "hidden_layers": ((0, 6),)}, 9, False),
        ({"hidden": 1.0, "hidden_layers": ((0, 3),), "cosine": 1.0}, None, False),
        ({"hidden": 1.0, "hidden_layers": ((0, 3),), "soft": 1.0}, None, True),
        ({"hidden": 1.0, "masked": 1.0}, 12, False),
    ],
)
def test_the_teacher_computes_no_more_than_the_loss_needs(
    values: dict[str, object], depth: int | None, head: bool
) -> None:
    loss = Loss.model_validate({**NONE, **values})
    taps = compared(loss, HALF, BERT).of_teacher(loss)
    assert (taps.depth, taps.head) == (depth, head)


def test_only_weighed_terms_compare_layers() -> None:
    assert compared(Loss(), HALF, BERT).of_student(head=True) == Taps()
    loss = Loss(hidden=1.0, relation=1.0, relations=("values", "attention"))
    found = compared(loss, HALF, BERT)
    assert found.terms == ["hidden", "relation"]
    assert found.of_student(head=True) == Taps(tuple(range(6)), 5, ("values", "queries", "keys"), None, True)
    assert found.of_teacher(loss).layers == (1, 3, 5, 7, 9, 11)
    assert found.heads == 12


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"hidden_layers": ((0, 12),)}, "the pair [0, 12], and the teacher's layers are 0 to 11: write [student"),
        ({"hidden_layers": ((6, 0),)}, "the pair [6, 0], and the student's layers are 0 to 5: write [student"),
        ({"relation_layer": 12}, "loss.relation_layer 12 does not fit a teacher of 12 layers: write 0 to 11"),
        ({"relation_heads": 7}, "loss.relation_heads 7 does not divide the teacher's width of 768: write 6"),
    ],
)
def test_what_a_model_does_not_have_is_refused(values: dict[str, object], said: str) -> None:
    loss = Loss.model_validate({**NONE, "hidden": 1.0, "relation": 1.0, **values})
    with pytest.raises(ModelError) as error:
        compared(loss, HALF, BERT)
    assert said in str(error.value)


def test_widths_that_differ_are_refused_for_hidden_states_and_not_for_relations() -> None:
    narrow = dataclasses.replace(HALF, hidden=384, heads=6)
    with pytest.raises(ModelError, match=r"the student has 384, the teacher 768: write loss\.hidden = 0 and give"):
        compared(Loss(hidden=1.0), narrow, BERT)
    assert compared(Loss(relation=1.0), narrow, BERT).heads == 12
    with pytest.raises(ModelError, match="does not divide the student's width of 384: write 192"):
        compared(Loss(relation=1.0, relation_heads=256), narrow, BERT)
