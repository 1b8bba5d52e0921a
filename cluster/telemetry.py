"""Every metric declared once; serving them to Prometheus; metrics.jsonl; progress for people.

``metrics.jsonl`` is the step-exact truth of a run, Prometheus is the live view of it. A metric carries its unit in
its name (base units, ``_total`` for counters), and everything that draws or alerts uses names declared here.
"""

import contextlib
import datetime
import errno
import json
import logging
import math
import os
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any, Self, TypeVar
from wsgiref.simple_server import WSGIServer

from prometheus_client import REGISTRY, Counter, Gauge, Histogram, Info, disable_created_metrics, start_http_server
from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from tqdm import tqdm

logger = logging.getLogger("stillhouse")

# The client adds a series with its own birth to every counter: nobody asks for these.
disable_created_metrics()  # type: ignore[no-untyped-call]

MOST_VALUES = 50
"""Values of a label that people name, such as the kind of a job; later ones are counted as ``other``."""
_DAY = 86400.0
_HOW_LONG = (1.0, 10.0, 60.0, 300.0, 900.0, 3600.0, _DAY / 6, _DAY / 2, _DAY, 7 * _DAY)

# --- a training run: from the process of its first worker, except what says "of this endpoint" ---
RUN = Info("stillhouse_run", "What is trained: hyper-parameters, device, version", ["run"])
STARTED = Gauge("stillhouse_run_start_timestamp_seconds", "Unix time at which this attempt at the run began", ["run"])
STEP = Gauge("stillhouse_step", "Last finished optimizer step", ["run"])
STEPS = Gauge("stillhouse_steps", "Optimizer steps the run will have", ["run"])
STEP_TIME = Gauge("stillhouse_last_step_timestamp_seconds", "Unix time of the last finished optimizer step", ["run"])
REMAINING = Gauge("stillhouse_remaining_seconds", "Seconds the remaining steps take at the present pace", ["run"])
WORKERS = Gauge("stillhouse_workers", "Training processes of the run, over all nodes", ["run"])
NODE_WORKERS = Gauge("stillhouse_node_workers", "Training processes on the node of this endpoint", ["run"])
RESTARTS = Counter("stillhouse_restarts_total", "Times the workers were started again, by cause", ["run", "cause"])

