"""Scores, their means, and the shares of the teacher's scores."""

import json
import math
import shutil
import statistics
from pathlib import Path

import pytest
from result_folders import compared, make, replace_scores, row_of, scores, seeds_around


def test_share_kept_is_the_student_s_median_over_the_teacher_s(small_results: Path) -> None:
    found = compared(small_results)["tables"]["1"]
    rte, sst2 = (row_of(found["rows"], task) for task in ("rte", "sst2"))
    assert rte["kept"] == pytest.approx(100 * 64 / 67)
    assert rte["difference"] == pytest.approx(64 - 59.9)
    assert rte["verdict"]["state"] == "passed"
    assert sst2["verdict"]["state"] == "missed"
    told = {"score": 64.0, "low": 63.0, "high": 66.0, "seeds": 3, "examples": 5000, "source": "finetune/student/rte"}
    of_seeds = 1.2533 * statistics.stdev([63, 64, 66]) / math.sqrt(3)
    binomial = 100 * math.sqrt(0.64 * 0.36 / 4999)
    assert rte["student"] == told | {
        "error_seeds": pytest.approx(of_seeds),
        "error_examples": pytest.approx(binomial),
        "error": pytest.approx(math.hypot(of_seeds, binomial)),
        "range_low": pytest.approx(59.06, abs=0.01),
        "range_high": pytest.approx(68.94, abs=0.01),
        "one_seed": False,
    }
    assert sst2["student"]["one_seed"]
    assert (sst2["subset"], rte["subset"]) == (True, False)
    mean, nine, _ = found["means"]
    assert mean["tasks"] == ["RTE", "SST-2"]
    assert mean["kept"] == pytest.approx(100 * (64 + 89) / (67 + 91))
    # The other student was measured on one of the two tasks: its mean would be over another set.
    assert "no-teacher" not in mean["scores"]
    assert mean["paper"]["kept"] == pytest.approx(100 * (59.9 + 91.3) / (69.3 + 92.7))
    assert nine["kept"] is None
    assert row_of(found["rows"], "cola")["verdict"]["state"] == "not measured"


def test_means_over_all_nine_and_without_wnli(complete_results: Path) -> None:
    found = compared(complete_results)["tables"]["1"]
    rows = {row["task"]: row["student"]["score"] for row in found["rows"]}
    nine, without = found["means"]
    assert nine["student"] == pytest.approx(sum(rows.values()) / 9)
    assert without["student"] == pytest.approx((sum(rows.values()) - rows["wnli"]) / 8)
    assert (nine["paper"]["teacher"], nine["paper"]["student"]) == (79.5, 77.0)
    assert nine["kept_second_step"] == pytest.approx(100 * nine["second_step"] / nine["teacher"])
    # The teacher scores below the majority: the student's 105 % of it are no success.
    wnli = row_of(found["rows"], "wnli")
    assert (wnli["kept"] > 100, wnli["verdict"]["state"]) == (True, "unclear")


def test_squad_s_two_numbers_are_two_rows_with_the_second_step(complete_results: Path) -> None:
    exact, f1 = compared(complete_results)["tables"]["2"]["rows"][1:]
    assert (exact["student"]["score"], f1["student"]["score"]) == (68.0, 77.9)
    assert exact["kept"] == pytest.approx(100 * 68.0 / 72.4)
    assert f1["second_step"]["source"] == "finetune/student-second-step/squad"
    assert (exact["paper"]["second_step"], f1["paper"]["second_step"]) == (79.1, 86.9)


def test_scores_on_other_examples_are_not_compared(small_results: Path) -> None:
    other = scores("mrpc", [80.0], dev_files=["dev_subset.parquet"])
    make(small_results / "finetune/student/mrpc", "finetune", {}, {"scores.json": other})
    make(small_results / "finetune/teacher/mrpc", "finetune", {}, {"scores.json": scores("mrpc", [85.0])})
    found = compared(small_results)["tables"]["1"]
    mrpc = row_of(found["rows"], "mrpc")
    assert (mrpc["kept"], mrpc["verdict"]["state"]) == (None, "not measured")
    assert found["means"][0]["tasks"] == ["RTE", "SST-2"]


def test_equal_file_names_do_not_make_equal_examples(complete_results: Path) -> None:
    for model, data in (("teacher", "corpus"), ("student", "tokens")):
        replace_scores(complete_results, model, "rte", scores("rte", seeds_around(60.0)), data=complete_results / data)
    assert row_of(compared(complete_results)["tables"]["1"]["rows"], "rte")["kept"] is None


def test_without_a_teacher_only_models_on_the_same_examples_are_compared(complete_results: Path) -> None:
    shutil.rmtree(complete_results / "finetune/teacher/rte")
    place = complete_results / "finetune/no-soft/rte"
    told = json.loads((place / "scores.json").read_text())
    shutil.rmtree(place)
    make(place, "finetune", {}, {"scores.json": {**told, "dev_examples": 10}})
    row = row_of(compared(complete_results)["tables"]["1"]["rows"], "rte")
    assert "no-cosine" in row["comparable"]
    assert "no-soft" not in row["comparable"]
