"""Ablations: changes of the mean score against the student with all losses."""

import math
import statistics
from pathlib import Path

import pytest
from result_folders import compared, seeds_around


def test_ablations_are_changes_of_the_mean_against_the_reference(complete_results: Path) -> None:
    found = compared(complete_results)["tables"]["4"]
    rows = {row["student"]: row for row in found["rows"]}
    assert found["tasks"] == ["cola", "mrpc", "rte", "stsb"]
    assert rows["no-soft"]["change"] == pytest.approx(-2.2)
    assert rows["no-soft"]["difference"] == pytest.approx(-2.2 + 2.96)
    # Five seeds on four tasks of two models, 1.2533 standard errors of a mean each.
    spread = statistics.stdev(seeds_around(0)) / math.sqrt(5)
    assert rows["no-soft"]["error"] == pytest.approx(1.2533 * spread * math.sqrt(8) / 4, rel=1e-3)
    states = {name: row["verdict"] and row["verdict"]["state"] for name, row in rows.items()}
    assert states == {
        "no-soft": "passed",
        "no-cosine": "passed",
        "no-masked": "unclear",
        "random-start": "passed",
        "no-teacher": None,
    }
    assert list(rows)[-1] == "no-teacher"
    assert rows["random-start"]["masked_change"] == pytest.approx(0.32)
    assert found["order"] == found["paper_order"]
