"""The dashboard of the queue and its results: what waits, how jobs fare, how good students are."""

from k8s.monitoring.source.grafana import Board, Link, Panel, Query, Row, Variable
from k8s.monitoring.source.promql import ALERTS, of_clusters

_OURS = '{namespace="stillhouse"}'
_BY_KIND = "by (cluster, kind)"
_TEACHER = 'model="teacher"'
_TO_TEACHER = (
    f"max by (cluster, task, model) ({of_clusters('stillhouse_score_ratio')}) / on (cluster, task) group_left "
    + f"max by (cluster, task) ({of_clusters('stillhouse_score_ratio', _TEACHER)})"
)


def _increase(name: str, *by: str) -> str:
    """What a counter has grown by in the time that is shown."""
    return f"sum by ({', '.join(('cluster', *by))}) (increase({of_clusters(name)}[$__range]))"


def _rate(name: str, *by: str) -> str:
    """What a counter grows by in a second."""
    return f"sum by ({', '.join(('cluster', *by))}) (rate({of_clusters(name)}[$__rate_interval]))"


def _lately(name: str, *by: str) -> str:
    """What a counter has grown by since the point before."""
    return f"sum by ({', '.join(('cluster', *by))}) (increase({of_clusters(name)}[$__rate_interval]))"


