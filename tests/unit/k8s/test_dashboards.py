"""Dashboards: up to date, complete, and with existing series."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import monitoring_series
import promql
import pytest

from k8s.monitoring.source import generate
from k8s.monitoring.source.grafana import Board

UNITS = {"short", "s", "bytes", "Bps", "percent", "percentunit", "sci", "watt", "celsius", "hertz"}
"""Grafana's units in use: Grafana would show a misspelled unit as text after the number."""
KINDS = {"timeseries", "stat", "bargauge", "table", "row"}


def read_dashboard(board: Board) -> dict[str, Any]:
    """A committed dashboard."""
    path = generate.FOLDER / "dashboards" / f"{board.uid.removeprefix('stillhouse-')}.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def panels(board: Board) -> list[dict[str, Any]]:
    return [panel for panel in read_dashboard(board)["panels"] if panel["type"] != "row"]


def expressions() -> Iterator[tuple[str, str]]:
    """Every panel's name with each of its queries."""
    for board in generate.BOARDS:
        for panel in panels(board):
            for target in panel["targets"]:
                yield f"{board.title}: {panel['title']}", target["expr"]


def variable_queries() -> Iterator[tuple[str, str]]:
    for board in generate.BOARDS:
        for variable in read_dashboard(board)["templating"]["list"]:
            if variable["type"] == "query":
                found = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"])
                assert found, variable["query"]
                yield f"{board.title}: ${variable['name']}", found[1]


def queried_series() -> set[str]:
    """Our series in dashboards and rules."""
    rules = [rule["expr"] for group in generate.groups() for rule in group["rules"]]
    queries = [expr for _, expr in (*expressions(), *variable_queries())]
    return {name for expr in (*rules, *queries) for name in promql.series(expr)}


def test_the_committed_dashboards_are_up_to_date() -> None:
    generated = generate.generated()
    assert len(generated) == 4
    stale = [name for name, text in generated.items() if (generate.FOLDER / name).read_text(encoding="utf-8") != text]
    assert stale == [], "run python -m k8s.monitoring.source.generate"
    kept = {path.relative_to(generate.FOLDER).as_posix() for path in (generate.FOLDER / "dashboards").iterdir()}
    assert kept <= {*generated}, "dashboards that no script generates"


def test_names_are_found_in_an_expression() -> None:
    expr = (
        'max by (a, run) (rate(x_total{l="y_total", m=~"$z"}[5m])) / on (b) group_left (c) n:x:sum unless on (run) '
        "time() - clamp_min(2 * w, 600) > 1e9 offset 1h or stillhouse_job_seconds_bucket"
    )
    assert promql.series(expr) == {"x_total", "n:x:sum", "w", "stillhouse_job_seconds"}


def test_every_queried_series_exists() -> None:
    known = {*monitoring_series.declared(), *monitoring_series.recorded(), *monitoring_series.FOREIGN}
    assert sorted(queried_series() - known) == []


def test_every_declared_series_is_queried() -> None:
    assert sorted({*monitoring_series.declared(), *monitoring_series.recorded()} - queried_series()) == []
    assert sorted(monitoring_series.FOREIGN - queried_series()) == []


@pytest.mark.parametrize(("panel", "expr"), [*expressions(), *variable_queries()])
def test_labels_are_those_of_the_series(panel: str, expr: str) -> None:
    """A misspelled label matches no series, without an error."""
    known = monitoring_series.declared()
    given = {"cluster", "instance", "node", "namespace", "job"}
    for name, matchers in re.findall(r"(stillhouse_\w+)\{([^}]*)\}", expr):
        metric = known[re.sub(r"_(bucket|sum|count)$", "", name)]
        labels = {label for label, _ in re.findall(r'(\w+)=~?"([^"]*)"', matchers)}
        assert labels <= {*metric._labelnames, *given}, f"{panel}: {name}"


@pytest.mark.parametrize(("panel", "expr"), [*expressions()])
def test_no_panel_takes_the_maximum_over_different_runtimes(panel: str, expr: str) -> None:
    """A maximum over instances picks one value of a run; a maximum over runtimes would hide all but the slowest."""
    known = monitoring_series.declared()
    for by, name, matchers in re.findall(r"max by \(([^)]*)\) \((stillhouse_\w+)\{([^}]*)\}\)", expr):
        told = {*by.split(", "), *re.findall(r'(\w+)="', matchers)}
        if name != "stillhouse_oldest_job_age_seconds":  # the query asks for the oldest of all kinds
            assert {*known[name]._labelnames} <= told, f"{panel}: {name}"


@pytest.mark.parametrize("board", generate.BOARDS, ids=lambda board: board.uid)
def test_a_dashboard_is_complete(board: Board) -> None:
    found = read_dashboard(board)
    assert found["uid"] == board.uid
    assert all(row["title"].endswith("?") for row in found["panels"] if row["type"] == "row"), (
        "the title of a row must be a question"
    )
    ids = Counter(panel["id"] for panel in found["panels"])
    assert max(ids.values()) == 1
    names = [variable["name"] for variable in found["templating"]["list"]]
    assert names[0] == "datasource"
    for panel in panels(board):
        defaults = panel["fieldConfig"]["defaults"]
        assert panel["type"] in KINDS
        assert defaults["unit"] in UNITS, panel["title"]
        assert panel["description"].endswith("."), panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}"
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        used = {name for target in panel["targets"] for name in re.findall(r"\$(\w+)", target["expr"])}
        assert used <= {*names, "__range", "__rate_interval"}, panel["title"]
        if defaults["unit"] == "percentunit" and panel["type"] == "timeseries" and "max" in defaults:
            assert defaults["max"] == 1


@pytest.mark.parametrize("board", generate.BOARDS, ids=lambda board: board.uid)
def test_no_two_panels_overlap_and_no_row_has_a_gap(board: Board) -> None:
    taken: Counter[tuple[int, int]] = Counter()
    for panel in read_dashboard(board)["panels"]:
        place = panel["gridPos"]
        for y in range(place["y"], place["y"] + place["h"]):
            taken.update((x, y) for x in range(place["x"], place["x"] + place["w"]))
    assert max(taken.values()) == 1
    bottom = max(y for _, y in taken)
    assert len(taken) == 24 * (bottom + 1), "a row of panels with a gap"


def test_the_dashboards_link_to_each_other_and_to_ray() -> None:
    from ray.dashboard.modules.metrics.dashboards import data_dashboard_panels as data
    from ray.dashboard.modules.metrics.dashboards import default_dashboard_panels as default
    from ray.dashboard.modules.metrics.dashboards import train_dashboard_panels as train

    there = {board.uid for board in generate.BOARDS}
    for module in (data, default, train):
        there |= {value.default_uid for value in vars(module).values() if hasattr(value, "default_uid")}
    for board in generate.BOARDS:
        assert {link["url"].removeprefix("/d/") for link in read_dashboard(board)["links"]} <= there
        assert len(board.links) >= 3
