"""What each example contributes to a score, and the standard errors that follow."""

import math

import numpy as np
import pytest

from eval.tasks import per_example
from eval.tasks.definitions import TASKS
from eval.tasks.metrics import headline, measure

CHANCE = np.random.default_rng(4)
LABELS = CHANCE.integers(0, 2, 300)
PREDICTIONS = np.where(CHANCE.random(300) < 0.8, LABELS, 1 - LABELS)


def test_an_accuracy_is_the_mean_of_hits() -> None:
    found = per_example.contributions(TASKS["rte"], PREDICTIONS, LABELS)
    np.testing.assert_allclose(found["accuracy"], 100.0 * (PREDICTIONS == LABELS), atol=1e-9)
    assert found["score"].mean() == pytest.approx(measure(TASKS["rte"], PREDICTIONS, LABELS)["accuracy"])


@pytest.mark.parametrize("task", ["cola", "mrpc", "stsb"])
def test_errors_of_other_metrics_are_those_of_the_bootstrap(task: str) -> None:
    found, labels, predictions = TASKS[task], LABELS, PREDICTIONS
    if task == "stsb":
        labels = CHANCE.random(300) * 5
        predictions = labels + CHANCE.normal(0, 1.5, 300)
    values = per_example.contributions(found, predictions, labels)["score"]
    score = headline(found, measure(found, predictions, labels))
    assert values.mean() == pytest.approx(score, abs=0.2)
    drawn = [CHANCE.integers(0, 300, 300) for _ in range(400)]
    scores = [headline(found, measure(found, predictions[rows], labels[rows])) for rows in drawn]
    assert values.std(ddof=1) / math.sqrt(300) == pytest.approx(np.std(scores), rel=0.2)


def test_one_example_has_its_score() -> None:
    found = per_example.contributions(TASKS["rte"], np.array([1]), np.array([1]))
    assert found["score"].tolist() == [100.0]
