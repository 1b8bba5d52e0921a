"""What a student is compared for is known by its recipe."""

import pytest
from result_folders import LOSS_WEIGHTS as LOSSES

from eval.results import model_rows

ALONE = {"soft": 0.0, "masked": 1.0, "cosine": 0.0}


@pytest.mark.parametrize(
    ("start", "loss", "steps", "kind"),
    [
        ("teacher", LOSSES, 200, "distilled"),
        ("teacher", LOSSES, 0, "untrained"),
        ("teacher", ALONE, 0, "untrained"),
        ("teacher", ALONE, 200, "masked-only"),
        ("random", ALONE, 200, "no-teacher"),
        ("random", LOSSES, 200, "random-start"),
        ("random", LOSSES, 0, "random-untrained"),
        ("teacher", {**LOSSES, "soft": 0.0}, 200, "no-soft"),
        ("teacher", {**LOSSES, "cosine": 0.0}, 200, "no-cosine"),
        ("teacher", {**LOSSES, "masked": 0.0}, 200, "no-masked"),
        ("random", {**LOSSES, "masked": 0.0}, 200, None),
    ],
)
def test_a_row_is_known_by_its_recipe_whatever_its_name(
    start: str, loss: dict[str, float], steps: int, kind: str | None
) -> None:
    facts = {"start": start, "loss": loss, "steps": steps}
    assert model_rows.kind("any-name", facts) == kind
    assert model_rows.title("any-name", kind) == ("any-name" if kind is None else model_rows.TITLES[kind])


def test_a_student_of_unknown_training_keeps_its_name() -> None:
    assert model_rows.kind("untrained", {"steps": 0}) is None
    assert model_rows.kind("teacher", {}) == "teacher"
