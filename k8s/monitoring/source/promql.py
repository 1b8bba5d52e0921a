"""The PromQL that both dashboards are written in, and the panel they share.

A series of a run is summed or picked over instances, because workers that are started again may have another one.
"""

from k8s.monitoring.source.grafana import Panel, Query

BY_RUN = "by (cluster, run)"
RUN_NAME = "{{run}}"


def of_runs(name: str, *matchers: str) -> str:
    """A series of the chosen runs."""
    chosen = ('cluster=~"$cluster"', 'run=~"$run"', *matchers)
    return f"{name}{{{', '.join(chosen)}}}"


def of_clusters(name: str, *matchers: str) -> str:
    """A series of the chosen clusters."""
    chosen = ('cluster=~"$cluster"', *matchers)
    return f"{name}{{{', '.join(chosen)}}}"


def last(name: str, *matchers: str, by: str = BY_RUN) -> str:
    """One value a run, whatever the instance."""
    return f"max {by} ({of_runs(name, *matchers)})"


def of_gpus(name: str) -> str:
    return f'{name}{{Hostname=~"$node"}}'


ALERTS = Panel(
    "Alerts",
    "Alerts of this service that fire now. What to do about each is in k8s/monitoring/RUNBOOK.md.",
    "short",
    (Query('count(ALERTS{alertname=~"Stillhouse.*", alertstate="firing"}) or vector(0)', "firing"),),
    kind="stat",
    width=3,
    bad=1,
    decimals=0,
)