LOSS = Gauge("stillhouse_loss_nats", "Training loss of the last logged step, by term", ["run", "term"])
VALIDATION = Gauge("stillhouse_validation_loss_nats", "Loss on held-out rows, by term", ["run", "term"])
ACCURACY = Gauge(
    "stillhouse_validation_accuracy_ratio",
    "Share of held-out masked words predicted exactly, by the student and by the teacher",
    ["run", "model"],
)
AGREEMENT = Gauge(
    "stillhouse_validation_agreement_ratio", "Share of held-out positions with the teacher's top word", ["run"]
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
UTILISATION = Gauge(
    "stillhouse_model_flops_utilization_ratio",
    "Operations the models ask for, as a share of the peak of all devices; where that peak is known",
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
    "Seconds of the last checkpoint: training was blocked, files were written while it went on",
    ["run", "part"],
)
CHECKPOINT_BYTES = Gauge("stillhouse_checkpoint_bytes", "Bytes of the last complete checkpoint", ["run"])
CHECKPOINT_STEPS = Gauge("stillhouse_checkpoint_interval_steps", "Optimizer steps between two checkpoints", ["run"])
FAILED_CHECKPOINTS = Counter("stillhouse_failed_checkpoints_total", "Checkpoints that could not be written", ["run"])

# --- text to rows: from the command that leads the actors ---
UNITS = Counter("stillhouse_units_total", "Units of work finished by the actors of a task: files of a corpus", ["task"])
UNIT_BYTES = Counter("stillhouse_unit_bytes_total", "Bytes of input in finished units of work", ["task"])
LOST_UNITS = Counter("stillhouse_lost_units_total", "Units of work begun again because their actor died", ["task"])
DOCUMENTS = Counter("stillhouse_documents_total", "Documents by what became of them", ["task", "outcome"])
TOKENS_MADE = Counter("stillhouse_tokens_made_total", "Tokens written to row files")
ACTORS = Gauge("stillhouse_actors", "Actors that are up", ["task"])
ACTOR_DEATHS = Counter("stillhouse_actor_deaths_total", "Actors that died, their nodes' deaths included", ["task"])

# --- the job queue ---
JOBS_WAITING = Gauge(
    "stillhouse_jobs_waiting", "Jobs in the queue that wait: for room, for others, to be tried again", ["kind"]
)
JOBS_RUNNING = Gauge("stillhouse_jobs_running", "Jobs that run", ["kind"])
OLDEST_JOB = Gauge("stillhouse_oldest_job_age_seconds", "Seconds since the oldest waiting job was submitted", ["kind"])
JOBS_ENDED = Counter("stillhouse_jobs_ended_total", "Jobs that ended, by how", ["kind", "state"])
JOB_ATTEMPTS = Counter("stillhouse_job_attempts_total", "Attempts at jobs that were begun", ["kind"])
JOB_RETRIES = Counter(
    "stillhouse_job_retries_total",
    "Attempts at jobs that came to nothing and are repeated, by cause",
    ["kind", "cause"],
)
JOB_WAIT = Histogram(
    "stillhouse_job_wait_seconds", "Seconds from a job's submission to its first attempt", ["kind"], buckets=_HOW_LONG
)
JOB_SECONDS = Histogram("stillhouse_job_seconds", "Seconds of a job's last attempt", ["kind"], buckets=_HOW_LONG)
QUEUE_TIME = Gauge("stillhouse_queue_turn_timestamp_seconds", "Unix time at which the queue last did all there was")
QUEUE_DRAINING = Gauge("stillhouse_queue_draining", "Whether the queue starts no more jobs because people said so")

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

PLAIN_SECONDS = 10.0

T = TypeVar("T")


def run_name(folder: PurePath) -> str:
    """What the label ``run`` says of a run's folder: ``<pipeline>/<name>`` for one that a pipeline has placed.

    The run in an artifact that is being made (``<pipeline>/.teacher.partial/run``) is called as the artifact will be.
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


class _Scrapes(Collector):
    """Knows when metrics were asked for; a collector without metrics."""

    def __init__(self) -> None:
        self._asked = threading.Condition()
        self.clear()

    def clear(self) -> None:
        self._at: float | None = None
        self._gaps: deque[float] = deque(maxlen=4)

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        with self._asked:
            now = time.monotonic()
            if self._at is not None:
                self._gaps.append(now - self._at)
            self._at = now
            self._asked.notify_all()
        return ()

    def await_next(self) -> None:
        """Until metrics are asked for, if they have been at intervals: two of these at most."""
        with self._asked:
            if self._gaps and self._asked.wait(min(2 * max(self._gaps), LONGEST_LINGER)):
                self._asked.wait(ANSWER_SECONDS)  # the answer is not sent yet


LONGEST_LINGER, ANSWER_SECONDS = 60.0, 0.5
_scrapes = _Scrapes()
REGISTRY.register(_scrapes)


def serve(port: int) -> None:
    """Serve all metrics of this process on ``/metrics``, for as long as it lives.

    Raises:
        OSError: the port is taken.
    """
    start_http_server(port, registry=REGISTRY)
    _scrapes.clear()


def linger() -> None:
    """Let Prometheus, where it comes at intervals, see the last numbers of a process that is about to end.

    Without this the last step of a run, or the loss that ended it, would be seen by chance only.
    """
    _scrapes.await_next()


@contextlib.contextmanager
def serving(port: int | None) -> Iterator[None]:
    """Serve all metrics of this process on ``/metrics`` inside the block; with no port, nothing.

    A port that is taken is warned of and ends no work: two jobs of one recipe may meet on a node.
    """
    started = None if port is None else _started(port)
    if started is None:
        yield
        return
    server, thread = started
    _scrapes.clear()
    try:
        yield
        linger()
    except Exception:  # whoever interrupts does not want to wait
        linger()
        raise
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _started(port: int) -> tuple[WSGIServer, threading.Thread] | None:
    try:
        return start_http_server(port, registry=REGISTRY)
    except OSError as error:
        say(f"warning: placement.metrics_port {port}: {error.strerror}: this process serves no metrics")
        return None


def training_note(line: Mapping[str, Any]) -> dict[str, str]:
    """What a progress bar says of a training step; fp16 steps skipped in a row, from the second one on."""
    note = {"loss": f"{line['total']:.3f}", "tokens/s": f"{line['tokens_per_second']:,.0f}"}
    if (skipped := line.get("skipped_in_a_row", 0)) > 1:
        note["skipped in a row"] = str(skipped)
    return note


class MetricsLog:
    """Appends one JSON object a line, each handed to the operating system whole.

    Opened at ``resume_at``, lines of later steps are dropped: they belong to work that will be done again. While the
    disk is full, lines wait in memory: a checkpoint being written beside them may be what fills it, for a moment.
    """

    def __init__(self, path: Path, resume_at: int = 0) -> None:
        kept = [line for line in read_metrics(path) if line["step"] <= resume_at]
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        temporary.replace(path)
        self._file = path.open("ab", buffering=0)
        self._waiting = b""

    def write(self, **values: Any) -> None:
        self._waiting += (json.dumps({key: finite(value) for key, value in values.items()}) + "\n").encode()
        try:
            self._hand_over()
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise

    def close(self) -> None:
        """Hand over what waits; what there still is no room for is lost, and people are told."""
        with self._file:
            try:
                self._hand_over()
            except OSError as error:
                say(f"warning: {self._file.name} lacks its last lines: {error.strerror}")

    def _hand_over(self) -> None:
        while self._waiting:
            self._waiting = self._waiting[self._file.write(self._waiting) :]


def finite(value: Any) -> Any:
    """The value as JSON can hold it: None for what is no number."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Lines of a metrics file, oldest first; a last line cut by a crash is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    found: list[dict[str, Any]] = []
    for number, line in enumerate(lines):
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            if number != len(lines) - 1:
                raise ValueError(f"{path}: line {number + 1} is not JSON") from None
    return found


def newest_metrics(path: Path, kind: str) -> dict[str, Any] | None:
    """The last line of a kind among the last ones of a metrics file, however long the file is.

    A first line that is only half in what is read, and a last one that is only half written, are left out.
    """
    if not path.exists():
        return None
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _END_BYTES))
        found = file.read()
    for text in reversed(found.splitlines()):
        with contextlib.suppress(ValueError):
            line: dict[str, Any] = json.loads(text)
            if line["kind"] == kind:
                return line
    return None


