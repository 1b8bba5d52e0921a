"""Verdicts on the paper's claims, and the doubts that make them unclear."""

import json
import math
import shutil
import statistics
from pathlib import Path

import pytest
from result_folders import compared, make, make_finetuned, replace_scores, row_of, scores, seeds_around


def test_claims_are_judged_by_the_tables(complete_results: Path) -> None:
    found = {claim["claim"]: claim for claim in compared(complete_results)["claims"]}
    assert {name: claim["verdict"]["state"] for name, claim in found.items()} == {
        "glue": "missed",
        "imdb": "missed",
        "squad": "missed",
        "second_step": "passed",
        "parameters": "missed",
        "speed": "passed",
        "ablations": "unclear",
    }
    assert (found["ablations"]["ours"], found["ablations"]["paper"]) == (3, 4)
    assert found["second_step"]["ours"] == pytest.approx(79.3 - 77.9)


def test_distilbert_s_size_passes_the_claim_on_parameters(small_results: Path) -> None:
    sizes = {"teacher": 109_514_298, "student": 66_985_530}
    for name, place in (("teacher", "teacher"), ("student", "students/student")):
        manifest = small_results / place / "manifest.json"
        told = json.loads(manifest.read_text())
        told["facts"]["parameters"] = sizes[name]
        manifest.write_text(json.dumps(told))
    (claim,) = (claim for claim in compared(small_results)["claims"] if claim["claim"] == "parameters")
    assert (claim["ours"], claim["verdict"]["state"]) == (pytest.approx(38.83, abs=0.01), "passed")


def test_a_gain_needs_scores_on_the_same_examples(complete_results: Path) -> None:
    place = complete_results / "finetune/student-second-step/squad"
    kept = json.loads((place / "scores.json").read_text())
    shutil.rmtree(place)
    make(place, "finetune", {}, {"scores.json": {**kept, "dev_examples": 100}})
    (claim,) = (claim for claim in compared(complete_results)["claims"] if claim["claim"] == "second_step")
    assert (claim["ours"], claim["verdict"]["state"]) == (None, "not measured")


def test_a_gain_of_one_seed_is_unclear_and_a_share_mentions_it(complete_results: Path) -> None:
    for model, f1 in (("teacher", 81.5), ("student", 60.0), ("student-second-step", 79.3)):
        place = complete_results / f"finetune/{model}/squad"
        shutil.rmtree(place)
        make_finetuned(place, scores("squad", [f1], "f1", more={"exact": [f1 - 9.0]}))
    report = compared(complete_results)
    claims = {claim["claim"]: claim["verdict"] for claim in report["claims"]}
    assert claims["second_step"] == {"state": "unclear", "reason": "one seed"}
    assert claims["squad"] == {"state": "missed", "reason": "one seed"}
    row = row_of(report["tables"]["2"]["rows"], "imdb")
    assert row["verdict"]["reason"] == "one seed"
    assert row_of(report["tables"]["1"]["rows"], "rte")["verdict"]["reason"] == ""


def test_a_gain_whose_range_includes_zero_is_unclear(complete_results: Path) -> None:
    place = complete_results / "finetune/student-second-step/squad"
    shutil.rmtree(place)
    found = scores("squad", seeds_around(78.3), "f1", more={"exact": seeds_around(69.0)})
    make_finetuned(place, found)
    (claim,) = (claim for claim in compared(complete_results)["claims"] if claim["claim"] == "second_step")
    assert claim["ours"] == pytest.approx(0.4)
    assert claim["verdict"] == {"state": "unclear", "reason": "the range includes zero"}


def test_a_mean_with_a_teacher_at_chance_is_unclear(complete_results: Path) -> None:
    def verdict() -> dict[str, str]:
        found: dict[str, str] = row_of(compared(complete_results)["tables"]["1"]["means"], "nine")["verdict"]
        return found

    assert verdict()["state"] == "missed"  # although no model learns WNLI
    place = complete_results / "finetune/teacher/cola"
    shutil.rmtree(place)
    told = scores("cola", seeds_around(0.0), majority=0.0, below_majority=True)
    make(place, "finetune", {}, {"scores.json": told})
    assert verdict() == {"state": "unclear", "reason": "teacher at chance on CoLA"}


