"""The dashboard of the queue and its results: what waits, how jobs fare, how good students are."""

from dataclasses import replace

from k8s.monitoring.source.grafana import Board, Link, Query, Variable, bars, graph, stat
from k8s.monitoring.source.promql import ALERTS, of_clusters

_OURS = '{namespace="stillhouse"}'
_BY_KIND = "by (cluster, kind)"
_STEP = "$__rate_interval"
"""The time between two points of a graph."""
_TEACHER = 'model="teacher"'
_TO_TEACHER = (
    f"max by (cluster, task, model) ({of_clusters('stillhouse_score_ratio')}) / on (cluster, task) group_left "
    + f"max by (cluster, task) ({of_clusters('stillhouse_score_ratio', _TEACHER)})"
)


def _increase(name: str, *by: str, window: str = "$__range") -> str:
    """The growth of a counter in a window; by default the time that is shown."""
    return f"sum by ({', '.join(('cluster', *by))}) (increase({of_clusters(name)}[{window}]))"


def _rate(name: str, *by: str) -> str:
    """The growth of a counter per second."""
    return f"sum by ({', '.join(('cluster', *by))}) (rate({of_clusters(name)}[$__rate_interval]))"


def _quantile(share: float, name: str) -> Query:
    summed = f"sum by (cluster, kind, le) (rate({of_clusters(name + '_bucket')}[$__range]))"
    return Query(f"histogram_quantile({share}, {summed})", f"{{{{kind}}}}: {share * 100:g} %")


def _latency(percentile: int) -> Query:
    """The time of one call in the last benchmark."""
    series = of_clusters("stillhouse_latency_seconds", f'percentile="{percentile}"')
    return Query(f"max by (cluster, model, runtime, tokens) ({series})", "{{model}}, {{tokens}}: {{runtime}}")


