"""Latency tables: ratios between timings of the same length and runtime."""

import shutil
from pathlib import Path

import pytest
from result_folders import compared


def test_ratios_compare_the_same_runtime_and_the_pytorch_teacher(small_results: Path) -> None:
    rows = {(row["model"], row["form"], row["length"]): row for row in compared(small_results)["latency"]["rows"]}
    assert rows["student", "pytorch", 128]["ratio_same_form"] == pytest.approx(40 / 21)
    assert rows["student", "int8", 30]["ratio_to_teacher"] == pytest.approx(10 / 1.6)
    # No int8 teacher was timed.
    assert rows["student", "int8", 30]["ratio_same_form"] is None


def test_table_3_is_filled_from_the_exports_benchmark_where_it_has_pairs(complete_results: Path) -> None:
    shutil.rmtree(complete_results / "baselines")
    table = compared(complete_results)["tables"]["3"]
    assert (table["source"], table["fit"]) == ("latency", True)
    rows = {row["key"]: row["measured"] for row in table["rows"]}
    assert (rows["bertbase"]["pairs"], rows["bertbase"]["weights"]) == (1500, "random")
    assert rows["distilbert"] is None
    assert table["own"]["ratio"] == pytest.approx(18.0 / 9.4)


def test_the_worst_conditions_are_reported(small_results: Path) -> None:
    assert compared(small_results)["latency"]["machine"]["others_share_of_machine"] == 0.03
