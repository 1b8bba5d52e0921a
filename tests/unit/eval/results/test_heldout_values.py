"""Students compared on the same held-out rows, and with word counts."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from result_folders import LOSS_WEIGHTS, compared, make_model

ROWS = 50
CHANCE = np.random.default_rng(3)
HARD = CHANCE.normal(0.0, 8.0, ROWS)
"""How much harder a row is than the mean, in nats: for every student alike."""


def rows(nats_per_word: float, hits: float) -> dict[str, list[float]]:
    """A validation of twelve hidden words a row."""
    noise = CHANCE.normal(0.0, 0.05, ROWS)
    right = np.clip(np.round(hits + HARD / -4 + noise), 0, 12)
    return {"hidden": [12.0] * ROWS, "hits": right.tolist(), "nats": (12 * nats_per_word + HARD + noise).tolist()}


def students(out: Path, **changed: Any) -> dict[str, Any]:
    """A student, its layers untrained, and one of a random start without a teacher that is alike."""
    for name, steps, start, found in (
        ("student", 600, "teacher", rows(4.0, 5.0)),
        ("first", 0, "teacher", rows(4.2, 4.0)),
        ("second", 600, "random", rows(4.0, 5.0)),
    ):
        shutil.rmtree(out / "students" / name, ignore_errors=True)
        loss = LOSS_WEIGHTS if start == "teacher" else {"soft": 0.0, "masked": 1.0, "cosine": 0.0}
        told = {"start": start, "loss": loss, "steps": steps, **(changed if name == "second" else {})}
        make_model(out / "students" / name, name, "student", {"masked": 4.0}, told, found)
    return compared(out)


def test_students_are_compared_row_by_row(small_results: Path) -> None:
    found = students(small_results)["heldout"]
    assert (found["student"], found["rows"], found["words"]) == ("student", ROWS, 12 * ROWS)
    untrained, alike = found["comparisons"]
    assert (untrained["model"], untrained["kind"]) == ("first", "untrained")
    assert (alike["kind"], alike["title"]) == ("no-teacher", "random start, no teacher")
    assert untrained["loss"]["difference"] == pytest.approx(-0.2, abs=0.02)
    assert untrained["loss"]["error"] < 0.01  # by itself, a row differs from the next by 8 nats: 0.09 over all
    assert (untrained["loss"]["word"], untrained["accuracy"]["word"]) == ("better", "better")
    assert untrained["loss"]["high"] < 0 < untrained["accuracy"]["low"]
    assert alike["loss"]["word"] == "equal"
    assert max(map(abs, (alike["loss"]["low"], alike["loss"]["high"]))) < 0.01
    assert untrained["accuracy"]["difference"] == pytest.approx(100 / 12, abs=2)


def test_the_error_is_that_of_a_ratio_of_sums_over_rows(small_results: Path) -> None:
    """Against 4,000 bootstrap samples of the rows."""
    own, other = ({key: np.array(of) for key, of in rows(nats, 5.0).items()} for nats in (4.0, 4.1))
    words = np.array([float(number) for number in CHANCE.integers(5, 20, ROWS)])
    for name, found in (("student", own), ("first", other)):
        table = {
            "hidden": words.tolist(),
            "hits": found["hits"].tolist(),
            "nats": (found["nats"] * words / 12).tolist(),
        }
        shutil.rmtree(small_results / "students" / name, ignore_errors=True)
        make_model(small_results / "students" / name, name, "student", {}, {}, table)
    (comparison,) = compared(small_results)["heldout"]["comparisons"]
    drawn = CHANCE.integers(0, ROWS, (4000, ROWS))
    differences = (own["nats"] - other["nats"]) * words / 12
    means = differences[drawn].sum(axis=1) / words[drawn].sum(axis=1)
    assert comparison["loss"]["error"] == pytest.approx(means.std(), rel=0.1)


def test_few_words_that_both_guess_do_not_prove_students_equal(small_results: Path) -> None:
    for name in ("student", "first"):
        shutil.rmtree(small_results / "students" / name, ignore_errors=True)
        alike = {"hidden": [5.0] * 4, "hits": [2.0] * 4, "nats": [20.0] * 4}
        make_model(small_results / "students" / name, name, "student", {}, {}, alike)
    (comparison,) = compared(small_results)["heldout"]["comparisons"]
    assert (comparison["accuracy"]["word"], comparison["accuracy"]["difference"]) == ("unclear", 0)
    assert comparison["loss"]["word"] == "equal", "every loss is the same"


def test_other_rows_or_masks_are_not_compared(small_results: Path) -> None:
    _, other = students(small_results, heldout="other masks")["heldout"]["comparisons"]
    assert (other["loss"], other["accuracy"]) == (None, None)
    assert "the same tokens, seed, masking and validation_rows" in other["reason"]


def test_without_rows_nothing_is_compared(small_results: Path) -> None:
    assert compared(small_results)["heldout"] == {"student": None, "rows": None, "words": None, "comparisons": []}


def test_a_model_hardly_better_than_word_counts_is_named(small_results: Path) -> None:
    shutil.rmtree(small_results / "students/student")
    measured = {
        "masked": 3.7, "hidden_loss": 4.0, "accuracy": 0.3, "visible_accuracy": 0.9, "replaced_accuracy": 0.2,
        "teacher_masked": 5.7, "teacher_hidden_loss": 6.31, "teacher_accuracy": 0.04, "counts_masked": 6.4,
        "counts_hidden_loss": 6.37, "counts_accuracy": 0.05,
    }  # fmt: skip
    make_model(small_results / "students/student", "student", "student", measured)
    models = {model["name"]: model for model in compared(small_results)["models"]}
    teacher, student, alone = (models[name] for name in ("teacher", "student", "no-teacher"))
    assert (teacher["hidden_loss"], teacher["accuracy"]) == (6.31, 0.04)
    assert teacher["over_counts"] == pytest.approx(100 * (1 - 6.31 / 6.37))
    assert (teacher["hardly_better"], student["hardly_better"], alone["hardly_better"]) == (True, False, None)
    assert student["counts"] == {"masked": 6.4, "hidden_loss": 6.37, "accuracy": 0.05}
    assert (student["accuracy"], student["visible_accuracy"], student["replaced_accuracy"]) == (0.3, 0.9, 0.2)
