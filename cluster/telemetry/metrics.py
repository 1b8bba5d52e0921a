"""Declares every Prometheus metric.

Names end in a base unit, or in ``_total`` for counters. Dashboards and alerts use only these.
"""

import re
from pathlib import PurePath

from prometheus_client import Counter, Gauge, Histogram, Info, disable_created_metrics

# By default the client adds the time of creation to every counter as one more series.
disable_created_metrics()  # type: ignore[no-untyped-call]

MOST_VALUES = 50
"""Values of a label that users choose, such as the kind of a job; others are counted as ``other``."""
PERCENTILES = (50, 90, 99)
"""Of measured times."""
_DAY = 86400.0
_HOW_LONG = (1.0, 10.0, 60.0, 300.0, 900.0, 3600.0, _DAY / 6, _DAY / 2, _DAY, 7 * _DAY)

# --- a training run: set by the first worker of a run; metrics marked "of this endpoint" by every endpoint ---
RUN = Info("stillhouse_run", "What is trained: hyper-parameters, device, version", ["run"])
STARTED = Gauge("stillhouse_run_start_timestamp_seconds", "Unix time at which this attempt at the run began", ["run"])
STEP = Gauge("stillhouse_step", "Last finished optimizer step", ["run"])
STEPS = Gauge("stillhouse_steps", "Optimizer steps the run will have", ["run"])
STEP_TIME = Gauge("stillhouse_last_step_timestamp_seconds", "Unix time of the last finished optimizer step", ["run"])
REMAINING = Gauge("stillhouse_remaining_seconds", "Seconds that the remaining steps take at the present speed", ["run"])
WORKERS = Gauge("stillhouse_workers", "Training processes of the run, over all nodes", ["run"])
NODE_WORKERS = Gauge("stillhouse_node_workers", "Training processes on the node of this endpoint", ["run"])
RESTARTS = Counter("stillhouse_restarts_total", "Restarts of the workers, by cause", ["run", "cause"])

LOSS = Gauge("stillhouse_loss_nats", "Training loss of the last logged step, by term", ["run", "term"])
VALIDATION = Gauge("stillhouse_validation_loss_nats", "Loss on held-out rows, by term", ["run", "term"])
HIDDEN_LOSS = Gauge(
    "stillhouse_validation_hidden_loss_nats",
    "Loss on hidden held-out words, of the student, of the teacher and of word counts",
    ["run", "model"],
)
ACCURACY = Gauge(
    "stillhouse_validation_accuracy_ratio",
    "Share of hidden held-out words predicted exactly, by the student, by the teacher and by word counts",
    ["run", "model"],
)
VISIBLE_ACCURACY = Gauge(
    "stillhouse_validation_visible_accuracy_ratio",
    "Share of masked held-out words that the input shows, predicted exactly, by the student and by the teacher",
    ["run", "model"],
)
AGREEMENT = Gauge(
    "stillhouse_validation_agreement_ratio", "Share of hidden held-out words with the teacher's top word", ["run"]
)
LEARNING_RATE = Gauge("stillhouse_learning_rate", "Learning rate of the last logged step", ["run"])
GRADIENT_NORM = Gauge(
    "stillhouse_gradient_norm", "Largest norm of a gradient before clipping among the steps since the last log", ["run"]
)
LOSS_SCALE = Gauge("stillhouse_loss_scale", "Dynamic loss scale; only in fp16", ["run"])
SKIPPED = Counter(
    "stillhouse_skipped_steps_total", "Optimizer steps skipped because an fp16 gradient overflowed", ["run"]
)
NONFINITE = Counter("stillhouse_nonfinite_total", "Steps stopped because the loss was not finite", ["run"])

TOKENS = Counter("stillhouse_tokens_total", "Tokens trained on, over all workers", ["run"])
ROWS = Counter("stillhouse_rows_total", "Rows trained on, over all workers", ["run"])
RATE = Gauge("stillhouse_tokens_per_second", "Tokens per second over the last logged steps, over all workers", ["run"])
UTILIZATION = Gauge(
    "stillhouse_model_flops_utilization_ratio",
    "Operations of the models, as a share of the peak of all devices, where that peak is known",
    ["run"],
)
STEP_SECONDS = Gauge(
    "stillhouse_step_seconds", "Mean wall-clock seconds of an optimizer step since the last log", ["run"]
)
PART_SECONDS = Gauge(
    "stillhouse_step_part_seconds",
    "Seconds of a mean optimizer step by part, as the device sees them: mean worker and slowest worker",
    ["run", "part", "worker"],
)

