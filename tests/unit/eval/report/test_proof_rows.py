"""Rows of the report that say what a score is worth: word counts, untrained layers, a bag of words, errors."""

import shutil
from pathlib import Path
from typing import Any

from result_folders import LOSS_WEIGHTS, compared, make, make_model, scores, table_bytes

from eval.highlights.headline import trust
from eval.report import measured_tables, paper_tables, task_tables
from eval.report.table import Table


def hits(right: int, of: int = 277) -> dict[str, bytes]:
    return {"examples.parquet": table_bytes({"score": [100.0] * right + [0.0] * (of - right)})}


def report(out: Path, **measured: float) -> dict[str, Any]:
    """A student, its layers untrained, and a bag of words on a task that the paper does not have."""
    shutil.rmtree(out / "students/no-teacher", ignore_errors=True)
    validation = {
        "masked": 4.0, "hidden_loss": 4.2, "accuracy": 0.31, "counts_masked": 6.3, "counts_accuracy": 0.05,
        "counts_hidden_loss": 6.37, "teacher_masked": 3.5, "teacher_hidden_loss": 3.7, **measured,
    }  # fmt: skip
    for name, steps, nats in (("student", 600, 4.2), ("as-it-starts", 0, 5.0)):
        shutil.rmtree(out / "students" / name, ignore_errors=True)
        heldout = {
            "hidden": [5.0] * 4,
            "hits": [1.0, 2.0, 1.0, 2.0],
            "nats": [5 * nats, 5 * nats + 1, 5 * nats, 5 * nats],
        }
        told = {"start": "teacher", "loss": LOSS_WEIGHTS, "steps": steps}
        make_model(out / "students" / name, name, "student", validation, told, heldout)
    for model, right in (("teacher", 200), ("student", 150)):
        found = scores("provenance", [right / 2.77], dev_examples=277)
        make(out / "finetune" / model / "provenance", "finetune", {}, {"scores.json": found, **hits(right)})
    bag = {**scores("provenance", [180 / 2.77], dev_examples=277), "seeds": [], "settings": {"features": "TF-IDF"}}
    make(out / "bag_of_words" / "provenance", "benchmark", {}, {"scores.json": bag, **hits(180)})
    return compared(out)


def cell(table: Table, row: int, column: str) -> str:
    return str(table.rows[row].cells[table.columns.index(column)])


def test_word_counts_stand_below_the_models(small_results: Path) -> None:
    table = measured_tables.models(report(small_results))
    assert (cell(table, -1, "Model"), cell(table, -1, "Loss, nats")) == ("word counts", "6.370")
    assert cell(table, -1, "Words right") == "5.0 %"
    assert "as-it-starts (the teacher's layers, untrained)" in [cell(table, row, "Model") for row in range(3)]
    assert not any("word counts" in finding for finding in table.findings)


def test_a_teacher_like_word_counts_is_named(small_results: Path) -> None:
    first, *_ = trust(report(small_results, teacher_hidden_loss=6.31))
    assert first.startswith(
        "The teacher knows little: it loses 6.31 nats per hidden word, where word counts alone lose"
    )


def test_the_student_minus_others_on_held_out_rows(small_results: Path) -> None:
    table = measured_tables.held_out(report(small_results))
    (row,) = range(len(table.rows))
    assert cell(table, row, "Minus") == "the teacher's layers, untrained (as-it-starts)"
    assert cell(table, row, "Loss, nats") == "−0.800 (−0.800 to −0.800)"
    assert cell(table, row, "Student is") == "better"
    assert cell(table, row, "Accuracy, points") == "+0.00 (−18.10 to +18.10, unclear)"
    assert "On 20 hidden words of the same 4 held-out rows." in table.notes[0]


def test_scores_have_their_error_and_the_bag_of_words(small_results: Path) -> None:
    found = report(small_results)
    (table,) = task_tables.tables(found)
    assert cell(table, 1, "Score") == "54.2 (48.3–59.9, one seed)"
    assert (cell(table, 2, "Model"), cell(table, 2, "Score")) == ("a bag of words", "65.0 (59.2–70.4)")
    assert cell(table, 2, "Student minus it") == "−10.8 (−14.6 to −7.0, paired)"
    assert [cell(table, row, "Student is") for row in range(3)] == ["worse", "–", "worse"]
    assert table.findings == (
        "The teacher is better than the bag of words (+7.2 points, +4.0 to +10.4, paired, one seed).",
    )
    assert table.notes[0] == "Accuracy of 277 examples, in percent."
    assert "Unclear: it is wider." in table.notes[-1]
    assert "Bag of words" not in paper_tables.glue(found).columns


def test_a_model_scored_on_other_examples_is_not_compared(small_results: Path) -> None:
    report(small_results)
    other = small_results / "finetune/as-it-starts/provenance"
    make(other, "finetune", {}, {"scores.json": scores("provenance", [40.0], dev_examples=9)})
    (table,) = task_tables.tables(compared(small_results))
    assert cell(table, 2, "Model") == "the teacher's layers, untrained (as-it-starts)"
    assert cell(table, 2, "Student is") == "– (other examples)"