def _quantile(share: float, name: str) -> Query:
    summed = f"sum by (cluster, kind, le) (rate({of_clusters(name + '_bucket')}[$__range]))"
    return Query(f"histogram_quantile({share}, {summed})", f"{{{{kind}}}}: {share * 100:g} %")


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
    rows=(
        Row(
            "What waits in the queue?",
            (
                Panel(
                    "Waiting",
                    "Jobs that wait: for room, for other jobs, to be tried again.",
                    "short",
                    (Query(f"sum by (cluster) ({of_clusters('stillhouse_jobs_waiting')})", "{{cluster}}"),),
                    kind="stat",
                    width=4,
                    decimals=0,
                ),
                Panel(
                    "Running",
                    "Jobs that run.",
                    "short",
                    (Query(f"sum by (cluster) ({of_clusters('stillhouse_jobs_running')})", "{{cluster}}"),),
                    kind="stat",
                    width=4,
                    decimals=0,
                ),
                Panel(
                    "Oldest waits since",
                    "Time since the oldest waiting job was submitted.",
                    "s",
                    (Query(f"max by (cluster) ({of_clusters('stillhouse_oldest_job_age_seconds')})", "{{cluster}}"),),
                    kind="stat",
                    width=4,
                    bad=3600,
                ),
                Panel(
                    "Last turn",
                    "Time since the queue did all there was to do; it does so every second.",
                    "s",
                    (
                        Query(
                            f"time() - max by (cluster) ({of_clusters('stillhouse_queue_turn_timestamp_seconds')})",
                            "{{cluster}}",
                        ),
                    ),
                    kind="stat",
                    width=4,
                    bad=300,
                ),
                Panel(
                    "Draining",
                    "1 while people have asked the queue to start no more jobs.",
                    "short",
                    (Query(f"max by (cluster) ({of_clusters('stillhouse_queue_draining')})", "{{cluster}}"),),
                    kind="stat",
                    width=4,
                    bad=1,
                    decimals=0,
                ),
                Panel(
                    ALERTS.title,
                    ALERTS.description,
                    ALERTS.unit,
                    ALERTS.queries,
                    kind="stat",
                    width=4,
                    bad=1,
                    decimals=0,
                ),
                Panel(
                    "Waiting by kind",
                    "A kind is what a job makes, or what its submitter called it.",
                    "short",
                    (Query(f"sum {_BY_KIND} ({of_clusters('stillhouse_jobs_waiting')})", "{{kind}}"),),
                    low=0,
                    stacked=True,
                ),
                Panel(
                    "Running by kind",
                    "Jobs that run, by what they make.",
                    "short",
                    (Query(f"sum {_BY_KIND} ({of_clusters('stillhouse_jobs_running')})", "{{kind}}"),),
                    low=0,
                    stacked=True,
                ),
                Panel(
                    "Oldest by kind",
                    "Time since the oldest waiting job of a kind was submitted.",
                    "s",
                    (Query(f"max {_BY_KIND} ({of_clusters('stillhouse_oldest_job_age_seconds')})", "{{kind}}"),),
                    low=0,
                ),
            ),
        ),
        Row(
            "How do jobs fare?",
            (
                Panel(
                    "Ended, by how",
                    "Jobs that ended within the time that is shown. Skipped ones were done before.",
                    "short",
                    (
                        Query(
                            _increase("stillhouse_jobs_ended_total", "state"),
                            "{{state}}",
                        ),
                    ),
                    kind="bars",
                    decimals=0,
                    width=6,
                    low=0,
                ),
                Panel(
                    "Repeated, by cause",
                    "Attempts that came to nothing: a worker died, a node was lost, a store or a network did not "
                    "answer (outage), memory ran out, another process was at the same place (busy).",
                    "short",
                    (
                        Query(
                            _increase("stillhouse_job_retries_total", "cause"),
                            "{{cause}}",
                        ),
                    ),
                    kind="bars",
                    decimals=0,
                    width=6,
                    low=0,
                ),
                Panel(
                    "Attempts begun",
                    "Per minute, by kind.",
                    "short",
                    (
                        Query(
                            "60 * " + _rate("stillhouse_job_attempts_total", "kind"),
                            "{{kind}}",
                        ),
                    ),
                    width=12,
                    low=0,
                ),
                Panel(
                    "Wait before the first attempt",
                    "Median and ninth decile of the jobs that began within the time that is shown.",
                    "s",
                    (_quantile(0.5, "stillhouse_job_wait_seconds"), _quantile(0.9, "stillhouse_job_wait_seconds")),
                    kind="bars",
                    width=12,
                    low=0,
                ),
                Panel(
                    "How long jobs take",
                    "Median and ninth decile of the last attempts of jobs that ended within the time that is shown.",
                    "s",
                    (_quantile(0.5, "stillhouse_job_seconds"), _quantile(0.9, "stillhouse_job_seconds")),
                    kind="bars",
                    width=12,
                    low=0,
                ),
            ),
        ),
        Row(
            "How fast does text become rows?",
            (
                Panel(
                    "Input per second",
                    "Bytes of finished files, by task.",
                    "Bps",
                    (
                        Query(
                            _rate("stillhouse_unit_bytes_total", "task"),
                            "{{task}}",
                        ),
                    ),
                    width=6,
                    low=0,
                ),
                Panel(
                    "Tokens per second",
                    "Written to row files.",
                    "short",
                    (
                        Query(
                            _rate("stillhouse_tokens_made_total"),
                            "{{cluster}}",
                        ),
                    ),
                    width=6,
                    low=0,
                ),
                Panel(
                    "Files finished",
                    "Per minute, by task.",
                    "short",
                    (
                        Query(
                            "60 * " + _rate("stillhouse_units_total", "task"),
                            "{{task}}",
                        ),
                    ),
                    width=6,
                    low=0,
                ),
                Panel(
                    "Documents, by outcome",
                    "Within the time that is shown: kept, dropped by cleaning, failed in the tokenizer.",
                    "short",
                    (
                        Query(
                            _increase("stillhouse_documents_total", "task", "outcome"),
                            "{{task}}: {{outcome}}",
                        ),
                    ),
                    kind="bars",
                    width=6,
                    low=0,
                ),
                Panel(
                    "Actors",
                    "That are up, by task.",
                    "short",
                    (Query(f"sum by (cluster, task) ({of_clusters('stillhouse_actors')})", "{{task}}"),),
                    width=12,
                    low=0,
                ),
                Panel(
                    "Actors that died, files begun again",
                    "An actor that dies at a file leaves it to another one.",
                    "short",
                    (
                        Query(
                            _lately("stillhouse_actor_deaths_total", "task"),
                            "{{task}}: deaths",
                        ),
                        Query(
                            _lately("stillhouse_lost_units_total", "task"),
                            "{{task}}: begun again",
                        ),
                    ),
                    width=12,
                    low=0,
                ),
            ),
        ),
        Row(
            "How good is the student by now?",
            (
                Panel(
                    "Scores",
                    "Of the models that the queue has fine-tuned last, median of their seeds.",
                    "percentunit",
                    (
                        Query(
                            f"max by (cluster, model, task) ({of_clusters('stillhouse_score_ratio')})",
                            "{{task}}: {{model}}",
                        ),
                    ),
                    kind="bars",
                    width=12,
                    low=0,
                    high=1,
                ),
                Panel(
                    "Kept of the teacher's score",
                    "Score of a model divided by that of the teacher, fine-tuned by the same code on the same task. "
                    "The paper kept 97 %.",
                    "percentunit",
                    (Query(_TO_TEACHER, "{{task}}: {{model}}"),),
                    kind="bars",
                    width=12,
                    decimals=1,
                ),
            ),
        ),
        Row(
            "How fast and how small is it?",
            (
                Panel(
                    "Median time of one call",
                    "In the last benchmark, by tokens of a text or what texts they are, on the machine that ran it: "
                    "compare models there, not clusters.",
                    "s",
                    (
                        Query(
                            "max by (cluster, model, runtime, tokens) ("
                            + of_clusters("stillhouse_latency_seconds", 'percentile="50"')
                            + ")",
                            "{{model}}, {{tokens}}: {{runtime}}",
                        ),
                    ),
                    kind="bars",
                    width=12,
                    low=0,
                ),
                Panel(
                    "Slowest calls",
                    "99th percentile of the same benchmark.",
                    "s",
                    (
                        Query(
                            "max by (cluster, model, runtime, tokens) ("
                            + of_clusters("stillhouse_latency_seconds", 'percentile="99"')
                            + ")",
                            "{{model}}, {{tokens}}: {{runtime}}",
                        ),
                    ),
                    kind="bars",
                    width=12,
                    low=0,
                ),
                Panel(
                    "Size of the weights",
                    "As they lie on disk, by format.",
                    "bytes",
                    (
                        Query(
                            f"max by (cluster, model, weights) ({of_clusters('stillhouse_model_bytes')})",
                            "{{model}}: {{weights}}",
                        ),
                    ),
                    kind="bars",
                    width=24,
                    low=0,
                ),
            ),
        ),
        Row(
            "Is there room on the disks?",
            (
                Panel(
                    "Free on the volumes",
                    "Share of a volume that is free. Below a tenth there is an alert.",
                    "percentunit",
                    (
                        Query(
                            f"min by (persistentvolumeclaim) (kubelet_volume_stats_available_bytes{_OURS} / "
                            f"kubelet_volume_stats_capacity_bytes{_OURS})",
                            "{{persistentvolumeclaim}}",
                        ),
                    ),
                    width=24,
                    low=0,
                    high=1,
                ),
            ),
        ),
    ),
)
