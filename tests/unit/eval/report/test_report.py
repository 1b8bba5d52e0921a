"""The report: real artifacts in a folder as the pipeline leaves it, the real stage, and what a reader then sees."""

import itertools
import json
import math
import re
import shutil
import statistics
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy
import pytest
from result_folders import JOBS, baselines, make, make_model, pipeline, scores, seeds_around, suite
from safetensors.numpy import save_file

from cluster.artifacts import artifact, commit, stage
from eval.report import pages, score_charts
from eval.report.stage import STAGE, Report
from eval.report.terminal_summary import summary
from eval.results import paper
from eval.results.collect import collect, identity
from eval.results.comparison import compare

VOID = {"meta", "br", "img", "link", "hr", "input"}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return pipeline(tmp_path / "out")


@pytest.fixture
def everything(tmp_path: Path) -> Path:
    return suite(tmp_path / "out")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of what a small pipeline leaves, to be looked at only."""
    return report(pipeline(tmp_path_factory.mktemp("small") / "out"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of everything that can be measured, to be looked at only."""
    return report(suite(tmp_path_factory.mktemp("whole") / "out"))


def report(out: Path, name: str = "report") -> Path:
    """Runs the stage; the report's directory."""
    made = stage.execute(STAGE, Report(), {"results": out}, out / name)
    assert made is not None
    return made.path


def compared(out: Path) -> dict[str, Any]:
    """What the report of a folder would say, without its pages."""
    return compare(collect(out))


def markdown(out: Path) -> str:
    return pages.Page(compared(out), [], "..").markdown()


def rescore(out: Path, model: str, task: str, found: dict[str, Any], **inputs: Path) -> None:
    """Put another score into the place of one."""
    place = out / "finetune" / model / task
    shutil.rmtree(place)
    make(place, "finetune", {}, {"scores.json": found}, **inputs)