RESULTS = Board(
    title="Queue and results",
    uid="stillhouse-results",
    description="What waits and runs, how jobs fare, how text becomes rows, and how good, fast and small students are.",
    variables=(Variable("cluster", "Cluster", "label_values(stillhouse_queue_turn_timestamp_seconds, cluster)"),),
    links=(
        Link("Training run", "/d/stillhouse-training"),
        Link("Ray cluster", "/d/rayDefaultDashboard"),
        Link("Ray Data", "/d/rayDataDashboard"),
    ),
    rows={
        "What waits in the queue?": (
            stat(
                "Waiting",
                "Jobs that wait: for room, for other jobs, to be tried again.",
                "count",
                Query(f"sum by (cluster) ({of_clusters('stillhouse_jobs_waiting')})", "{{cluster}}"),
                width=4,
            ),
            stat(
                "Running",
                "Jobs that run.",
                "count",
                Query(f"sum by (cluster) ({of_clusters('stillhouse_jobs_running')})", "{{cluster}}"),
                width=4,
            ),
            stat(
                "Oldest waits since",
                "Time since the oldest waiting job was submitted.",
                "s",
                Query(f"max by (cluster) ({of_clusters('stillhouse_oldest_job_age_seconds')})", "{{cluster}}"),
                width=4,
                bad=3600,
            ),
            stat(
                "Last turn",
                "Time since the queue last checked its jobs, which it does every second.",
                "s",
                Query(
                    f"time() - max by (cluster) ({of_clusters('stillhouse_queue_turn_timestamp_seconds')})",
                    "{{cluster}}",
                ),
                width=4,
                bad=300,
            ),
            stat(
                "Draining",
                "1 while the queue starts no more jobs (stillhouse jobs drain).",
                "count",
                Query(f"max by (cluster) ({of_clusters('stillhouse_queue_draining')})", "{{cluster}}"),
                width=4,
                bad=1,
            ),
            replace(ALERTS, width=4),
            graph(
                "Waiting by kind",
                "A kind is what a job makes, or what its submitter called it.",
                "short",
                Query(f"sum {_BY_KIND} ({of_clusters('stillhouse_jobs_waiting')})", "{{kind}}"),
                stacked=True,
            ),
            graph(
                "Running by kind",
                "Jobs that run, by what they make.",
                "short",
                Query(f"sum {_BY_KIND} ({of_clusters('stillhouse_jobs_running')})", "{{kind}}"),
                stacked=True,
            ),
            graph(
                "Oldest by kind",
                "Time since the oldest waiting job of a kind was submitted.",
                "s",
                Query(f"max {_BY_KIND} ({of_clusters('stillhouse_oldest_job_age_seconds')})", "{{kind}}"),
            ),
        ),
        "How do jobs fare?": (
            bars(
                "Ended, by how",
                "Jobs that ended within the time that is shown. Skipped ones were done before.",
                "short",
                Query(_increase("stillhouse_jobs_ended_total", "state"), "{{state}}"),
                width=6,
                decimals=0,
            ),
            bars(
                "Repeated, by cause",
                "Failed attempts: a worker died, a node was lost, a store or a network did not answer (outage), "
                "memory ran out, another process used the same folder (busy).",
                "short",
                Query(_increase("stillhouse_job_retries_total", "cause"), "{{cause}}"),
                width=6,
                decimals=0,
            ),
            graph(
                "Attempts begun",
                "Per minute, by kind.",
                "short",
                Query("60 * " + _rate("stillhouse_job_attempts_total", "kind"), "{{kind}}"),
                width=12,
            ),
            bars(
                "Wait before the first attempt",
                "Median and ninth decile of the jobs that began within the time that is shown.",
                "s",
                _quantile(0.5, "stillhouse_job_wait_seconds"),
                _quantile(0.9, "stillhouse_job_wait_seconds"),
                width=12,
            ),
            bars(
                "How long jobs take",
                "Median and ninth decile of the last attempts of jobs that ended within the time that is shown.",
                "s",
                _quantile(0.5, "stillhouse_job_seconds"),
                _quantile(0.9, "stillhouse_job_seconds"),
                width=12,
            ),
        ),
        "How fast does text become rows?": (
            graph(
                "Input per second",
                "Bytes of finished files, by task.",
                "Bps",
                Query(_rate("stillhouse_unit_bytes_total", "task"), "{{task}}"),
                width=6,
            ),
            graph(
                "Tokens per second",
                "Written to row files.",
                "short",
                Query(_rate("stillhouse_tokens_made_total"), "{{cluster}}"),
                width=6,
            ),
            graph(
                "Files finished",
                "Per minute, by task.",
                "short",
                Query("60 * " + _rate("stillhouse_units_total", "task"), "{{task}}"),
                width=6,
            ),
            bars(
                "Documents, by outcome",
                "Within the time that is shown: kept, dropped by cleaning, failed in the tokenizer.",
                "short",
                Query(_increase("stillhouse_documents_total", "task", "outcome"), "{{task}}: {{outcome}}"),
                width=6,
            ),
            graph(
                "Actors",
                "That are up, by task.",
                "short",
                Query(f"sum by (cluster, task) ({of_clusters('stillhouse_actors')})", "{{task}}"),
                width=12,
            ),
            graph(
                "Actors that died, files started again",
                "When an actor dies, another one starts its file again.",
                "short",
                Query(_increase("stillhouse_actor_deaths_total", "task", window=_STEP), "{{task}}: deaths"),
                Query(_increase("stillhouse_lost_units_total", "task", window=_STEP), "{{task}}: started again"),
                width=12,
            ),
        ),
        "How good is the student by now?": (
            bars(
                "Scores",
                "Of the models that the queue has fine-tuned last, median of their seeds.",
                "percentunit",
                Query(
                    f"max by (cluster, model, task) ({of_clusters('stillhouse_score_ratio')})", "{{task}}: {{model}}"
                ),
                width=12,
                high=1,
            ),
            bars(
                "Kept of the teacher's score",
                "Score of a model divided by that of the teacher, fine-tuned by the same code on the same task. "
                "The paper kept 97 %.",
                "percentunit",
                Query(_TO_TEACHER, "{{task}}: {{model}}"),
                width=12,
                low=None,
                decimals=1,
            ),
        ),
        "How fast and how small is it?": (
            bars(
                "Median time of one call",
                "In the last benchmark, by tokens of a text or what texts they are, on the machine that ran it: "
                "compare models there, not clusters.",
                "s",
                _latency(50),
                width=12,
            ),
            bars(
                "Slowest calls",
                "99th percentile of the same benchmark.",
                "s",
                _latency(99),
                width=12,
            ),
            bars(
                "Size of the weights",
                "On disk, by format.",
                "bytes",
                Query(
                    f"max by (cluster, model, weights) ({of_clusters('stillhouse_model_bytes')})",
                    "{{model}}: {{weights}}",
                ),
                width=24,
            ),
        ),
        "Is there room on the disks?": (
            graph(
                "Free on the volumes",
                "Share of a volume that is free. Below a tenth there is an alert.",
                "percentunit",
                Query(
                    f"min by (persistentvolumeclaim) (kubelet_volume_stats_available_bytes{_OURS} / "
                    f"kubelet_volume_stats_capacity_bytes{_OURS})",
                    "{{persistentvolumeclaim}}",
                ),
                width=24,
                high=1,
            ),
        ),
    },
)
