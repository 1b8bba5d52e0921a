"""What a report says first: sentences, cards and bars of measured things, and what was not measured."""

import json
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
from result_folders import LOSS_WEIGHTS, compared, latency, make, make_model, scores, suite

from eval.highlights.bars import first_bars
from eval.highlights.headline import sentence, trust
from eval.highlights.identity import identity
from eval.highlights.measured import highlights
from eval.highlights.rows import baselines, losses, span
from eval.highlights.unasked import MEASUREMENTS, unmeasured
from eval.suite import checks
from eval.suite.recipe import Suite

DISTILLED = {"start": "teacher", "loss": LOSS_WEIGHTS, "steps": 600}
UNTRAINED = {**DISTILLED, "steps": 0}


def own_text(out: Path, **validation: Any) -> Path:
    """A run on somebody's own text: a teacher, a student, the untrained layers, and no task."""
    make_model(out / "teacher", "teacher", "teacher", None)
    counts = {"counts_masked": 6.37, "counts_hidden_loss": 6.4, "counts_accuracy": 0.06}
    taught = {"hidden_loss": 3.9, "masked": 3.5, "accuracy": 0.41, "teacher_hidden_loss": 3.4, "agreement": 0.6}
    taught |= {"teacher_masked": 3.1, "teacher_accuracy": 0.45}
    make_model(
        out / "students/student", "student", "student", {**taught, **counts, **validation}, DISTILLED,
        teacher=out / "teacher",
    )  # fmt: skip
    make_model(
        out / "students/untrained", "untrained", "student", {"hidden_loss": 4.6, "masked": 4.2, "accuracy": 0.3},
        UNTRAINED,
    )  # fmt: skip
    return out


def on_a_task(out: Path, examples: int = 240, **models: float) -> Path:
    """:func:`own_text` with scores on provenance."""
    own_text(out)
    for name, score in models.items():
        source = out / ("teacher" if name == "teacher" else f"students/{name}")
        found = scores("provenance", [score], dev_examples=examples, majority=16.7)
        make(out / f"finetune/{name}/provenance", "finetune", {}, {"scores.json": found}, model=source)
    return out


def test_a_run_without_tasks_has_something_to_say(tmp_path: Path) -> None:
    report = compared(own_text(tmp_path))
    assert sentence(report) == (
        "Half the layers, 77 % of the parameters. It guesses 41.0 % of the hidden words of held-out text "
        "(teacher 45.0 %)."
    )
    cards = [(card.value, card.text) for card in highlights(report) if card.card]
    guessed = "of hidden words of held-out text guessed right (teacher 45.0 %, word counts 6.0 %)"
    assert ("41.0 %", guessed) in cards
    assert ("+11.0", "points of hidden words right against the teacher's layers, untrained") in cards
    assert ("60 %", "of hidden words have the teacher's first guess") in cards
    (bars,) = first_bars(report)
    assert [(bar.name, bar.text, bar.share) for bar in bars.bars] == [
        ("teacher", "45.0", pytest.approx(45.0)),
        ("student", "41.0", pytest.approx(41.0)),
        ("the teacher's layers, untrained", "30.0", pytest.approx(30.0)),
        ("word counts", "6.0", pytest.approx(6.0)),
    ]


def test_a_task_outside_the_paper_is_in_the_headline_with_its_doubt(tmp_path: Path) -> None:
    report = compared(on_a_task(tmp_path, teacher=43.3, student=44.2, untrained=18.8))
    assert sentence(report).endswith(
        "On “which source is this from?” it scores 44.2 against 43.3: unclear (−7.9 to +9.7 points)."
    )
    assert [bars.title for bars in first_bars(report)] == [
        "Hidden words guessed right, %",
        "Which source is this from?",
    ]
    kept = next(card for card in highlights(report) if card.label == "keeps")
    assert (kept.value, kept.verdict) == ("102.1 %", "unclear")
    assert "240 examples, one seed, always one answer 16.7" in kept.doubt
    assert kept.doubt.startswith("difference −7.9 to +9.7, ")
    added = next(card for card in highlights(report) if card.label == "without it")
    assert (added.value, added.line) == ("+11.0", "30.0 %, 4.60 nats a word: the teacher's layers, untrained")
    lines = [(card.line, card.card) for card in highlights(report)]
    assert ("on “which source is this from?”: 18.8 the teacher's layers, untrained (student better)", False) in lines
    assert any("One seed" in line for line in trust(report))


def test_a_student_is_equal_only_on_enough_examples(tmp_path: Path) -> None:
    report = compared(on_a_task(tmp_path, examples=20_000, teacher=43.3, student=43.3))
    assert sentence(report).endswith("it scores 43.3 against 43.3: equal (−1.0 to +1.0 points).")
    assert next(card for card in highlights(report) if card.label == "keeps").verdict == "equal"


def test_a_student_that_is_worse_is_called_so(tmp_path: Path) -> None:
    report = compared(on_a_task(tmp_path, teacher=80.0, student=55.0))
    assert sentence(report).endswith("it scores 55.0 against 80.0: worse (−33.1 to −16.9 points).")
    kept = next(card for card in highlights(report) if card.label == "keeps")
    assert (kept.value, kept.verdict) == ("68.8 %", "worse")


def test_a_teacher_that_knows_little_is_the_first_doubt(tmp_path: Path) -> None:
    weak = {"hidden_loss": 6.3, "teacher_hidden_loss": 6.3}
    first, *_ = trust(compared(own_text(tmp_path, **weak)))
    assert first == (
        "The teacher knows little: it loses 6.30 nats per hidden word, where word counts alone lose 6.40. Take this "
        "run as a test of the machinery."
    )