def test_a_student_at_chance_is_unclear(complete_results: Path) -> None:
    for model, score in (("teacher", 60.6), ("student", 52.7)):
        replace_scores(complete_results, model, "rte", scores("rte", seeds_around(score, 0.01), majority=52.7))
    row = row_of(compared(complete_results)["tables"]["1"]["rows"], "rte")
    assert row["kept"] > row["paper"]["kept"]
    assert row["verdict"] == {"state": "unclear", "reason": "student at chance"}


def test_a_share_whose_range_includes_the_paper_s_is_unclear(complete_results: Path) -> None:
    for model, seeds in (("teacher", [55.0, 60.0, 70.0]), ("student", [53.0, 54.0, 69.0])):
        replace_scores(complete_results, model, "rte", scores("rte", seeds))
    row = row_of(compared(complete_results)["tables"]["1"]["rows"], "rte")
    assert row["kept"] == pytest.approx(90.0)
    errors = [1.2533 * statistics.stdev(each) / math.sqrt(3) for each in ([55, 60, 70], [53, 54, 69])]
    # Student's t of some four degrees of freedom; the examples add little.
    reach = 90.0 * math.hypot(errors[0] / 60, errors[1] / 54) * 2.8
    assert (row["kept_low"], row["kept_high"]) == pytest.approx((90.0 - reach, 90.0 + reach), rel=0.03)
    assert row["verdict"] == {"state": "unclear", "reason": "the range includes the paper's"}


def test_few_examples_make_a_share_unclear_whatever_the_seeds_say(complete_results: Path) -> None:
    for model, score in (("teacher", 70.0), ("student", 60.0)):
        found = scores("rte", seeds_around(score, 0.01), dev_examples=40)
        replace_scores(complete_results, model, "rte", found)
    row = row_of(compared(complete_results)["tables"]["1"]["rows"], "rte")
    assert row["versus_paper"]["difference"] == pytest.approx(60.0 - 70.0 * 59.9 / 69.3, abs=0.1)
    assert row["verdict"] == {"state": "unclear", "reason": "the range includes the paper's"}
    assert row["versus"]["teacher"]["word"] == "unclear"


def test_shares_of_differently_fine_tuned_models_are_unclear(complete_results: Path) -> None:
    for changed in ({"train_examples": 100}, {"settings": {"epochs": 10}}):
        replace_scores(complete_results, "teacher", "rte", scores("rte", seeds_around(60.0), **changed))
        row = row_of(compared(complete_results)["tables"]["1"]["rows"], "rte")
        assert row["verdict"] == {"state": "unclear", "reason": "fine-tuned with other settings than the teacher"}
    found = scores("squad", seeds_around(90.0), "f1", more={"exact": seeds_around(80.0)}, settings={"epochs": 20})
    replace_scores(complete_results, "student-second-step", "squad", found)
    (claim,) = (claim for claim in compared(complete_results)["claims"] if claim["claim"] == "second_step")
    assert claim["verdict"]["state"] == "not measured"


def test_a_mean_names_its_tasks_with_one_seed(complete_results: Path) -> None:
    for task in ("rte", "cola"):
        replace_scores(complete_results, "student", task, scores(task, [30.0], majority=0.0))
    mean = row_of(compared(complete_results)["tables"]["1"]["means"], "nine")
    assert mean["verdict"] == {"state": "missed", "reason": "one seed on CoLA, RTE, SST-2"}
    replace_scores(
        complete_results, "student", "cola", scores("cola", [0.0, 0.0, 0.0], majority=0.0)
    )  # nothing, with three seeds
    mean = row_of(compared(complete_results)["tables"]["1"]["means"], "nine")
    assert mean["verdict"] == {"state": "missed", "reason": "one seed on RTE, SST-2"}
