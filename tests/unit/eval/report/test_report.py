"""The report's pages, charts and summary, made by the real stage from a folder of results."""

import itertools
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from paths import ROOT
from result_folders import (
    JOBS,
    baselines,
    compared,
    latency,
    make,
    make_model,
    pipeline,
    row_of,
    scores,
    seeds_around,
    suite,
)

from cluster.artifacts import artifact, commit, stage
from eval.report import pages
from eval.report.stage import STAGE, Report
from eval.report.terminal_summary import summary

VOID = {"meta", "br", "img", "link", "hr", "input"}


@pytest.fixture(scope="module")
def small_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a small pipeline. Tests must not change it."""
    return make_report(pipeline(tmp_path_factory.mktemp("small") / "out"))


@pytest.fixture(scope="module")
def complete_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a suite with every measurement. Tests must not change it."""
    return make_report(suite(tmp_path_factory.mktemp("complete") / "out"))


def make_report(out: Path, name: str = "report") -> Path:
    """Run the stage; returns the folder of the report."""
    made = stage.execute(STAGE, Report(), {"results": out}, out / name)
    assert made is not None
    return made.path


def markdown(out: Path) -> str:
    return pages.Page(compared(out), [], "..").markdown()


def values(made: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((made / "report.json").read_text())
    return found


class Page(HTMLParser):
    """Checks that every element is closed, and collects the URLs a browser would load and the visible text."""

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
        # A browser loads everything but the targets of links.
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


def test_page_needs_nothing_from_outside(small_report: Path) -> None:
    page = Page((small_report / "report.html").read_text())
    assert not page.open
    assert [load for load in page.loads if not load.startswith("#")] == []
    assert page.headings == [
        "Scores", "Models", "Size and speed", "Training", "The paper's claims", "Cost", "Not measured", "Lineage",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["report.html", "report.md"])
def test_every_number_links_to_its_manifest(complete_report: Path, name: str) -> None:
    text = (complete_report / name).read_text()
    links = re.findall(
        r'href="([^"#]+manifest\.json)"' if name.endswith("html") else r"\]\(([^)]+manifest\.json)\)", text
    )
    assert {"finetune", "students", "baselines", "latency", "exports"} <= {link.split("/")[1] for link in links}
    assert [link for link in links if not (complete_report / link).is_file()] == []
    assert "../finetune/student-second-step/squad/manifest.json" in links


def test_links_name_any_artifact() -> None:
    report: Any = None
    page, outside = pages.Page(report, [], "../my results (2) #1"), pages.Page(report, [], None)
    source = 'finetune/50% <b>"[v1]#2?/rte'
    link = page.link(source)
    assert unquote(urlsplit(link).path) == f"../my results (2) #1/{source}/manifest.json"
    assert not set(link) & set('()<>[]# "?')
    assert outside.link(source) == f"#{pages.anchor(source)}"
    assert re.fullmatch(r"[\w.-]+", pages.anchor(source))
    assert pages.anchor("finetune/student/rte") == "finetune-student-rte"


def test_the_pages_list_what_the_student_s_training_did_otherwise_than_the_paper(complete_report: Path) -> None:
    for page in ("report.html", "report.md"):
        text = (complete_report / page).read_text(encoding="utf-8")
        assert "differs from the paper" in text
        assert "student.dropout" in text


def test_a_report_outside_the_results_links_only_to_its_own_anchors(small_results: Path, tmp_path: Path) -> None:
    made = stage.execute(STAGE, Report(), {"results": small_results}, tmp_path / "elsewhere")
    assert made is not None
    text = (made.path / "report.html").read_text()
    inside = set(re.findall(r'href="#([^"]+)"', text))
    assert inside <= set(re.findall(r'id="([^"]+)"', text))
    assert "finetune-student-rte" in inside
    assert "manifest.json" not in text + (made.path / "report.md").read_text()


def test_an_ablation_that_helps_is_missed_and_one_seed_is_unclear(complete_results: Path) -> None:
    shutil.rmtree(complete_results / "finetune/no-cosine")
    shutil.rmtree(complete_results / "finetune/no-soft")
    for task in ("cola", "mrpc", "rte", "stsb"):
        for name, seeds in (("no-cosine", seeds_around(90.0)), ("no-soft", [30.0])):
            make(complete_results / f"finetune/{name}/{task}", "finetune", {}, {"scores.json": scores(task, seeds)})
    rows = {row["student"]: row for row in compared(complete_results)["tables"]["4"]["rows"]}
    assert rows["no-cosine"]["verdict"]["state"] == "missed"
    assert rows["no-soft"]["verdict"] == {"state": "unclear", "reason": "one seed"}
    assert "not the paper's order" in markdown(complete_results)


def test_table_3_never_extrapolates_and_warns_of_unfit_times(complete_results: Path) -> None:
    def measured(**changed: Any) -> tuple[dict[str, Any], str]:
        shutil.rmtree(complete_results / "baselines")
        make(complete_results / "baselines", "benchmark", {}, {"latency.json": baselines(**changed)})
        return row_of(compared(complete_results)["tables"]["3"]["rows"], "distilbert"), markdown(complete_results)

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


def test_the_report_has_every_metric_of_every_model(complete_report: Path) -> None:
    text = (complete_report / "report.html").read_text()
    page = Page(text)
    assert "f1 77.9 (77.3–78.4); exact 68.0 (67.4–68.5)" in page.words
    rows = values(complete_report)["scores"]
    assert len(rows) == len(list(complete_report.parent.glob("finetune/*/*")))
    assert {row["model"] for row in rows} >= {"teacher", "student", "student-second-step", "all-losses", "no-soft"}


def test_headline_holds_the_measured_numbers(small_report: Path) -> None:
    told = (small_report / "report.html").read_text()
    expected = (
        "Half the layers, 6.25× as fast as its teacher in ONNX int8. It keeps 96.8 % of the teacher's score on RTE, "
        "SST-2 (in part on subsets)."
    )
    assert expected in told.replace("&#39;", "'").replace("\N{NO-BREAK SPACE}", " ")
    assert artifact.read(small_report).facts["sentence"] == expected


def test_the_student_is_compared_with_the_one_without_a_teacher(small_report: Path) -> None:
    verdict = (
        "The student's held-out loss is 0.351 lower than that of no-teacher (3.912 against 4.263 nats; "
        "accuracy 41.2 % against 37.1 %), both after 19.7 M tokens."
    )
    assert verdict in (small_report / "report.md").read_text()
    assert "without it   56.0: no-teacher" in (small_report / "summary.txt").read_text()
    teacher, student, alone = values(small_report)["models"]
    assert (teacher["masked_loss"], teacher["accuracy"]) == (3.44, 0.45)
    assert student["agreement"] == 0.604
    assert alone["agreement"] is None


def test_a_worse_student_is_reported(tmp_path: Path) -> None:
    make_model(tmp_path / "students/student", "student", "student", {"masked": 4.5, "accuracy": 0.3})
    make_model(tmp_path / "students/no-teacher", "no-teacher", "student", {"masked": 4.25, "accuracy": 0.35})
    assert "The student's held-out loss is 0.250 higher than that of no-teacher" in markdown(tmp_path)


def test_a_page_has_no_sections_for_what_nobody_asked_for(tmp_path: Path) -> None:
    make_model(tmp_path / "teacher", "teacher", "teacher", None)
    made = make_report(tmp_path)
    page = Page((made / "report.html").read_text())
    assert page.headings == ["Models", "Not measured", "Lineage"]
    text = (made / "report.md").read_text()
    assert "No student was made." in text
    assert "| 22.7 M |" in text
    assert "CoLA" not in text
    assert "not measured" not in " ".join(page.words)
    assert values(made)["latency"] is None
    assert {claim["verdict"]["state"] for claim in values(made)["claims"]} == {"not measured"}
    assert "?" not in (made / "summary.txt").read_text()


def test_what_was_not_measured_says_why(small_report: Path) -> None:
    text = (small_report / "report.html").read_text()
    folded = re.search(r'<details class="unasked">(.*?)</details>', text, re.S)
    assert folded is not None
    assert "IMDb" in folded[1]
    assert "tasks = { imdb = {} }" in folded[1]
    assert '<span class="verdict impossible">impossible</span> <b>energy</b> this machine has no energy' in text
    assert "RTE" not in folded[1], "it was scored"


def test_a_failed_score_is_no_score_that_nobody_asked_for(small_results: Path) -> None:
    shutil.rmtree(small_results / "finetune/student/sst2")
    lost = {"name": "finetune/student/sst2", "state": "failed", "error": "out of memory"}
    (small_results / "jobs.json").write_text(json.dumps([*JOBS, lost]))
    made = make_report(small_results)
    assert "| SST-2 (accuracy) | [91.0](../finetune/teacher/sst2/manifest.json) (" in (made / "report.md").read_text()
    row = re.search(r"\| SST-2 .*", (made / "report.md").read_text())
    assert row is not None
    assert "| failed |" in row[0]
    assert '<span class="verdict failed">failed</span>' in (made / "report.html").read_text()


def test_every_table_has_a_caption_and_a_first_column_of_heads(complete_report: Path) -> None:
    text = (complete_report / "report.html").read_text()
    captions = re.findall(r'<caption><span class="unseen">(.*?)</span></caption>', text)
    assert len(captions) == text.count("<table>")
    assert all(captions)
    for body in re.findall(r"<tbody>(.*?)</tbody>", text, re.S):
        assert body.count("<tr") == body.count("<th scope=row")


def test_every_entry_of_the_contents_is_there(complete_report: Path) -> None:
    text = (complete_report / "report.html").read_text()
    contents = re.search(r"<nav.*?</nav>", text, re.S)
    assert contents is not None
    wanted = re.findall(r'href="#(\w+)"', contents[0])
    assert wanted == re.findall(r'<section id="(\w+)">', text)
    assert "The paper&#39;s claims: 2 passed, 4 missed, 1 unclear" in contents[0]


def test_the_latency_that_is_not_folded_has_six_columns(small_report: Path) -> None:
    brief = re.search(r"### Latency.*?\n\n(\|[^\n]*)", (small_report / "report.md").read_text(), re.S)
    assert brief is not None
    assert brief[1] == "| Model | Runtime | Workload | p50 ms | × PyTorch teacher | Size |"


def test_conditions_name_nothing_that_was_not_run(small_results: Path) -> None:
    settings = {"lengths": [30, 128], "elmo": {"cell": 4096}, "questions": {"length": 384}, "pairs": {"limit": None}}
    shutil.rmtree(small_results / "latency")
    make(small_results / "latency", "benchmark", {}, {"latency.json": latency(settings=settings)})
    text = markdown(small_results)
    assert "4096" not in text
    assert "384" not in text.partition("### Conditions of the latency")[2]
    assert "| lengths | 30, 128 |" in text


def test_a_teacher_trained_here_is_part_of_the_cost(tmp_path: Path) -> None:
    trained = {"steps": 800, "tokens": 1_600_000, "device_hours": 0.06, "world_size": 2, "device": "EPYC, 1 core"}
    make_model(tmp_path / "teacher", "teacher", "teacher", None, told=trained)
    make_model(tmp_path / "students/student", "student", "student", {"masked": 4.5})
    (tmp_path / "runs/student").mkdir(parents=True)
    assert re.search(r"\| \[training teacher\]\S+ \| EPYC, 1 core \| 2 .*\| 0\.06 \|", markdown(tmp_path))


def test_the_page_shares_its_look_with_the_page_for_phones(small_report: Path) -> None:
    page = (small_report / "report.html").read_text()
    browser = ROOT / "deploy" / "browser"
    assert pages.PALETTE.read_text().strip() in (browser / "style.css").read_text()
    assert pages.ICON.read_bytes() == (browser / "icon.svg").read_bytes()
    assert pages.ICON.read_text() in page
    assert pages.PALETTE.read_text() in page
    assert re.search(r"<b>out</b> <span>\d+ \w+ \d{4}, \d\d:\d\d UTC · .* · AMD EPYC 9R14, 2 cores · Stillhouse", page)


def test_failed_jobs_are_listed_with_their_errors(small_report: Path) -> None:
    words = Page((small_report / "report.html").read_text()).words
    assert "1 of 3 jobs failed" in words
    assert f"{JOBS[2]['name']}: {JOBS[2]['error']}" in words
    assert "  finetune/no-teacher/mrpc: the loss is nan by step 40" in (small_report / "summary.txt").read_text()
    assert artifact.read(small_report).facts["failed_jobs"] == 1


def test_markdown_tables_are_whole(small_report: Path) -> None:
    lines = (small_report / "report.md").read_text().splitlines()
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
    text = (small_report / "report.md").read_text()
    assert "\n\n\n" not in text
    for before, line in itertools.pairwise(lines):
        assert not line.startswith("#") or before == "", f"no empty line before {line}"


def test_the_markdown_report_has_its_charts(small_report: Path) -> None:
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", (small_report / "report.md").read_text())
    assert sorted(pictures) == sorted(f"plots/{path.name}" for path in (small_report / "plots").iterdir())
    assert len(pictures) == 6
    inline = (small_report / "report.html").read_text()
    assert inline.count('<svg role="img"') == 6
    soft, masked = ((small_report / f"plots/train-{name}.svg").read_text() for name in ("soft", "masked"))
    assert "no-teacher" in masked
    assert "no-teacher" not in soft, "it has no soft targets"


def test_the_summary_says_first_what_was_measured(small_report: Path) -> None:
    lines = (small_report / "summary.txt").read_text().splitlines()
    assert max(map(len, lines)) <= 78
    assert re.fullmatch(r"out: done in \d+ s", lines[0])
    labels = [line[2:14].strip() for line in lines if line.startswith("  ") and line[2] != " "]
    assert labels[:3] == ["distilled", "keeps", "is faster"]
    text = " ".join(" ".join(lines).split())
    assert "keeps 76.5 of the teacher's 79.0 on GLUE (RTE, SST-2): 96.8 % (on subsets in part)" in text
    assert "is faster 6.25× in ONNX int8 (1.60 ms), 2.00× in PyTorch (5.00 ms): batch 1, 30 tokens, 1 thread" in text
    assert "not asked for: IMDb, SQuAD" in text


def test_the_summary_of_complete_results_fits_a_terminal(complete_report: Path) -> None:
    text = (complete_report / "summary.txt").read_text()
    assert max(len(line) for line in text.splitlines()) <= 78
    assert "not asked for" not in text
    joined = " ".join(text.split())
    assert "keeps 77.9 of the teacher's 81.5 on SQuAD 1.1, F1: 95.6 %" in joined
    assert "DistilBERT 1.94× as fast as BERT-base on this CPU; passed (paper 1.63×)" in joined


def test_summary_fits_with_many_long_names(small_results: Path) -> None:
    for number in range(6):
        make_model(
            small_results / f"students/without-the-cosine-term-and-from-random-weights-{number}",
            "student",
            "student",
            {"masked": 4.0},
        )
        found = {"scores.json": scores("rte", [60.0])}
        make(small_results / f"finetune/without-the-cosine-term-{number}/rte", "finetune", {}, found)
    text = summary(compared(small_results))
    assert max(len(line) for line in text.splitlines()) <= 78
    assert "3.91 nats" in text


def test_same_results_are_already_complete_and_new_ones_refused(
    small_results: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = artifact.read(make_report(small_results)).identity
    finished = [{**job, "seconds": 0.0, "state": "skipped"} for job in JOBS if job["state"] != "failed"]
    (small_results / "jobs.json").write_text(json.dumps([*finished, JOBS[2], {"name": "report", "state": "done"}]))
    (small_results / "runs/student/checkpoints").mkdir()
    (small_results / "runs/student/checkpoints/weights").write_bytes(b"later")
    with caplog.at_level("INFO", logger="stillhouse"):
        assert artifact.read(make_report(small_results)).identity == first
    assert "is already complete" in caplog.text
    make(small_results / "finetune/student/wnli", "finetune", {}, {"scores.json": scores("wnli", [56.3])})
    with pytest.raises(commit.ArtifactError, match="made differently"):
        make_report(small_results)


def test_two_reports_of_the_same_results_are_the_same(small_report: Path) -> None:
    again = make_report(small_report.parent, "again")
    assert artifact.read(again).files == artifact.read(small_report).files


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
def test_damage_is_refused_by_name(small_results: Path, place: str, damage: str) -> None:
    path = small_results / place
    contents = path.read_bytes() if path.exists() else b"{}"
    if damage == "gone":
        path.unlink()
    elif damage == "changed":
        path.write_bytes(contents.replace(b"67.0", b"97.0"))
    else:
        path.write_bytes(contents[:20] if damage == "cut" else b"{nothing\n" + contents)
    with pytest.raises(ValueError, match=re.escape(str(path.parent if damage == "gone" else path))):
        make_report(small_results)
    assert not (small_results / "report").exists()


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(commit.ArtifactError, match="holds no results"):
        make_report(tmp_path)


def test_command_line(small_results: Path) -> None:
    command = [sys.executable, "-m", "eval.report", str(small_results), "--out", str(small_results / "report")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(small_results / "report")
    (small_results / "latency/latency.json").write_text("")
    failed = subprocess.run([*command[:-1], str(small_results / "other")], capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    assert failed.stderr.startswith(f"error: {small_results}/latency/latency.json has 0 bytes")


def test_every_export_has_a_row_and_the_fastest_are_named(complete_report: Path) -> None:
    told = values(complete_report)["latency"]
    places = {(row["where"], row["threads"]) for row in told["rows"]}
    assert places == {(where, threads) for where in ("STS-B pairs", "384 tokens") for threads in (1, 2)}
    assert [row["threads"] for row in told["first"]] == [1] * 15
    assert [(row["where"], row["threads"], row["how"]) for row in told["wins"]] == [
        ("STS-B pairs", 1, "ExecuTorch int8"),
        ("STS-B pairs", 2, "ExecuTorch int8"),
        ("384 tokens", 1, "LiteRT int8"),
        ("384 tokens", 2, "LiteRT int8"),
    ]
    text = (complete_report / "report.md").read_text()
    assert (
        "**The student is fastest in ExecuTorch int8 for STS-B pairs on 1 thread (1.55 ms, 11.61× the teacher and "
        "59.96× BERT-base in PyTorch); in ExecuTorch int8 for STS-B pairs on 2 threads (0.85 ms" in text
    )
    assert "| BERT-base (random weights) | PyTorch | 384 tokens | 2 | [460.35](../latency/manifest.json) |" in text
    assert "| [student](../exports/student/openvino-int8/manifest.json) | OpenVINO int8 | stsb | 17.4 MB |" in text
    assert "11.61× as fast as its teacher in ExecuTorch int8" in text
