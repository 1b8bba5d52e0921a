"""Standard errors of scores and differences, and the words for them."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from result_folders import compared, replace_scores, row_of, scores, table_bytes

from eval.results import uncertainty
from eval.results.schema import ScoreResult
from eval.results.uncertainty import Measured

HITS = np.random.default_rng(1).random(400)


def measured(share: float, seeds: list[float], shift: float = 0.0, paired: bool = True) -> Measured:
    """A model that is right where an example is easier than ``share``; ``shift`` moves some of them."""
    hits = 100.0 * ((HITS + shift * np.sin(np.arange(400))) < share)
    found: dict[str, Any] = scores("rte", seeds, dev_examples=400)
    found["seeds"] = [{"seed": seed["seed"], "score": seed["score"]} for seed in found["seeds"]]
    score = ScoreResult(**{**found, "metrics": {}} | {"score": float(hits.mean())})  # type: ignore[arg-type]
    return Measured(score, {"score": hits} if paired else None)


def test_an_accuracy_has_the_binomial_error_of_its_examples() -> None:
    one = measured(0.7, [70.0])
    share = one.value(None) / 100
    binomial = 100 * math.sqrt(share * (1 - share) / 400)
    assert one.errors()["error"] == pytest.approx(binomial, rel=0.01)
    assert measured(0.7, [70.0], paired=False).errors()["error"] == pytest.approx(binomial)
    assert one.errors()["one_seed"]


def test_errors_of_examples_and_seeds_add_up_in_squares() -> None:
    errors = measured(0.7, [68.0, 70.0, 72.0]).errors()
    assert errors["error_seeds"] == pytest.approx(1.2533 * 2 / math.sqrt(3))
    assert errors["error"] == pytest.approx(math.hypot(errors["error_examples"], errors["error_seeds"]))
    assert not errors["one_seed"]


def test_two_models_that_fail_alike_are_compared_more_closely() -> None:
    one, other = measured(0.75, [75.0]), measured(0.70, [70.0], shift=0.02)
    paired = uncertainty.versus(one, other)
    unpaired = uncertainty.versus(one, measured(0.70, [70.0], shift=0.02, paired=False))
    assert (paired.pairing, unpaired.pairing) == ("paired", "unpaired")
    assert paired.difference == pytest.approx(unpaired.difference)
    assert paired.error is not None
    assert unpaired.error is not None
    assert paired.error < unpaired.error / 2
    assert (paired.word, unpaired.word, paired.one_seed) == ("better", "unclear", True)
    assert uncertainty.versus(other, one).word == "worse"


@pytest.mark.parametrize(
    ("examples", "word"), [(1, "unclear"), (50, "unclear"), (1000, "equal")], ids=["one", "few", "many"]
)
@pytest.mark.parametrize("right", [0.0, 100.0])
@pytest.mark.parametrize("paired", [True, False])
def test_models_that_agree_are_equal_only_on_many_examples(
    examples: int, word: str, right: float, paired: bool
) -> None:
    found: dict[str, Any] = scores("rte", [right], dev_examples=examples)
    values = {"score": np.full(examples, right)} if paired else None
    one = Measured(ScoreResult(**{**found, "seeds": [], "metrics": {}}), values)  # type: ignore[arg-type]
    against = uncertainty.versus(one, one)
    assert (against.difference, against.word) == (0.0, word)
    low, high = (one.errors()[f"range_{end}"] for end in ("low", "high"))
    assert (low, high)[right == 100.0] == right
    assert high - low == pytest.approx(100 * 1.96**2 / (examples + 1.96**2), rel=1e-3)


def test_the_range_of_an_accuracy_is_wilson_s() -> None:
    published = {(81, 263): (25.53, 36.62), (15, 148): (6.24, 16.05), (0, 20): (0.0, 16.11), (1, 29): (0.61, 17.18)}
    for (right, count), interval in published.items():  # Newcombe 1998, table I, method 3
        assert uncertainty.wilson(100 * right / count, count) == pytest.approx(interval, abs=0.01)


def test_few_seeds_widen_a_range_by_student_s_t() -> None:
    few = uncertainty.StandardError(1.0, freedom=2)
    assert few.reach == pytest.approx(4.303, abs=1e-3)
    assert uncertainty.StandardError(1.0).reach == pytest.approx(1.960, abs=1e-3)
    both = uncertainty.together([few, uncertainty.StandardError(1.0, freedom=4)])
    assert both.size == pytest.approx(math.sqrt(2))
    assert both.freedom == pytest.approx(4 / (1 / 2 + 1 / 4)), "Welch and Satterthwaite"
    # Twice the error is no longer enough with three seeds.
    assert uncertainty.judged(3.0, few)["word"] == "unclear"
    assert uncertainty.judged(3.0, uncertainty.StandardError(1.0))["word"] == "better"


def test_a_metric_without_values_of_its_examples_has_no_error() -> None:
    found = scores("cola", [40.0], "matthews")
    score = ScoreResult(**{**found, "seeds": [], "metrics": {}})  # type: ignore[arg-type]
    assert Measured(score, None).errors()["error"] is None
    assert uncertainty.judged(3.0, None)["word"] == "unclear"


def test_scores_in_a_report_carry_their_error_and_are_compared(small_results: Path) -> None:
    for model, hits in (("teacher", [100.0] * 200 + [0.0] * 77), ("student", [100.0] * 170 + [0.0] * 107)):
        score = sum(hits) / 277
        replace_scores(
            small_results, model, "rte", scores("rte", [score]), {"examples.parquet": table_bytes({"score": hits})}
        )
    row = row_of(compared(small_results)["tables"]["1"]["rows"], "rte")
    assert row["student"]["error_examples"] == pytest.approx(100 * math.sqrt(170 * 107 / 277**2 / 276))
    against = row["versus"]
    assert (against["teacher"]["word"], against["teacher"]["pairing"]) == ("worse", "paired")
    assert against["teacher"]["difference"] == pytest.approx(-100 * 30 / 277)
    assert against["no-teacher"]["pairing"] == "unpaired"
    assert row["bag_of_words"] is row["teacher_versus_bag"] is None
