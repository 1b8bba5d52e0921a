"""PromQL expressions that the dashboards share, and the panel on both.

Queries aggregate a run's series over instances: restarted workers may have another instance.
"""

from k8s.monitoring.source.grafana import Query, stat

BY_RUN = "by (cluster, run)"
RUN_NAME = "{{run}}"


def of_runs(name: str, *matchers: str) -> str:
    """A series of the runs that the menu selects."""
    return of_clusters(name, 'run=~"$run"', *matchers)


def of_clusters(name: str, *matchers: str) -> str:
    """A series of the clusters that the menu selects."""
    chosen = ('cluster=~"$cluster"', *matchers)
    return f"{name}{{{', '.join(chosen)}}}"


def last(name: str, *matchers: str, by: str = BY_RUN) -> str:
    """One value for each run, over all instances."""
    return f"max {by} ({of_runs(name, *matchers)})"


def per_run(name: str, *matchers: str) -> Query:
    """A line for each run, with the run's name."""
    return Query(last(name, *matchers), RUN_NAME)


def of_gpus(name: str) -> str:
    return f'{name}{{Hostname=~"$node"}}'


ALERTS = stat(
    "Alerts",
    "Alerts of this service that fire now. What to do about each is in k8s/monitoring/RUNBOOK.md.",
    "count",
    Query('count(ALERTS{alertname=~"Stillhouse.*", alertstate="firing"}) or vector(0)', "firing"),
    width=3,
    bad=1,
)
