"""Metrics against values computed by hand, and scores of models at chance."""

import warnings

import numpy as np
import pytest

from eval.tasks.definitions import TASKS
from eval.tasks.metrics import METRICS, f1, headline, majority, matthews, measure, pearson, spearman


def test_binary_metrics_by_hand() -> None:
    labels = np.array([1, 1, 1, 0, 0, 0, 0, 0])
    predictions = np.array([1, 1, 0, 1, 0, 0, 0, 0])
    # 2 true positives, 1 false positive, 1 false negative, 4 true negatives
    assert METRICS["accuracy"](predictions, labels) == pytest.approx(6 / 8)
    assert f1(predictions, labels) == pytest.approx(4 / 6)
    assert matthews(predictions, labels) == pytest.approx((2 * 4 - 1 * 1) / np.sqrt(3 * 3 * 5 * 5))


def test_correlations_by_hand() -> None:
    labels = np.array([0.0, 1.0, 2.0, 3.0])
    predictions = np.array([0.0, 1.0, 2.0, 9.0], dtype=np.float32)
    # deviations (-3, -2, -1, 6) and (-1.5, -0.5, 0.5, 1.5)
    assert pearson(predictions, labels) == pytest.approx(14.0 / np.sqrt(50.0 * 5.0))
    assert spearman(predictions, labels) == pytest.approx(1.0)
    assert spearman(-predictions, labels) == pytest.approx(-1.0)


@pytest.mark.parametrize("name", ["f1", "matthews", "pearson", "spearman"])
def test_constant_predictions_score_nothing_and_warn_of_nothing(name: str) -> None:
    labels = np.array([0, 1, 1, 0, 1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert METRICS[name](np.zeros(5), labels) == 0.0  # type: ignore[index]
        assert METRICS[name](np.zeros(5), np.zeros(5)) == 0.0  # type: ignore[index]


def test_nearly_constant_scores_are_constant() -> None:
    labels = np.array([0.0, 1.0, 2.0, 3.0])
    predictions = 2.5 + 1e-15 * np.arange(4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pearson(predictions, labels) == spearman(predictions, labels) == 0.0


def test_headline_is_the_mean_the_paper_takes_in_percent() -> None:
    labels = np.array([1, 1, 1, 0])
    measured = measure(TASKS["mrpc"], np.array([1, 1, 0, 0]), labels)
    assert measured == pytest.approx({"accuracy": 75.0, "f1": 80.0, "accuracy_f1": 77.5})
    assert headline(TASKS["mrpc"], measured) == pytest.approx(77.5)
    # CoLA records accuracy too, which is not part of its headline.
    measured = measure(TASKS["cola"], labels, labels)
    assert headline(TASKS["cola"], measured) == measured["matthews"] == pytest.approx(100.0)


def test_majority_takes_its_class_from_training_and_its_score_from_dev() -> None:
    train, dev = np.array([1, 1, 0]), np.array([1, 0, 0, 0])
    assert majority(TASKS["rte"], train, dev) == pytest.approx(25.0)
    assert majority(TASKS["cola"], train, dev) == 0.0
    assert majority(TASKS["mrpc"], train, dev) == pytest.approx((25.0 + 40.0) / 2)
    assert majority(TASKS["stsb"], np.array([1.0, 4.0]), np.array([0.0, 5.0])) == 0.0
