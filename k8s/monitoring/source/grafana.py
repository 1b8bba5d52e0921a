"""Dashboards as data, and their JSON for Grafana. Only this module imports the Grafana SDK.

The rows of a dashboard are questions, and the panels of a row answer its question::

    Board("Training run", …, rows={"Is it training?": (graph("Steps", "…", "short", Query("stillhouse_step")), …), …})
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias, get_args

from grafana_foundation_sdk.builders import bargauge, common, dashboard, prometheus, timeseries
from grafana_foundation_sdk.builders import stat as stat_sdk
from grafana_foundation_sdk.builders import table as table_sdk
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
    """A PromQL expression and the name of its lines in the legend."""

    expr: str
    legend: str = ""


@dataclass(frozen=True)
class Panel:
    """A graph, a number, a bar chart or a table."""

    title: str
    description: str
    unit: str
    """Grafana's name of the unit: ``s``, ``bytes``, ``percentunit``, ``short`` …"""
    queries: tuple[Query, ...]
    kind: Kind = "graph"
    width: int = 8
    low: float | None = None
    high: float | None = None
    stacked: bool = False
    logarithmic: bool = False
    bad: float | None = None
    """Values from this one on are red."""
    decimals: int | None = None


def _panel(kind: Kind, title: str, description: str, unit: str, *queries: Query, **options: Any) -> Panel:
    """A panel. The unit ``count`` is ``short`` without decimals. Linear graphs and bars start at 0."""
    if unit == "count":
        unit, options = "short", {"decimals": 0, **options}
    if kind in ("graph", "bars") and "logarithmic" not in options:
        options = {"low": 0, **options}
    return Panel(title, description, unit, queries, kind, **options)


graph, stat, bars, table = (partial(_panel, kind) for kind in get_args(Kind))


@dataclass(frozen=True)
class Variable:
    """A menu at the top of a dashboard with the values of a label."""

    name: str
    label: str
    query: str


@dataclass(frozen=True)
class Link:
    """A link to another dashboard, which keeps the time range and the variables."""

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
    rows: Mapping[str, tuple[Panel, ...]]
    """The panels of each row by the row's question."""

    @property
    def panels(self) -> Iterator[Panel]:
        return itertools.chain.from_iterable(self.rows.values())


def as_json(board: Board) -> str:
    """The dashboard as JSON for Grafana's import."""
    built = (
        dashboard.Dashboard(board.title)
        .uid(board.uid)
        .description(board.description)
        .tags(["stillhouse"])
        .time("now-6h", "now")
        .timezone("browser")
        .refresh("30s")
        .readonly()
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
    )
    for variable in board.variables:
        built = built.with_variable(_variable(variable))
    for link in board.links:
        built = built.link(
            dashboard.DashboardLink(link.title)
            .type(DashboardLinkType.LINK)
            .url(link.url)
            .keep_time(True)
            .include_vars(True)
            .target_blank(True)
        )
    numbers = itertools.count(1)
    for question, panels in board.rows.items():
        built = built.with_row(dashboard.Row(question).id(next(numbers)))
        for panel in panels:
            built = built.with_panel(_BUILDERS[panel.kind](panel).id(next(numbers)))
    return JSONEncoder(indent=2, sort_keys=True).encode(built.build()) + "\n"


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
    built = _common(timeseries.Panel(), panel).fill_opacity(60 if panel.stacked else 8).line_width(1).span_nulls(False)
    built = built.legend(
        common.VizLegendOptions()
        .display_mode(LegendDisplayMode.LIST)
        .placement(LegendPlacement.BOTTOM)
        .show_legend(True)
    ).tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING))
    if panel.stacked:
        built = built.stacking(common.StackingConfig().mode(StackingMode.NORMAL))
    if panel.logarithmic:
        built = built.scale_distribution(common.ScaleDistributionConfig().type(ScaleDistribution.LOG).log(10))
    return built


def _stat(panel: Panel) -> Any:
    return (
        _common(stat_sdk.Panel(), panel)
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
    return _common(table_sdk.Panel(), panel)


_BUILDERS: dict[str, Callable[[Panel], Any]] = {"graph": _graph, "stat": _stat, "bars": _bars, "table": _table}


def _common(builder: Any, panel: Panel) -> Any:
    """``builder`` with what every kind of panel has."""
    builder = (
        builder.title(panel.title)
        .description(panel.description)
        .unit(panel.unit)
        .datasource(_DATASOURCE)
        .height(HEIGHT[panel.kind])
        .span(panel.width)
    )
    for number, query in enumerate(panel.queries):
        target = (
            prometheus.Dataquery().expr(query.expr).legend_format(query.legend or "__auto").ref_id(chr(65 + number))
        )
        if panel.kind == "table":
            target = target.format(PromQueryFormat.TABLE)
        builder = builder.with_target(target.range() if panel.kind == "graph" else target.instant())
    if panel.low is not None:
        builder = builder.min(panel.low)
    if panel.high is not None:
        builder = builder.max(panel.high)
    if panel.decimals is not None:
        builder = builder.decimals(panel.decimals)
    steps = [Threshold(value=None, color=_GREEN)]
    if panel.bad is not None:
        steps.append(Threshold(value=panel.bad, color=_RED))
    return builder.thresholds(dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps))
