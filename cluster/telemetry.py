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
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

from prometheus_client import REGISTRY, Counter, Gauge, start_http_server
from tqdm import tqdm

logger = logging.getLogger("stillhouse")

LOSS = Gauge("stillhouse_loss_nats", "Training loss of the last logged step, by term", ["term"])
VALIDATION = Gauge("stillhouse_validation_loss_nats", "Loss on held-out rows, by term", ["term"])
ACCURACY = Gauge("stillhouse_validation_accuracy_ratio", "Share of held-out masked words predicted exactly")
AGREEMENT = Gauge("stillhouse_validation_agreement_ratio", "Share of held-out positions with the teacher's top word")
STEP = Gauge("stillhouse_step", "Last finished optimizer step")
STEPS = Gauge("stillhouse_steps", "Optimizer steps the run will have")
TOKENS = Counter("stillhouse_tokens_total", "Tokens trained on, over all workers")
RATE = Gauge("stillhouse_tokens_per_second", "Tokens per second over the last logged steps, over all workers")
STEP_SECONDS = Gauge("stillhouse_step_seconds", "Mean wall-clock seconds of an optimizer step since the last log")
LEARNING_RATE = Gauge("stillhouse_learning_rate", "Learning rate of the last logged step")
GRADIENT_NORM = Gauge("stillhouse_gradient_norm", "Norm of the gradient before clipping")
LOSS_SCALE = Gauge("stillhouse_loss_scale", "Dynamic loss scale (1 outside fp16)")
SKIPPED = Counter("stillhouse_skipped_steps_total", "Optimizer steps skipped because an fp16 gradient overflowed")
NONFINITE = Counter("stillhouse_nonfinite_total", "Steps stopped because the loss was not finite")
CHECKPOINT_TIME = Gauge("stillhouse_last_checkpoint_timestamp_seconds", "Unix time of the last complete checkpoint")
CHECKPOINT_SECONDS = Gauge(
    "stillhouse_checkpoint_seconds",
    "Seconds of the last checkpoint: training was blocked, files were written while it went on",
    ["part"],
)
FAILED_CHECKPOINTS = Counter("stillhouse_failed_checkpoints_total", "Checkpoints that could not be written")

PROBE_STEP = Gauge("stillhouse_probe_step", "Optimizer step of the last scored checkpoint", ["run", "task"])
PROBE_SCORE = Gauge(
    "stillhouse_probe_score_ratio", "Score of the last fine-tuned checkpoint: 1 is 100 %", ["run", "task"]
)

UNITS = Counter("stillhouse_units_total", "Units of work finished by the actors of a task: files of a corpus", ["task"])
UNIT_BYTES = Counter("stillhouse_unit_bytes_total", "Bytes of input in finished units of work", ["task"])
DOCUMENTS = Counter("stillhouse_documents_total", "Documents by what became of them", ["task", "outcome"])
TOKENS_MADE = Counter("stillhouse_tokens_made_total", "Tokens written to row files")
ACTORS = Gauge("stillhouse_actors", "Actors that are up", ["task"])
ACTOR_DEATHS = Counter("stillhouse_actor_deaths_total", "Actors that died, their nodes' deaths included", ["task"])

JOBS_WAITING = Gauge(
    "stillhouse_jobs_waiting", "Jobs in the queue that wait: for room, for others, to be tried again", ["kind"]
)
JOBS_RUNNING = Gauge("stillhouse_jobs_running", "Jobs that run", ["kind"])
JOBS_ENDED = Counter("stillhouse_jobs_ended_total", "Jobs that ended, by how", ["kind", "state"])
JOB_ATTEMPTS = Counter("stillhouse_job_attempts_total", "Attempts at jobs that were begun", ["kind"])

PLAIN_SECONDS = 10.0

T = TypeVar("T")


def serve(port: int) -> None:
    """Serve all metrics of this process on ``/metrics``.

    Raises:
        OSError: the port is taken.
    """
    start_http_server(port, registry=REGISTRY)


@contextlib.contextmanager
def serving(port: int | None) -> Iterator[None]:
    """Serve all metrics of this process on ``/metrics`` inside the block; with no port, nothing.

    Raises:
        ValueError: the port cannot be had.
    """
    if port is None:
        yield
        return
    try:
        server, thread = start_http_server(port, registry=REGISTRY)
    except OSError as error:
        raise ValueError(f"placement.metrics_port {port}: {error.strerror}: choose another, or leave it out") from None
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def record_step(
    step: int,
    losses: Mapping[str, float],
    learning_rate: float,
    gradient_norm: float | None,
    loss_scale: float,
    seconds: float,
) -> None:
    """Show the numbers of one optimizer step to Prometheus."""
    STEP.set(step)
    for term, value in losses.items():
        LOSS.labels(term).set(value)
    LEARNING_RATE.set(learning_rate)
    GRADIENT_NORM.set(math.nan if gradient_norm is None else gradient_norm)
    LOSS_SCALE.set(loss_scale)
    STEP_SECONDS.set(seconds)


def training_note(line: Mapping[str, Any]) -> dict[str, str]:
    """What a progress bar says of a training step; fp16 steps skipped in a row, from the second one on."""
    note = {"loss": f"{line['total']:.3f}", "tokens/s": f"{line['tokens_per_second']:,.0f}"}
    if (skipped := line.get("skipped_in_a_row", 0)) > 1:
        note["skipped in a row"] = str(skipped)
    return note


def record_validation(values: Mapping[str, float | None]) -> None:
    """Show the numbers of a validation to Prometheus; None is what was not measured."""
    for term in ("total", "soft", "masked", "cosine"):
        if (value := values[term]) is not None:
            VALIDATION.labels(term).set(value)
    for gauge, name in ((ACCURACY, "accuracy"), (AGREEMENT, "agreement")):
        if (value := values[name]) is not None:
            gauge.set(value)


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