def values(made: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((made / "report.json").read_text())
    return found


class Page(HTMLParser):
    """Checks that every element is closed, and collects what a browser would load and what a reader would see."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.headings: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        # A link is followed when somebody asks for it, everything else is loaded with the page.
        named = ("src", *(("href",) if tag != "a" else ()), "xlink:href", "data", "srcset", "action", "poster")
        self.loads += [value or "" for key, value in attrs if key in named]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            self.loads += re.findall(r"url\(([^)]*)\)|@import (.*)", data)
        elif data.strip():
            self.words.append(data.strip())
            if self.open[-1] == "h2":
                self.headings.append(data.strip())


def test_page_needs_nothing_from_outside(small: Path) -> None:
    page = Page((small / "report.html").read_text())
    assert not page.open
    assert [load for load in page.loads if not load.startswith("#")] == []
    assert page.headings == [
        "Models",
        "Scores",
        "Size and speed",
        "On a phone",
        "What each part contributes",
        "Training",
        "Cost",
        "Lineage",
    ]


@pytest.mark.parametrize("name", ["report.html", "report.md"])
def test_every_number_leads_to_the_manifest_it_was_read_from(whole: Path, name: str) -> None:
    text = (whole / name).read_text()
    links = re.findall(r'href="([^"#]+)"' if name.endswith("html") else r"\]\(([^)]+manifest\.json)\)", text)
    assert {"finetune", "students", "baselines", "latency", "exports"} <= {link.split("/")[1] for link in links}
    assert [link for link in links if not (whole / link).is_file()] == []
    assert "../finetune/student-second-step/squad/manifest.json" in links


def test_a_report_that_lies_elsewhere_leads_to_places_of_its_own_page(out: Path, tmp_path: Path) -> None:
    made = stage.execute(STAGE, Report(), {"results": out}, tmp_path / "elsewhere")
    assert made is not None
    text = (made.path / "report.html").read_text()
    inside = set(re.findall(r'href="#([^"]+)"', text))
    assert inside <= set(re.findall(r'id="([^"]+)"', text))
    assert "finetune-student-rte" in inside
    assert "manifest.json" not in text + (made.path / "report.md").read_text()


def row_of(rows: list[dict[str, Any]], key: str) -> dict[str, Any]:
    return next(row for row in rows if row["key"] == key)


def test_share_kept_is_the_student_s_median_over_the_teacher_s(small: Path) -> None:
    found = values(small)["tables"]["1"]
    rte, sst2 = (row_of(found["rows"], task) for task in ("rte", "sst2"))
    assert rte["kept"] == pytest.approx(100 * 64 / 67)
    assert rte["difference"] == pytest.approx(64 - 59.9)
    assert rte["verdict"]["state"] == "passed"
    assert sst2["verdict"]["state"] == "missed"
    told = {"score": 64.0, "low": 63.0, "high": 66.0, "seeds": 3, "source": "finetune/student/rte"}
    assert rte["student"] == told | {"error": pytest.approx(1.2533 * statistics.stdev([63, 64, 66]) / math.sqrt(3))}
    assert (sst2["subset"], rte["subset"]) == (True, False)
    mean, nine, _ = found["means"]
    assert mean["tasks"] == ["RTE", "SST-2"]
    assert mean["kept"] == pytest.approx(100 * (64 + 89) / (67 + 91))
    # The other student was measured on one of the two tasks: its mean would be over another set.
    assert "no-teacher" not in mean["scores"]
    assert mean["paper"]["kept"] == pytest.approx(100 * (59.9 + 91.3) / (69.3 + 92.7))
    assert nine["kept"] is None
    assert row_of(found["rows"], "cola")["verdict"]["state"] == "not measured"


def test_means_over_all_nine_and_without_wnli(whole: Path) -> None:
    found = values(whole)["tables"]["1"]
    rows = {row["task"]: row["student"]["score"] for row in found["rows"]}
    nine, without = found["means"]
    assert nine["student"] == pytest.approx(sum(rows.values()) / 9)
    assert without["student"] == pytest.approx((sum(rows.values()) - rows["wnli"]) / 8)
    assert (nine["paper"]["teacher"], nine["paper"]["student"]) == (79.5, 77.0)
    assert nine["kept_second_step"] == pytest.approx(100 * nine["second_step"] / nine["teacher"])
    # The teacher scores below the majority: the student's 105 % of it are no success.
    wnli = row_of(found["rows"], "wnli")
    assert (wnli["kept"] > 100, wnli["verdict"]["state"]) == (True, "unclear")


def test_squad_s_two_numbers_are_two_rows_with_the_second_step(whole: Path) -> None:
    exact, f1 = values(whole)["tables"]["2"]["rows"][1:]
    assert (exact["student"]["score"], f1["student"]["score"]) == (68.0, 77.9)
    assert exact["kept"] == pytest.approx(100 * 68.0 / 72.4)
    assert f1["second_step"]["source"] == "finetune/student-second-step/squad"
    assert (exact["paper"]["second_step"], f1["paper"]["second_step"]) == (79.1, 86.9)


def test_scores_on_other_examples_are_not_compared(out: Path) -> None:
    other = scores("mrpc", [80.0], dev_files=["dev_subset.parquet"])
    make(out / "finetune/student/mrpc", "finetune", {}, {"scores.json": other})
    make(out / "finetune/teacher/mrpc", "finetune", {}, {"scores.json": scores("mrpc", [85.0])})
    found = compared(out)["tables"]["1"]
    mrpc = row_of(found["rows"], "mrpc")
    assert (mrpc["kept"], mrpc["verdict"]["state"]) == (None, "not measured")
    assert found["means"][0]["tasks"] == ["RTE", "SST-2"]


def test_ablations_are_changes_of_the_mean_against_the_reference(whole: Path) -> None:
    found = values(whole)["tables"]["4"]
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


def test_an_ablation_that_helps_is_missed_and_one_seed_settles_nothing(everything: Path) -> None:
    shutil.rmtree(everything / "finetune/no-cosine")
    shutil.rmtree(everything / "finetune/no-soft")
    for task in ("cola", "mrpc", "rte", "stsb"):
        for name, seeds in (("no-cosine", seeds_around(90.0)), ("no-soft", [30.0])):
            make(everything / f"finetune/{name}/{task}", "finetune", {}, {"scores.json": scores(task, seeds)})
    rows = {row["student"]: row for row in compared(everything)["tables"]["4"]["rows"]}
    assert rows["no-cosine"]["verdict"]["state"] == "missed"
    assert rows["no-soft"]["verdict"] == {"state": "unclear", "reason": "one seed"}
    assert "not the paper's order" in markdown(everything)


def test_table_3_never_extrapolates_and_warns_of_unfit_times(everything: Path) -> None:
    def measured(**changed: Any) -> tuple[dict[str, Any], str]:
        shutil.rmtree(everything / "baselines")
        make(everything / "baselines", "benchmark", {}, {"latency.json": baselines(**changed)})
        return row_of(compared(everything)["tables"]["3"]["rows"], "distilbert"), markdown(everything)

    row, _ = measured()
    assert row["ratio"] == pytest.approx(2.0 / 1.03)
    assert row["paper"]["ratio"] == pytest.approx(668 / 410)
    assert row["verdict"]["state"] == "passed"
    few = [{**entry, "inputs": 150, "seconds": entry["seconds"] / 10} for entry in baselines()["rows"]]
    row, text = measured(rows=few)
    assert (row["measured"]["seconds"], row["measured"]["pair_ms"]) == (pytest.approx(7.21), pytest.approx(7210 / 150))
    assert "7.2](../baselines/manifest.json) (150 pairs)" in text
    row, text = measured(fit=False, unfit="other processes took 40 % of the CPU")
    assert row["verdict"] == {"state": "unclear", "reason": "the machine was not quiet"}
    assert "**Unfit: other processes took 40 % of the CPU. Do not rely on these times.**" in text


def test_claims_are_judged_by_the_tables(whole: Path) -> None:
    found = {claim["claim"]: claim for claim in values(whole)["claims"]}
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


def test_distilbert_s_own_size_is_no_missed_claim(out: Path) -> None:
    sizes = {"teacher": 109_514_298, "student": 66_985_530}
    for name, place in (("teacher", "teacher"), ("student", "students/student")):
        manifest = out / place / "manifest.json"
        told = json.loads(manifest.read_text())
        told["facts"]["parameters"] = sizes[name]
        manifest.write_text(json.dumps(told))
    (claim,) = (claim for claim in compared(out)["claims"] if claim["claim"] == "parameters")
    assert (claim["ours"], claim["verdict"]["state"]) == (pytest.approx(38.83, abs=0.01), "passed")


def test_a_gain_is_of_two_scores_on_the_same_examples(everything: Path) -> None:
    place = everything / "finetune/student-second-step/squad"
    kept = json.loads((place / "scores.json").read_text())
    shutil.rmtree(place)
    make(place, "finetune", {}, {"scores.json": {**kept, "dev_examples": 100}})
    (claim,) = (claim for claim in compared(everything)["claims"] if claim["claim"] == "second_step")
    assert (claim["ours"], claim["verdict"]["state"]) == (None, "not measured")


def test_a_gain_of_one_seed_proves_nothing_and_a_share_of_one_says_so(everything: Path) -> None:
    for model, f1 in (("teacher", 81.5), ("student", 60.0), ("student-second-step", 79.3)):
        place = everything / f"finetune/{model}/squad"
        shutil.rmtree(place)
        make(place, "finetune", {}, {"scores.json": scores("squad", [f1], "f1", more={"exact": [f1 - 9.0]})})
    report = compared(everything)
    claims = {claim["claim"]: claim["verdict"] for claim in report["claims"]}
    assert claims["second_step"] == {"state": "unclear", "reason": "one seed"}
    assert claims["squad"] == {"state": "missed", "reason": "one seed"}
    row = row_of(report["tables"]["2"]["rows"], "imdb")
    assert row["verdict"]["reason"] == "one seed"
    assert row_of(report["tables"]["1"]["rows"], "rte")["verdict"]["reason"] == ""


def test_a_gain_within_the_spread_of_the_seeds_proves_nothing(everything: Path) -> None:
    place = everything / "finetune/student-second-step/squad"
    shutil.rmtree(place)
    found = scores("squad", seeds_around(78.3), "f1", more={"exact": seeds_around(69.0)})
    make(place, "finetune", {}, {"scores.json": found})
    (claim,) = (claim for claim in compared(everything)["claims"] if claim["claim"] == "second_step")
    assert claim["ours"] == pytest.approx(0.4)
    assert claim["verdict"] == {"state": "unclear", "reason": "within the noise"}


def test_a_mean_with_a_teacher_at_chance_proves_nothing(everything: Path) -> None:
    def verdict() -> dict[str, str]:
        found: dict[str, str] = row_of(compared(everything)["tables"]["1"]["means"], "nine")["verdict"]
        return found

    assert verdict()["state"] == "missed"  # although nobody learns WNLI
    place = everything / "finetune/teacher/cola"
    shutil.rmtree(place)
    told = scores("cola", seeds_around(0.0), majority=0.0, below_majority=True)
    make(place, "finetune", {}, {"scores.json": told})
    assert verdict() == {"state": "unclear", "reason": "teacher at chance on CoLA"}


def test_a_student_that_learned_nothing_keeps_nothing(everything: Path) -> None:
    for model, score in (("teacher", 60.6), ("student", 52.7)):
        rescore(everything, model, "rte", scores("rte", seeds_around(score, 0.01), majority=52.7))
    row = row_of(compared(everything)["tables"]["1"]["rows"], "rte")
    assert row["kept"] > row["paper"]["kept"]
    assert row["verdict"] == {"state": "unclear", "reason": "student at chance"}


def test_a_share_within_the_spread_of_the_seeds_proves_nothing(everything: Path) -> None:
    for model, seeds in (("teacher", [55.0, 60.0, 70.0]), ("student", [53.0, 54.0, 69.0])):
        rescore(everything, model, "rte", scores("rte", seeds))
    row = row_of(compared(everything)["tables"]["1"]["rows"], "rte")
    assert row["kept"] == pytest.approx(90.0)
    errors = [1.2533 * statistics.stdev(each) / math.sqrt(3) for each in ([55, 60, 70], [53, 54, 69])]
    assert row["error"] == pytest.approx(90.0 * math.hypot(errors[0] / 60, errors[1] / 54))
    assert row["verdict"] == {"state": "unclear", "reason": "within the noise"}


def test_models_that_were_fine_tuned_otherwise_are_no_share_of_each_other(everything: Path) -> None:
    for changed in ({"train_examples": 100}, {"settings": {"epochs": 10}}):
        rescore(everything, "teacher", "rte", scores("rte", seeds_around(60.0), **changed))
        row = row_of(compared(everything)["tables"]["1"]["rows"], "rte")
        assert row["verdict"] == {"state": "unclear", "reason": "fine-tuned with other settings than the teacher"}
    found = scores("squad", seeds_around(90.0), "f1", more={"exact": seeds_around(80.0)}, settings={"epochs": 20})
    rescore(everything, "student-second-step", "squad", found)
    (claim,) = (claim for claim in compared(everything)["claims"] if claim["claim"] == "second_step")
    assert claim["verdict"]["state"] == "not measured"


def test_files_of_one_name_are_not_the_same_examples(everything: Path) -> None:
    for model, data in (("teacher", "corpus"), ("student", "tokens")):
        rescore(everything, model, "rte", scores("rte", seeds_around(60.0)), data=everything / data)
    assert row_of(compared(everything)["tables"]["1"]["rows"], "rte")["kept"] is None


def test_a_mean_says_which_of_its_tasks_had_one_seed(everything: Path) -> None:
    for task in ("rte", "cola"):
        rescore(everything, "student", task, scores(task, [30.0], majority=0.0))
    mean = row_of(compared(everything)["tables"]["1"]["means"], "nine")
    assert mean["verdict"] == {"state": "missed", "reason": "one seed on CoLA, RTE, SST-2"}
    rescore(everything, "student", "cola", scores("cola", [0.0, 0.0, 0.0], majority=0.0))  # nothing, with three seeds
    mean = row_of(compared(everything)["tables"]["1"]["means"], "nine")
    assert mean["verdict"] == {"state": "missed", "reason": "one seed on RTE, SST-2"}


def test_without_a_teacher_only_models_on_the_same_examples_are_compared(everything: Path) -> None:
    shutil.rmtree(everything / "finetune/teacher/rte")
    place = everything / "finetune/no-soft/rte"
    told = json.loads((place / "scores.json").read_text())
    shutil.rmtree(place)
    make(place, "finetune", {}, {"scores.json": {**told, "dev_examples": 10}})
    row = row_of(compared(everything)["tables"]["1"]["rows"], "rte")
    assert "no-cosine" in row["comparable"]
    assert "no-soft" not in row["comparable"]


def test_every_metric_of_every_model_is_there(whole: Path) -> None:
    text = (whole / "report.html").read_text()
    page = Page(text)
    assert "f1 77.9 (77.3–78.4); exact 68.0 (67.4–68.5)" in page.words
    rows = values(whole)["scores"]
    assert len(rows) == len(list(whole.parent.glob("finetune/*/*")))
    assert {row["model"] for row in rows} >= {"teacher", "student", "student-second-step", "all-losses", "no-soft"}


def test_models_given_from_elsewhere_are_told_by_their_folders(out: Path, tmp_path: Path) -> None:
    folder = tmp_path / "given/bert-something"
    folder.mkdir(parents=True)
    config = {"architectures": ["BertForMaskedLM"], "num_hidden_layers": 12, "hidden_size": 768}
    (folder / "config.json").write_text(json.dumps(config))
    save_file({"weight": numpy.zeros((30, 7), numpy.float32)}, folder / "model.safetensors")
    shutil.rmtree(out / "teacher")
    models = {"teacher": str(folder), "student": "students/student"}
    (out / "suite.json").write_text(json.dumps({"models": models, "ablations": None, "second_step": None}))
    before = identity(out)
    teacher = compared(out)["models"][0]
    told = {key: teacher[key] for key in ("architecture", "layers", "hidden", "parameters", "origin", "source")}
    assert told == {
        "architecture": "BertForMaskedLM",
        "layers": 12,
        "hidden": 768,
        "parameters": 210,
        "origin": "bert-something",
        "source": None,
    }
    assert str(tmp_path) not in json.dumps(compared(out))
    (folder / "README.md").write_text("words")
    assert identity(out) == before
    save_file({"weight": numpy.ones((30, 7), numpy.float32)}, folder / "model.safetensors")
    assert identity(out) != before


def test_headline_holds_the_measured_numbers(small: Path) -> None:
    told = (small / "report.html").read_text()
    expected = (
        "The student keeps 96.8 % of the teacher's score on 2 tasks (in part on subsets) with 3 of 6 layers and 77 % "
        "of the parameters; "
        "at batch 1 it is 2.00× as fast as the teacher in PyTorch (30 tokens, 5.00 ms), its ONNX int8 export 6.25× "
        "(the export's score is not measured)."
    )
    assert expected in told.replace("&#39;", "'").replace("\N{NO-BREAK SPACE}", " ")
    assert artifact.read(small).facts["sentence"] == expected


def test_student_is_set_against_the_one_without_a_teacher(small: Path) -> None:
    verdict = (
        "The student's MLM loss is 0.351 lower than that of no-teacher (3.912 against 4.263 nats; "
        "accuracy 41.2 % against 37.1 %), both after 19.7 M tokens."
    )
    assert verdict in (small / "report.md").read_text()
    assert verdict in " ".join((small / "summary.txt").read_text().split())
    teacher, student, alone = values(small)["models"]
    assert (teacher["masked_loss"], teacher["accuracy"]) == (3.44, 0.45)
    assert student["agreement"] == 0.604
    assert alone["agreement"] is None


def test_a_student_that_is_worse_is_said_to_be(tmp_path: Path) -> None:
    make_model(tmp_path / "students/student", "student", "student", {"masked": 4.5, "accuracy": 0.3})
    make_model(tmp_path / "students/no-teacher", "no-teacher", "student", {"masked": 4.25, "accuracy": 0.35})
    assert "The student's MLM loss is 0.250 higher than that of no-teacher" in markdown(tmp_path)


def test_ratios_compare_the_same_runtime_and_the_pytorch_teacher(small: Path) -> None:
    rows = {(row["model"], row["form"], row["length"]): row for row in values(small)["latency"]["rows"]}
    assert rows["student", "pytorch", 128]["ratio_same_form"] == pytest.approx(40 / 21)
    assert rows["student", "int8", 30]["ratio_to_teacher"] == pytest.approx(10 / 1.6)
    # No int8 teacher was timed.
    assert rows["student", "int8", 30]["ratio_same_form"] is None


def test_what_is_absent_is_not_measured(tmp_path: Path) -> None:
    make_model(tmp_path / "teacher", "teacher", "teacher", None)
    made = report(tmp_path)
    text = (made / "report.md").read_text()
    sections = dict(re.findall(r"^##+ ([^\n]*)\n(.*?)(?=^##|\Z)", text, flags=re.M | re.S))
    for title in ("Latency of teacher, student and exports", "On a phone", "Training", "Conditions", "Exports"):
        assert sections[title].strip() == "Not measured.", title
    assert "No student was made: its scores, size and speed are not measured." in text
    assert "| 22.7 M |" in sections["Models"]
    assert "| not measured |" in sections["Models"]
    assert values(made)["latency"] is None
    assert "| CoLA | – | – | – | not measured | 44.1 | 56.3 |" in text
    assert {claim["verdict"]["state"] for claim in values(made)["claims"]} == {"not measured"}
    assert (made / "summary.txt").read_text().count("  not measured\n") == 5
    assert Page((made / "report.html").read_text()).words.count("Not measured.") == 5


def test_failed_jobs_are_listed_with_their_errors(small: Path) -> None:
    words = Page((small / "report.html").read_text()).words
    assert "1 of 3 jobs failed" in words
    assert f"{JOBS[2]['name']}: {JOBS[2]['error']}" in words
    assert "  finetune no-teacher on mrpc: the loss is nan by step 40" in (small / "summary.txt").read_text()
    assert artifact.read(small).facts["failed_jobs"] == 1


def test_markdown_tables_are_whole(small: Path) -> None:
    lines = (small / "report.md").read_text().splitlines()
    tables: list[list[str]] = [[]]
    for line in lines:
        if line.startswith("|"):
            tables[-1].append(line)
        elif tables[-1]:
            tables.append([])
    tables = [table for table in tables if table]
    assert len(tables) == 13
    for table in tables:
        # An escaped bar belongs to a cell, here to an error message.
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1, table[0]
        assert re.fullmatch(r"\|( :-- \|| --: \|)+", table[1])
    text = (small / "report.md").read_text()
    assert "\n\n\n" not in text
    for before, line in itertools.pairwise(lines):
        assert not line.startswith("#") or before == "", f"{line} stands alone"


def test_pictures_are_beside_the_markdown(small: Path) -> None:
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", (small / "report.md").read_text())
    assert sorted(pictures) == sorted(f"plots/{path.name}" for path in (small / "plots").iterdir())
    assert len(pictures) == 9
    inline = (small / "report.html").read_text()
    assert inline.count('<svg role="img"') == 9
    # Ids that two pictures share would cut one at the other's frame.
    ids = re.findall(r'<clipPath id="([^"]+)"', inline)
    assert len(ids) == len(set(ids)) > 0


def test_summary_fits_a_terminal(small: Path) -> None:
    text = (small / "summary.txt").read_text()
    assert max(len(line) for line in text.splitlines()) <= 100
    titles = {"Models", "Table 1: GLUE, percent, median over seeds", "Latency: 30 tokens, threads 1"}
    assert titles <= set(text.splitlines())
    assert re.search(r"RTE +67\.0 +64\.0 +95\.5 % +passed +69\.3 +59\.9 +86\.4 %", text)


def test_summary_of_everything_fits_too(whole: Path) -> None:
    text = (whole / "summary.txt").read_text()
    assert max(len(line) for line in text.splitlines()) <= 100
    assert re.search(r"without soft targets +62\.0 +−2\.20 +−2\.96 +passed +\+0\.110", text)
    assert re.search(r"SQuAD 1\.1, EM +72\.4 +68\.0 +69\.8 +93\.9 % +missed +81\.2 +77\.7 +95\.7 %", text)


def test_summary_fits_with_many_long_names(out: Path) -> None:
    for number in range(6):
        make_model(
            out / f"students/without-the-cosine-term-and-from-random-weights-{number}",
            "student",
            "student",
            {"masked": 4.0},
        )
        found = {"scores.json": scores("rte", [60.0])}
        make(out / f"finetune/without-the-cosine-term-{number}/rte", "finetune", {}, found)
    text = summary(compared(out))
    assert max(len(line) for line in text.splitlines()) <= 100
    assert "3.912" in text


def test_same_results_are_already_complete_and_new_ones_refused(out: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = artifact.read(report(out)).identity
    finished = [{**job, "seconds": 0.0, "state": "skipped"} for job in JOBS if job["state"] != "failed"]
    (out / "jobs.json").write_text(json.dumps([*finished, JOBS[2], {"name": "report", "state": "done"}]))
    (out / "runs/student/checkpoints").mkdir()
    (out / "runs/student/checkpoints/weights").write_bytes(b"later")
    with caplog.at_level("INFO", logger="stillhouse"):
        assert artifact.read(report(out)).identity == first
    assert "is already complete" in caplog.text
    make(out / "finetune/student/wnli", "finetune", {}, {"scores.json": scores("wnli", [56.3])})
    with pytest.raises(commit.ArtifactError, match="made differently"):
        report(out)


def test_two_reports_of_the_same_results_are_the_same(small: Path) -> None:
    again = report(small.parent, "again")
    assert artifact.read(again).files == artifact.read(small).files


@pytest.mark.parametrize(
    ("place", "damage"),
    [
        ("students/student/model.safetensors", "cut"),
        ("students/student/manifest.json", "gone"),
        ("finetune/teacher/rte/scores.json", "changed"),
        ("latency/latency.json", "gone"),
        ("runs/student/probes.jsonl", "garbled"),
        ("suite.json", "garbled"),
        ("runs/student/metrics.jsonl", "garbled"),
        ("runs/student/recipe.json", "garbled"),
        ("jobs.json", "garbled"),
    ],
)
def test_damage_is_refused_by_name(out: Path, place: str, damage: str) -> None:
    path = out / place
    contents = path.read_bytes() if path.exists() else b"{}"
    if damage == "gone":
        path.unlink()
    elif damage == "changed":
        path.write_bytes(contents.replace(b"67.0", b"97.0"))
    else:
        path.write_bytes(contents[:20] if damage == "cut" else b"{nothing\n" + contents)
    with pytest.raises(ValueError, match=re.escape(str(path.parent if damage == "gone" else path))):
        report(out)
    assert not (out / "report").exists()


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"score": "high"}, "score: "),
        ({"score": math.nan}, "NaN"),
        ({"dev_examples": None}, "dev_examples"),
    ],
)
def test_scores_that_are_no_scores_are_refused(out: Path, changed: dict[str, Any], reason: str) -> None:
    make(out / "finetune/student/wnli", "finetune", {}, {"scores.json": scores("wnli", [56.3]) | changed})
    with pytest.raises(ValueError, match=rf"finetune/student/wnli/scores\.json.*{reason}"):
        collect(out)


def test_artifacts_in_the_making_are_no_results(out: Path) -> None:
    before = identity(out)
    (out / "finetune/student/.cola.partial").mkdir()
    (out / "students/.larger.partial").mkdir()
    assert identity(out) == before


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(commit.ArtifactError, match="holds no results"):
        report(tmp_path)


def test_descent_names_what_each_artifact_was_made_from(small: Path) -> None:
    rows = {row["path"]: row for row in values(small)["descent"]}
    assert len(rows) == 13
    assert {given["role"]: given["path"] for given in rows["students/student"]["inputs"]} == {
        "teacher": "teacher",
        "tokens": "tokens",
    }
    assert rows["corpus"]["identity"] == artifact.read(small.parent / "corpus").identity
    assert str(small.parent) not in (small / "report.json").read_text()


def test_command_line(out: Path) -> None:
    command = [sys.executable, "-m", "eval.report", str(out), "--out", str(out / "report")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(out / "report")
    (out / "latency/latency.json").write_text("")
    failed = subprocess.run([*command[:-1], str(out / "other")], capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    assert failed.stderr.startswith(f"error: {out}/latency/latency.json has 0 bytes")


def test_paper_s_numbers_agree_with_its_claims() -> None:
    assert sum(task.distilbert for task in paper.GLUE) / 9 == pytest.approx(paper.MACRO["distilbert"], abs=0.05)
    # With the 84.7 that the note on MNLI names in the place of the 86.7 that is printed.
    assert sum(task.teacher for task in paper.GLUE) / 9 == pytest.approx(paper.MACRO["bert_base"], abs=0.05)
    seconds = {speed.model: speed.seconds for speed in paper.SPEEDS}
    assert seconds["BERT-base"] / seconds["DistilBERT"] == pytest.approx(1.63, abs=0.005)
    assert paper.find("SST-2") == paper.find("sst_2") == paper.find("sst2") != ()
    assert [row.metric for row in paper.find("squad")] == ["exact", "f1"]
    assert paper.find("squad2") == paper.find("provenance") == ()
    assert [cost.gpu_hours for cost in paper.COSTS] == [720, 24_576]


def test_every_export_has_its_row_and_a_sentence_says_which_wins_where(whole: Path) -> None:
    told = values(whole)["latency"]
    places = {(row["where"], row["threads"]) for row in told["rows"]}
    assert places == {(where, threads) for where in ("STS-B pairs", "384 tokens") for threads in (1, 2)}
    assert [row["threads"] for row in told["first"]] == [1] * 15
    assert [(row["where"], row["threads"], row["how"]) for row in told["wins"]] == [
        ("STS-B pairs", 1, "ExecuTorch int8"),
        ("STS-B pairs", 2, "ExecuTorch int8"),
        ("384 tokens", 1, "LiteRT int8"),
        ("384 tokens", 2, "LiteRT int8"),
    ]
    text = (whole / "report.md").read_text()
    assert (
        "**The student is fastest in ExecuTorch int8 for STS-B pairs on 1 thread (1.55 ms, 11.61× the teacher and "
        "59.96× BERT-base in PyTorch); in ExecuTorch int8 for STS-B pairs on 2 threads (0.85 ms" in text
    )
    assert "| 384 tokens | 2 | BERT-base (random weights) | PyTorch | [460.35](../latency/manifest.json) |" in text
    assert "| [student](../exports/student/openvino-int8/manifest.json) | OpenVINO int8 | stsb | 17.4 MB |" in text
    assert "its ExecuTorch int8 export 11.61× (the export's score is not measured)" in text


def test_table_3_is_filled_from_the_exports_benchmark_where_it_has_pairs(everything: Path) -> None:
    shutil.rmtree(everything / "baselines")
    table = compared(everything)["tables"]["3"]
    assert (table["source"], table["fit"]) == ("latency", True)
    rows = {row["key"]: row["measured"] for row in table["rows"]}
    assert (rows["bertbase"]["pairs"], rows["bertbase"]["weights"]) == (1500, "random")
    assert rows["distilbert"] is None
    assert table["own"]["ratio"] == pytest.approx(18.0 / 9.4)


def test_the_conditions_are_the_worst_that_were_seen(out: Path) -> None:
    assert compared(out)["latency"]["machine"]["others_share_of_machine"] == 0.03


def test_exports_are_drawn_at_their_own_score_or_said_to_be_at_their_models(everything: Path) -> None:
    report = compared(everything)
    plot = score_charts.draw_speed(report, None)
    assert plot is not None
    assert "Score against latency: STS-B pairs, 1 thread; area: bytes" in plot.title
    scale = score_charts._scale(report, None)
    assert scale is not None
    points = {(row["model"], row["form"]): score_charts._point(row, scale) for row in report["latency"]["first"]}
    assert points.pop(("bert_base", "pytorch")) is None, "nobody scored it"
    student = {form: point for (model, form), point in points.items() if model == "student" and point is not None}
    assert len(points) == 14
    assert student["openvino-int8"].score == pytest.approx(student["pytorch"].score - 0.9)
    assert (student["openvino-int8"].measured, student["litert-int8"].measured) == (True, False)
    assert student["litert-int8"].score == student["pytorch"].score
    for number in range(1, 15):
        assert f"{number} · " in plot.svg
