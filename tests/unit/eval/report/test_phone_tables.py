"""Phone tables of the report: speed-ups, the paper's phone, proxies, and links of waiting jobs."""

import json
import re
import sys
from pathlib import Path

import paths
import phone_setup
import pytest
from result_folders import PHONES, phone, suite

from cluster.artifacts import artifact, commit, errors, stage
from cluster.serving import links
from cluster.storage import filesystem
from eval.mobile.stage import STAGE, Mobile
from eval.report.phone_tables import table
from eval.results.collect import collect
from eval.results.comparison import compare

ROOT = paths.ROOT


@pytest.fixture(scope="module")
def shared_results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results with every measurement."""
    return suite(tmp_path_factory.mktemp("whole") / "out")


def test_phone_table_shows_speedup_and_time_saved(shared_results):
    found = table(compare(collect(shared_results)))
    told = found.only("On", "Model", "p50 ms", "×", "% less time", "Size")
    rows = [[cell.text for cell in row.cells] for row in told.rows]
    assert rows[:4] == [
        ["in-the-hand", "student", "640.0", "2.00×", "50 %", "17.4 MB"],
        ["in-the-hand", "teacher", "1280.0", "–", "–", "22.7 MB"],
        ["on-a-cable", "student", "130.0", "3.49×", "71 %", "17.4 MB"],
        ["on-a-cable", "teacher", "454.0", "–", "–", "22.7 MB"],
    ]
    assert [row.cells[0].detail for row in found.rows[:4:2]] == [
        "Linux; Android 14; Pixel 7, in a browser",
        "Google Pixel 7, GS201, Android 14, over adb",
    ]
    assert rows[-2:] == [
        ["iPhone 7 Plus (paper)", "BERT-base", "1118", "–", "–", "–"],
        ["iPhone 7 Plus (paper)", "DistilBERT", "319", "3.50×", "71 %", "207.0 MB"],
    ]
    assert [row.kind for row in found.rows] == ["", "", "group", "", "group", "", "paper", "paper"]
    assert found.rows[0].cells[0].source == "mobile/in-the-hand"


def test_a_proxy_is_labelled_in_rows_finding_and_note(shared_results):
    found = table(compare(collect(shared_results)))
    assert [row.cells[0].text for row in found.rows[4:6]] == ["proxy, no phone"] * 2
    finding = next(line for line in found.findings if line.startswith("this-host (proxy, no phone)"))
    assert "122.0 ms on 1 thread, 1.97× as fast as the teacher in the same runtime: 49 % less time" in finding
    assert "A proxy is no phone: AMD EPYC, with processes limited to 1,024 MB" in found.notes[-1]


def test_a_desktop_browser_is_labelled(tmp_path):
    desk = PHONES["in-the-hand"] | {"device": {"user_agent": "Mozilla/5.0 (X11; Linux)", "mobile": False}}
    with artifact.create(tmp_path / "mobile" / "desk", kind="benchmark", inputs={}, recipe={}) as draft:
        filesystem.write_json(draft.path / "mobile.json", phone(**desk))
    found = table(compare(collect(tmp_path)))
    assert found.rows[0].cells[0].detail == "X11; Linux, in a browser that is no phone"


def test_findings_list_failed_and_unfit_measurements(shared_results):
    findings = table(compare(collect(shared_results))).findings
    assert "in-the-hand, backend webgpu, threads 1: not measured, no adapter." in findings
    assert "this-host, model teacher, length 384, threads 4: not measured, does not fit into 1024 MB." in findings
    assert any(line.startswith("on-a-cable is unfit: the phone reached thermal status 3") for line in findings)


def test_a_student_that_is_slower_takes_more_time(tmp_path):
    slow = phone(**PHONES["this-host"] | {"ms": {"student": 300.0, "teacher": 240.0}})
    with artifact.create(tmp_path / "mobile" / "slow", kind="benchmark", inputs={}, recipe={}) as draft:
        filesystem.write_json(draft.path / "mobile.json", slow)
    found = table(compare(collect(tmp_path)))
    assert [cell.text for cell in found.only("×", "% less time").rows[0].cells] == ["0.80×", "−25 %"]
    assert "25 % more time" in found.findings[0]


def test_the_report_shows_the_link_while_its_job_waits(tmp_path):
    """The fake adb makes a report when it should open the link on the phone, and then fails."""
    out = tmp_path / "out"
    with artifact.create(tmp_path / "page", kind="export", inputs={}, recipe={}) as draft:
        draft.facts.update({"format": "page", "version": "v1", "models": [{"role": "student", "positions": 512}]})
    program, command = phone_setup.fake_adb(tmp_path), f'"{sys.executable}" -m eval.report "{out}" --out "{out}/report"'
    case = f'case "$*" in *"am start"*) cd "{ROOT}" && {command} >&2; exit 1 ;; esac'
    program.write_text(program.read_text().replace("\nexec", f"\n{case}\nexec"))
    place = {"host": "127.0.0.1", "port": 0, "wait_seconds": 900.0, "reach": "adb", "adb": str(program)}
    asked = Mobile.of({"way": {"kind": "browser"}, "placement": place})
    with pytest.raises(errors.StageError):
        stage.execute(STAGE, asked, {"page": tmp_path / "page"}, out / "mobile" / "pocket")
    made = artifact.read(out / "report", "report")
    link = json.loads((made.path / "report.json").read_text())["phones"]["waiting"][0]["link"]
    assert re.fullmatch(r"http://localhost:\d+/\?t=\S{32}", link)
    assert all(link in (made.path / name).read_text() for name in ("report.html", "report.md", "summary.txt"))
    assert (made.path / "plots" / "link-pocket.svg").read_text() == links.svg(link)
    assert 'aria-label="The link of pocket"' in (made.path / "report.html").read_text()
    assert not list((out / "mobile" / ".pocket.partial").glob("link.*")), "the link has ended"
    with pytest.raises(commit.ArtifactError, match="holds no results"):
        collect(out)