_END_BYTES = 64 * 1024


def say(line: str) -> None:
    """A line for people, above any progress bar."""
    with tqdm.external_write_mode(file=sys.stderr):
        logger.info("%s", line)


class Rates:
    """Amounts per second since it was made, in words for people."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._amounts: dict[str, float] = {}

    def add(self, **amounts: float) -> dict[str, str]:
        """Count what came just now; returns the rates so far: ``{"tokens/s": "3.1 M", "bytes/s": "12.5 M"}``."""
        for name, amount in amounts.items():
            self._amounts[name] = self._amounts.get(name, 0.0) + amount
        seconds = max(time.monotonic() - self._started, 1e-9)
        return {f"{name}/s": _short(amount / seconds) for name, amount in self._amounts.items()}


def _short(number: float) -> str:
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"


class Progress:
    """A bar on a terminal, a plain line every ten seconds elsewhere.

    Used as a context manager; :meth:`advance` moves it and may say what the numbers are right now.
    """

    def __init__(self, what: str, total: int, unit: str, done: int = 0) -> None:
        self._what, self._total, self._unit, self._done = what, total, unit, done
        self._started = self._said = time.monotonic()
        self._first = done
        self._bar: tqdm[Any] | None = None
        if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
            self._bar = tqdm(total=total, desc=what, unit=f" {unit}", initial=done, dynamic_ncols=True, leave=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the bar as it stands, or say how much was done."""
        if self._bar is not None:
            self._bar.close()
        elif self._done > self._first:
            seconds = time.monotonic() - self._started
            logger.info("%s: %s %s in %.1f s", self._what, f"{self._done:,}", self._unit, seconds)

    def advance(self, by: int = 1, note: Mapping[str, str] | None = None) -> None:
        self._done += by
        if self._bar is not None:
            self._bar.update(by)
            if note:
                self._bar.set_postfix(dict(note), refresh=False)
        elif time.monotonic() - self._said >= PLAIN_SECONDS:
            self._said = time.monotonic()
            words = "".join(f", {key} {value}" for key, value in (note or {}).items())
            share = f" of {self._total:,}" if self._total else ""
            logger.info("%s: %s%s %s%s%s", self._what, f"{self._done:,}", share, self._unit, words, self._left())

    def reach(self, done: int, note: Mapping[str, str] | None = None) -> None:
        """Move it to so many; back, too, where work starts again from an earlier point."""
        if done < self._done:
            self._first = self._done = done
            self._started = time.monotonic()
            if self._bar is not None:
                self._bar.reset(self._total)
                self._bar.update(done)
        self.advance(done - self._done, note)

    def _left(self) -> str:
        """How long the rest will take at the pace so far, where a total is known."""
        if not self._total or self._done in (self._first, self._total):
            return ""
        seconds = (time.monotonic() - self._started) * (self._total - self._done) / (self._done - self._first)
        return f", {datetime.timedelta(seconds=round(seconds))} left"


def progress(items: Iterable[T], what: str, total: int, unit: str) -> Iterator[T]:
    """Pass items through, showing progress."""
    with Progress(what, total, unit) as shown:
        for item in items:
            yield item
            shown.advance()