def test_without_another_student_what_distillation_added_is_not_known(tmp_path: Path) -> None:
    shutil.rmtree(own_text(tmp_path) / "students/untrained")
    assert any("what distillation added is not known" in line for line in trust(compared(tmp_path)))


def test_the_word_about_held_out_text_is_that_of_the_main_student(tmp_path: Path) -> None:
    report = compared(own_text(tmp_path))
    report["heldout"]["comparisons"] = [
        {"student": student, "model": "untrained", "loss": {"word": word, "low": -0.8, "high": -0.6}}
        for student, word in (("student", "better"), ("reference", "worse"))
    ]
    assert [other.word for other in baselines(report)] == ["better"]
    assert sentence(report).endswith("loses less than any other student (the next: 30.0 %, 4.60 nats a word).")
    report["heldout"]["comparisons"][0]["loss"]["word"] = "unclear"
    assert sentence(report).endswith("of held-out text (teacher 45.0 %).")


@pytest.mark.parametrize("wanted", MEASUREMENTS, ids=[each.name for each in MEASUREMENTS])
def test_the_lines_that_ask_for_a_measurement_are_a_recipe(wanted: Any) -> None:
    checks.validate(Suite.of(tomllib.loads(wanted.recipe), "[suite]"))


def test_not_asked_for_failed_and_impossible_differ(tmp_path: Path) -> None:
    own_text(tmp_path)
    jobs = [
        {"name": "finetune/student/imdb", "state": "failed", "error": "no space left"},
        {"name": "mobile/pocket", "state": "cancelled", "error": None},
    ]
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    make(tmp_path / "latency", "benchmark", {}, {"latency.json": latency()})
    found = {each.name: each for each in unmeasured(compared(tmp_path))}
    assert (found["IMDb"].state, found["IMDb"].reason) == ("failed", "finetune/student/imdb: no space left")
    assert found["a phone"].state == "failed"
    assert found["energy"].state == "impossible"
    assert "RAPL" in found["energy"].reason
    assert found["SQuAD"].state == "not asked for"
    assert "squad" in found["SQuAD"].recipe
    assert "exports and their speed" not in found
    states = [each.state for each in unmeasured(compared(tmp_path))]
    assert states == sorted(states, key=["failed", "impossible", "not asked for"].index)


def test_complete_results_lack_nothing_that_can_be_asked_for(tmp_path: Path) -> None:
    report = compared(suite(tmp_path / "out"))
    assert [each.name for each in unmeasured(report) if each.state == "not asked for"] == []
    scores_of, times = first_bars(report)
    assert [bar.name for bar in scores_of.bars] == ["teacher", "student"]
    assert times.bars[0].name == "teacher, PyTorch"
    assert times.bars[-1].main
    assert times.bars[-1].share == min(bar.share for bar in times.bars)


def test_the_identity_names_run_machine_and_code(tmp_path: Path) -> None:
    own_text(tmp_path / "my run")
    found = identity(compared(tmp_path / "my run"))
    assert found.name == "my run"
    assert found.made.endswith(" UTC")
    assert found.machine == "2 × EPYC, 1 core"
    assert found.code.startswith("Stillhouse ")
    make(tmp_path / "my run/latency", "benchmark", {}, {"latency.json": latency()})
    assert identity(compared(tmp_path / "my run")).machine == "AMD EPYC 9R14, 2 cores"


def test_a_failed_fine_tuning_is_on_the_first_screen(tmp_path: Path) -> None:
    shutil.rmtree(on_a_task(tmp_path, teacher=80.0, student=75.0) / "finetune/student")
    lost = [
        {"name": f"finetune/student/{task}", "state": "failed", "error": "no space"} for task in ("provenance", "x")
    ]
    (tmp_path / "jobs.json").write_text(json.dumps(lost))
    report = compared(tmp_path)
    card = next(card for card in highlights(report) if card.label == "scores")
    assert (card.value, card.verdict) == ("–", "failed")
    assert card.line == "on “which source is this from?”: student failed, teacher 80.0"
    (task,) = (each for each in unmeasured(report) if each.name == "the task x")
    assert (task.state, task.reason) == ("failed", "finetune/student/x: no space")


def test_a_student_whose_training_failed_is_no_student_that_nobody_asked_for(tmp_path: Path) -> None:
    shutil.rmtree(own_text(tmp_path) / "students")
    (tmp_path / "jobs.json").write_text(json.dumps([{"name": "runs/student", "state": "failed", "error": "nan"}]))
    report = compared(tmp_path)
    assert sentence(report) == "No student was made: its training failed."
    assert {each.name: each.state for each in unmeasured(report)}["ablations"] == "not asked for"


def test_losses_are_compared_on_the_same_kind_of_word(tmp_path: Path) -> None:
    told = {"masked": 4.5, "accuracy": 0.3}
    make_model(own_text(tmp_path) / "students/older", "older", "student", told)
    measured = losses(compared(tmp_path))
    assert measured.word == "masked"
    assert measured.nats["older"] == 4.5
    assert any("nats a masked word" in card.line for card in highlights(compared(tmp_path)))


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(-6.84, -1.61, "−6.8 to −1.6"), (-0.17, -0.034, "−0.17 to −0.03"), (-5.5, 0.004, "−5.5 to +0.0")],
)
def test_an_end_of_a_range_beside_zero_does_not_read_as_zero(low: float, high: float, expected: str) -> None:
    assert span({"low": low, "high": high}) == expected
    assert span({"low": None, "high": None}) == "no range"
