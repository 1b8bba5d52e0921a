"""Dashboards as data, and what Grafana makes of them: the only door to the Grafana SDK.

A dashboard is rows, a row is one question, and its panels are the answer::

    Board("Training run", …, rows=(Row("Is it training?", (Panel("Steps", …, (Query("stillhouse_step"),)), …)), …))
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from grafana_foundation_sdk.builders import bargauge, common, dashboard, prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    BigValueGraphMode,
    LegendDisplayMode,
    LegendPlacement,
    ScaleDistribution,
    SortOrder,
    StackingMode,
    TooltipDisplayMode,
    VizOrientation,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    DataSourceRef,
    Threshold,
    ThresholdsMode,
    VariableOption,
    VariableRefresh,
    VariableSort,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

WIDTH, HEIGHT = 24, {"graph": 8, "stat": 4, "bars": 8, "table": 5}
_RED, _GREEN = "red", "green"
_DATASOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
_ALL = VariableOption(selected=True, text="All", value="$__all")

Kind: TypeAlias = Literal["graph", "stat", "bars", "table"]


@dataclass(frozen=True)
class Query:
    """A PromQL expression and what its lines are called."""

    expr: str
    legend: str = ""


@dataclass(frozen=True)
class Panel:
    """One picture."""

    title: str
    description: str
    unit: str
    """Grafana's name of it: ``s``, ``bytes``, ``percentunit``, ``short`` …"""
    queries: tuple[Query, ...]
    kind: Kind = "graph"
    width: int = 8
    low: float | None = None
    high: float | None = None
    stacked: bool = False
    logarithmic: bool = False
    bad: float | None = None
    """From here on a value is red."""
    decimals: int | None = None


@dataclass(frozen=True)
class Row:
    """A question and the panels that answer it."""

    question: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Variable:
    """A choice at the head of a dashboard: the values of a label."""

    name: str
    label: str
    query: str


@dataclass(frozen=True)
class Link:
    """To another dashboard, with the same time and variables."""

    title: str
    url: str


@dataclass(frozen=True)
class Board:
    """A dashboard."""

    title: str
    uid: str
    description: str
    variables: tuple[Variable, ...]
    links: tuple[Link, ...]
    rows: tuple[Row, ...]
    since: str = "now-6h"


def as_json(board: Board) -> str:
    """The dashboard as Grafana imports it."""
    made = (
        dashboard.Dashboard(board.title)
        .uid(board.uid)
        .description(board.description)
        .tags(["stillhouse"])
        .time(board.since, "now")
        .timezone("browser")
        .refresh("30s")
        .readonly()
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
    )
    for variable in board.variables:
        made = made.with_variable(_variable(variable))
    for link in board.links:
        made = made.link(
            dashboard.DashboardLink(link.title)
            .type(DashboardLinkType.LINK)
            .url(link.url)
            .keep_time(True)
            .include_vars(True)
            .target_blank(True)
        )
    numbers = itertools.count(1)
    for row in board.rows:
        made = made.with_row(dashboard.Row(row.question).id(next(numbers)))
        for panel in row.panels:
            made = made.with_panel(_BUILDERS[panel.kind](panel).id(next(numbers)))
    return JSONEncoder(indent=2, sort_keys=True).encode(made.build()) + "\n"


def _variable(variable: Variable) -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable(variable.name)
        .label(variable.label)
        .query(variable.query)
        .datasource(_DATASOURCE)
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.NATURAL_ASC)
        .multi(True)
        .include_all(True)
        .current(_ALL)
    )


def _graph(panel: Panel) -> Any:
    made = _common(timeseries.Panel(), panel).fill_opacity(60 if panel.stacked else 8).line_width(1).span_nulls(False)
    made = made.legend(
        common.VizLegendOptions()
        .display_mode(LegendDisplayMode.LIST)
        .placement(LegendPlacement.BOTTOM)
        .show_legend(True)
    ).tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING))
    if panel.stacked:
        made = made.stacking(common.StackingConfig().mode(StackingMode.NORMAL))
    if panel.logarithmic:
        made = made.scale_distribution(common.ScaleDistributionConfig().type(ScaleDistribution.LOG).log(10))
    return made


def _stat(panel: Panel) -> Any:
    return (
        _common(stat.Panel(), panel)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .graph_mode(BigValueGraphMode.NONE)
    )


def _bars(panel: Panel) -> Any:
    return (
        _common(bargauge.Panel(), panel)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .orientation(VizOrientation.HORIZONTAL)
    )


def _table(panel: Panel) -> Any:
    return _common(table.Panel(), panel)


_BUILDERS: dict[str, Callable[[Panel], Any]] = {"graph": _graph, "stat": _stat, "bars": _bars, "table": _table}


def _common(made: Any, panel: Panel) -> Any:
    made = (
        made.title(panel.title)
        .description(panel.description)
        .unit(panel.unit)
        .datasource(_DATASOURCE)
        .height(HEIGHT[panel.kind])
        .span(panel.width)
    )
    for number, query in enumerate(panel.queries):
        asked = prometheus.Dataquery().expr(query.expr).legend_format(query.legend or "__auto").ref_id(chr(65 + number))
        if panel.kind == "table":
            asked = asked.format(PromQueryFormat.TABLE)
        made = made.with_target(asked.range() if panel.kind == "graph" else asked.instant())
    if panel.low is not None:
        made = made.min(panel.low)
    if panel.high is not None:
        made = made.max(panel.high)
    if panel.decimals is not None:
        made = made.decimals(panel.decimals)
    steps = [Threshold(value=None, color=_GREEN)]
    if panel.bad is not None:
        steps.append(Threshold(value=panel.bad, color=_RED))
    return made.thresholds(dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps))