CHECKPOINT_TIME = Gauge(
    "stillhouse_last_checkpoint_timestamp_seconds", "Unix time of the last complete checkpoint", ["run"]
)
CHECKPOINT_SECONDS = Gauge(
    "stillhouse_checkpoint_seconds",
    "Seconds of the last checkpoint: training blocked, files written during training",
    ["run", "part"],
)
CHECKPOINT_BYTES = Gauge("stillhouse_checkpoint_bytes", "Bytes of the last complete checkpoint", ["run"])
CHECKPOINT_STEPS = Gauge("stillhouse_checkpoint_interval_steps", "Optimizer steps between two checkpoints", ["run"])
FAILED_CHECKPOINTS = Counter("stillhouse_failed_checkpoints_total", "Checkpoints that could not be written", ["run"])

# --- text to rows: set by the command that drives the actors ---
UNITS = Counter("stillhouse_units_total", "Units of work finished by the actors of a task: files of a corpus", ["task"])
UNIT_BYTES = Counter("stillhouse_unit_bytes_total", "Bytes of input in finished units of work", ["task"])
LOST_UNITS = Counter("stillhouse_lost_units_total", "Units of work repeated because their actor died", ["task"])
DOCUMENTS = Counter("stillhouse_documents_total", "Documents by outcome", ["task", "outcome"])
TOKENS_MADE = Counter("stillhouse_tokens_made_total", "Tokens written to row files")
ACTORS = Gauge("stillhouse_actors", "Actors that are running", ["task"])
ACTOR_DEATHS = Counter("stillhouse_actor_deaths_total", "Actors that died, including those of lost nodes", ["task"])

# --- the job queue ---
JOBS_WAITING = Gauge(
    "stillhouse_jobs_waiting", "Jobs that wait: for resources, for other jobs, or for a retry", ["kind"]
)
JOBS_RUNNING = Gauge("stillhouse_jobs_running", "Jobs that run", ["kind"])
OLDEST_JOB = Gauge("stillhouse_oldest_job_age_seconds", "Seconds since the oldest waiting job was submitted", ["kind"])
JOBS_ENDED = Counter("stillhouse_jobs_ended_total", "Jobs that ended, by how", ["kind", "state"])
JOB_ATTEMPTS = Counter("stillhouse_job_attempts_total", "Attempts at jobs that were started", ["kind"])
JOB_RETRIES = Counter(
    "stillhouse_job_retries_total",
    "Failed attempts at jobs that are repeated, by cause",
    ["kind", "cause"],
)
JOB_WAIT = Histogram(
    "stillhouse_job_wait_seconds", "Seconds from a job's submission to its first attempt", ["kind"], buckets=_HOW_LONG
)
JOB_SECONDS = Histogram("stillhouse_job_seconds", "Seconds of a job's last attempt", ["kind"], buckets=_HOW_LONG)
QUEUE_TIME = Gauge("stillhouse_queue_turn_timestamp_seconds", "Unix time of the last complete turn of the queue")
QUEUE_DRAINING = Gauge("stillhouse_queue_draining", "Whether the queue is draining: it starts no more jobs")

# --- results: from the queue, of the jobs that made them; of checkpoints, from eval.probes ---
SCORE = Gauge("stillhouse_score_ratio", "Score of the last fine-tuned model: 1 is 100 %", ["model", "task"])
LATENCY = Gauge(
    "stillhouse_latency_seconds",
    "Seconds of one call in the last benchmark, by tokens of the text and percentile",
    ["model", "runtime", "tokens", "percentile"],
)
MODEL_BYTES = Gauge("stillhouse_model_bytes", "Bytes of the last weights, by their format", ["model", "weights"])
PROBE_STEP = Gauge("stillhouse_probe_step", "Optimizer step of the last scored checkpoint", ["run", "task"])
PROBE_SCORE = Gauge(
    "stillhouse_probe_score_ratio", "Score of the last fine-tuned checkpoint: 1 is 100 %", ["run", "task"]
)


def run_name(folder: PurePath) -> str:
    """Value of the label ``run`` for a run folder: ``<pipeline>/<name>`` inside a pipeline.

    The run inside an unfinished artifact (``<pipeline>/.teacher.partial/run``) gets the artifact's final name.
    """
    if made := re.fullmatch(r"\.(.+)\.partial", folder.parent.name):
        pipeline, name = folder.parent.parent.name, made[1]
    else:
        pipeline, name = folder.parent.parent.name if folder.parent.name == "runs" else "", folder.name
    return f"{pipeline}/{name}" if pipeline else name


def bounded(label: str, value: str) -> str:
    """A value for a label whose values people choose: itself, or ``other`` when there are too many of them already."""
    known = _values.setdefault(label, set())
    if value in known or len(known) < MOST_VALUES:
        known.add(value)
        return value
    return "other"


_values: dict[str, set[str]] = {}
