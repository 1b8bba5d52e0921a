"""Send a dashboard's queries to Prometheus as Grafana does, and read the answers."""

import json
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from k8s.monitoring.source.grafana import Board, Panel, Query

_TIMEOUT = 30.0
_POINTS = 240
"""Points of a line; Grafana asks for about one for each pixel."""


@dataclass(frozen=True)
class Window:
    """The time range of a picture."""

    end: float
    """Unix time."""
    seconds: float
    rate_seconds: float = 60.0
    """Grafana's ``$__rate_interval``: four scrape intervals at least."""

    @property
    def step(self) -> float:
        return max(1.0, self.seconds / _POINTS)


@dataclass(frozen=True)
class Line:
    """A line in a panel: a series and its name in the legend."""

    name: str
    labels: Mapping[str, str]
    times: Sequence[float]
    values: Sequence[float]


@dataclass(frozen=True)
class Source:
    """A Prometheus server."""

    url: str

    def lines(self, panel: Panel, window: Window) -> list[Line]:
        """The lines of a panel: over time in a graph, with one value each elsewhere."""
        return [line for query in panel.queries for line in self._lines(query, panel.kind == "graph", window)]

    def _lines(self, query: Query, over_time: bool, window: Window) -> list[Line]:
        expr = filled(query.expr, window)
        if over_time:
            parameters = {"query": expr, "start": window.end - window.seconds, "end": window.end, "step": window.step}
            found = self.get("query_range", parameters)["result"]
        else:
            found = [
                {"metric": one["metric"], "values": [one["value"]]}
                for one in self.get("query", {"query": expr, "time": window.end})["result"]
            ]
        return [_line(query, one["metric"], one["values"]) for one in found]

    def get(self, path: str, parameters: Mapping[str, Any]) -> Any:
        """The ``data`` of the HTTP API's answer.

        Raises:
            ValueError: Prometheus refuses the query or does not answer.
        """
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(url, timeout=_TIMEOUT) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise ValueError(f"{parameters}: {json.load(error)['error']}") from None
        except OSError as error:
            raise ValueError(f"no Prometheus at {self.url}: {error}") from None


def filled(expr: str, window: Window) -> str:
    """An expression with Grafana's variables filled in; every menu selects all of its values."""
    for name, value in (
        ("$__rate_interval", f"{window.rate_seconds:.0f}s"),
        ("$__range", f"{window.seconds:.0f}s"),
        ("$cluster", ".*"),
        ("$run", ".*"),
        ("$node", ".*"),
    ):
        expr = expr.replace(name, value)
    assert "$" not in expr, f"unknown variable in {expr}"
    return expr


def variables(board: Board) -> list[Query]:
    """Queries for the series whose labels fill a dashboard's menus."""
    return [Query(re.sub(r"label_values\((.*), \w+\)", r"\1", variable.query)) for variable in board.variables]


def _line(query: Query, labels: Mapping[str, str], points: Sequence[tuple[float, str]]) -> Line:
    name = re.sub(r"\{\{(\w+)\}\}", lambda found: labels.get(found[1], ""), query.legend)
    return Line(name, labels, [time for time, _ in points], [float(value) for _, value in points])
