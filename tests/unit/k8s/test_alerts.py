"""Alert rules: valid and documented, and promtool tests show when each one fires and when it does not."""

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from cluster.jobs.failures import Cause
from k8s.monitoring.source import generate

FILES = sorted((generate.FOLDER / "rules").glob("*.yaml"))
ALERTS = {rule["alert"]: rule for rule in generate.alerts()}

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="needs promtool (on Debian: apt-get install prometheus)"
)


def promtool(*given: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *map(str, given)], capture_output=True, text=True)


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return found


def names(path: Path) -> list[str]:
    return [rule["alert"] for group in read(path)["groups"] for rule in group["rules"] if "alert" in rule]


def test_the_alerts_are_those_that_a_run_can_need() -> None:
    assert len(ALERTS) == sum(len(names(path)) for path in FILES) >= 20
    assert all(re.fullmatch(r"Stillhouse([A-Z][a-z]+)+", name) for name in ALERTS)


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_says_what_it_is_and_what_to_do(name: str) -> None:
    rule = ALERTS[name]
    assert rule["labels"]["severity"] in ("critical", "warning")
    summary, runbook = rule["annotations"]["summary"], rule["annotations"]["runbook"]
    assert re.search(r"\{\{ \$(value|labels\.\w+)", summary) or "queue" in summary, (
        "the summary must show a value or a label"
    )
    assert len(runbook.split()) > 25, "the runbook must say what to check and what to do"
    assert _unknown(runbook) == []


def test_every_cause_of_a_repeated_attempt_is_alerted_on_but_waiting_for_others() -> None:
    found = re.search(r'cause=~"([^"]+)"', ALERTS["StillhouseJobsRetried"]["expr"])
    assert found is not None
    assert {*found[1].split("|")} == {*get_args(Cause)} - {"busy"}
    runbook = ALERTS["StillhouseJobsRetried"]["annotations"]["runbook"]
    assert all(f"`{cause}`" in runbook for cause in found[1].split("|"))


PANELS = {panel.title for board in generate.BOARDS for panel in board.panels}


def _unknown(runbook: str) -> list[str]:
    """Alerts, panels and modules that a text mentions but that do not exist."""
    alerts = set(re.findall(r"Stillhouse[A-Z]\w+", runbook)) - ALERTS.keys()
    panels = set(re.findall(r'panel "([^"]+)"', runbook)) - PANELS
    modules = {name for name in re.findall(r"python -m ([\w.]+)", runbook) if importlib.util.find_spec(name) is None}
    return sorted(alerts | panels | modules)


def test_dead_links_in_a_runbook_are_found() -> None:
    # In two parts, because another test checks that all mentioned commands exist.
    nowhere = "cluster." + "jbos"
    text = f'See StillhouseLost, the panel "Nothing" and `python -m {nowhere} list`; StillhouseGpuHot, panel "Steps".'
    assert _unknown(text) == ["Nothing", "StillhouseLost", nowhere]


@needs_promtool
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_promtool_proves_the_rules(path: Path) -> None:
    checked = promtool("check", "rules", "--lint-fatal", path)
    assert checked.returncode == 0, checked.stderr
    tested = promtool("test", "rules", path.parent / "tests" / path.name)
    assert tested.returncode == 0, tested.stdout + tested.stderr


@needs_promtool
@pytest.mark.long
@pytest.mark.parametrize("name", ALERTS)
@pytest.mark.parametrize("expr", ["vector(1) < 0", "vector(1)"], ids=["never", "always"])
def test_changed_rules_fail_their_promtool_tests(tmp_path: Path, name: str, expr: str) -> None:
    (path,) = (path for path in FILES if name in names(path))
    rules = read(path)
    for group in rules["groups"]:
        for rule in group["rules"]:
            if rule.get("alert") == name:
                rule["expr"] = expr
    tests = read(path.parent / "tests" / path.name)
    tests["rule_files"] = ["rules.yaml"]
    tests["tests"] = [test for test in tests["tests"] if f'"{name}"' in str(test)]
    assert tests["tests"], "no test expects it"
    for file, content in (("rules.yaml", rules), ("tests.yaml", tests)):
        (tmp_path / file).write_text(yaml.safe_dump(content), encoding="utf-8")
    found = promtool("test", "rules", tmp_path / "tests.yaml")
    assert found.returncode == 1
    assert name in found.stdout + found.stderr


def test_the_runbook_has_a_heading_for_every_alert() -> None:
    text = (generate.FOLDER / "RUNBOOK.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (\w+)$", text, re.MULTILINE) == list(ALERTS)
    assert _unknown(text) == []
