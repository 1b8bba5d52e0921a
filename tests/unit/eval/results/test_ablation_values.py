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
    # Five seeds on four tasks of two models, 1.2533 standard errors of a mean each; and of 5,000 examples those 2.2
    # points on which the models differ, and two more.
    against = rows["no-soft"]["versus"]
    seeds = 1.2533 * statistics.stdev(seeds_around(0)) / math.sqrt(5) * math.sqrt(8) / 4
    examples = 100 * math.sqrt((0.022 + 2 / 5002) / 5002) * math.sqrt(4) / 4
    assert against["error"] == pytest.approx(math.hypot(seeds, examples), rel=0.01)
    assert (against["word"], against["pairing"], against["one_seed"]) == ("worse", "paired", False)
    assert against["low"] < against["difference"] < against["high"] < 0
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
