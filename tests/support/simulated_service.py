"""Simulate a service through its declared series: a long run on eight GPUs, a queue and results.

The values are smooth curves with seeded noise. The series of other exporters (GPUs, volumes) are simulated too.
"""

import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from prometheus_client import REGISTRY, CollectorRegistry, Gauge

from cluster.jobs.failures import Cause
from cluster.telemetry import metrics
from distill.engine.step_timer import PARTS

RUN, STEPS, STEP_SECONDS, SAVE_EVERY, WORKERS = "distilbert/student", 60_000, 0.6, 1000, 8
ROWS, SEQ_LEN = 2048, 128
GPUS = 8
FOREIGN = CollectorRegistry()


def _foreign(name: str, *labels: str) -> Gauge:
    return Gauge(name, f"{name} of a scripted machine", labels, registry=FOREIGN)


_GPU = {
    name: _foreign(f"DCGM_FI_{name}", "Hostname", "gpu", "UUID")
    for name in (
        "DEV_GPU_UTIL",
        "PROF_PIPE_TENSOR_ACTIVE",
        "DEV_FB_USED",
        "DEV_FB_FREE",
        "DEV_POWER_USAGE",
        "DEV_GPU_TEMP",
        "DEV_SM_CLOCK",
        "DEV_XID_ERRORS",
    )
}
_FREE = _foreign("kubelet_volume_stats_available_bytes", "namespace", "persistentvolumeclaim")
_SIZE = _foreign("kubelet_volume_stats_capacity_bytes", "namespace", "persistentvolumeclaim")


class Script:
    """Sets every series to its value at a time. Times must increase."""

    def __init__(self, started: float) -> None:
        self._started, self._now = started, started
        self._random = random.Random(1)
        metrics.RUN.labels(RUN).info(
            {"precision": "fp16", "rows_per_step": str(ROWS), "learning_rate": "0.0005", "temperature": "2.0"}
            | {"weights": "5/2/1", "zero_stage": "1", "seed": "1", "device": "Tesla V100-SXM2-16GB"}
        )
        metrics.STARTED.labels(RUN).set(started)
        for metric in (metrics.NONFINITE, metrics.FAILED_CHECKPOINTS, metrics.SKIPPED):
            metric.labels(RUN)
        for cause, times in (("death", 1), ("drain", 2), ("growth", 0)):
            metrics.RESTARTS.labels(RUN, cause).inc(times)

    def advance(self, now: float) -> None:
        """Set every series to its value at this time."""
        gone, self._now = now - self._now, now
        self._train(now, gone)
        self._learn(now)
        self._checkpoints(now)
        self._queue(now, gone)
        self._text(gone)
        self._results()
        self._machines(now)

    def _noise(self, size: float) -> float:
        return 1 + self._random.gauss(0, size)

    def _step(self, now: float) -> float:
        return min(STEPS, max(1.0, (now - self._started) / STEP_SECONDS))

    def _train(self, now: float, gone: float) -> None:
        step, seconds = self._step(now), STEP_SECONDS * self._noise(0.01)
        rate = ROWS * SEQ_LEN / seconds
        for gauge, value in (
            (metrics.STEP, int(step)),
            (metrics.STEPS, STEPS),
            (metrics.STEP_TIME, now),
            (metrics.STEP_SECONDS, seconds),
            (metrics.REMAINING, (STEPS - step) * STEP_SECONDS),
            (metrics.WORKERS, WORKERS),
            (metrics.NODE_WORKERS, WORKERS),
            (metrics.RATE, rate),
            (metrics.UTILIZATION, rate * 0.629e9 / (WORKERS * 125e12)),
            (metrics.CHECKPOINT_STEPS, SAVE_EVERY),
        ):
            gauge.labels(RUN).set(value)
        metrics.TOKENS.labels(RUN).inc(gone / STEP_SECONDS * ROWS * SEQ_LEN)
        metrics.ROWS.labels(RUN).inc(gone / STEP_SECONDS * ROWS)
        for part, share in zip(PARTS, (0.01, 0.24, 0.2, 0.42, 0.04, 0.09), strict=True):
            mean = seconds * share * self._noise(0.02)
            metrics.PART_SECONDS.labels(RUN, part, "mean").set(mean)
            metrics.PART_SECONDS.labels(RUN, part, "slowest").set(mean * (1.02 + abs(self._random.gauss(0, 0.02))))

    def _learn(self, now: float) -> None:
        step = self._step(now)
        falls = math.exp(-step / 6000) + 0.35 * math.exp(-step / 30_000)
        terms = {"soft": 0.35 + 3.2 * falls, "masked": 1.9 + 5.5 * falls, "cosine": 0.06 + 0.5 * falls}
        terms["total"] = 5 * terms["soft"] + 2 * terms["masked"] + terms["cosine"]
        for term, value in terms.items():
            metrics.LOSS.labels(RUN, term).set(value * self._noise(0.025))
        if int(step) % SAVE_EVERY < 60:  # a validation
            for term, value in terms.items():
                metrics.VALIDATION.labels(RUN, term).set(value * 1.01)
            metrics.ACCURACY.labels(RUN, "student").set(0.585 - 0.5 * min(1.0, falls))
            metrics.ACCURACY.labels(RUN, "teacher").set(0.62)
            metrics.ACCURACY.labels(RUN, "word counts").set(0.05)
            metrics.VISIBLE_ACCURACY.labels(RUN, "student").set(0.97 - 0.5 * min(1.0, falls))
            metrics.VISIBLE_ACCURACY.labels(RUN, "teacher").set(0.98)
            metrics.HIDDEN_LOSS.labels(RUN, "student").set(2.1 + 2.0 * min(1.0, falls))
            metrics.HIDDEN_LOSS.labels(RUN, "teacher").set(1.9)
            metrics.HIDDEN_LOSS.labels(RUN, "word counts").set(6.9)
            metrics.AGREEMENT.labels(RUN).set(0.79 - 0.68 * min(1.0, falls))
            for task, best in (("rte", 0.61), ("mrpc", 0.87)):
                metrics.PROBE_SCORE.labels(RUN, task).set(best - 0.15 * min(1.0, falls) * self._noise(0.05))
                metrics.PROBE_STEP.labels(RUN, task).set(int(step) // SAVE_EVERY * SAVE_EVERY)
        rising = 0.05 * STEPS
        rate = step / rising if step < rising else (STEPS - step) / (STEPS - rising)
        metrics.LEARNING_RATE.labels(RUN).set(5e-4 * rate)
        metrics.GRADIENT_NORM.labels(RUN).set((1.2 + 9 * falls) * abs(self._noise(0.15)))
        metrics.LOSS_SCALE.labels(RUN).set(2.0 ** (16 - int(step / 7000) % 3))
        if self._random.random() < 0.02:
            metrics.SKIPPED.labels(RUN).inc()

    def _checkpoints(self, now: float) -> None:
        behind = (now - self._started) % (SAVE_EVERY * STEP_SECONDS)
        metrics.CHECKPOINT_TIME.labels(RUN).set(now - behind)
        metrics.CHECKPOINT_BYTES.labels(RUN).set(12 * 66_985_530)
        metrics.CHECKPOINT_SECONDS.labels(RUN, "blocked").set(0.9 * self._noise(0.05))
        metrics.CHECKPOINT_SECONDS.labels(RUN, "written").set(11 * self._noise(0.1))

    def _queue(self, now: float, gone: float) -> None:
        hours = (now - self._started) / 3600
        for kind, most, seconds in (("finetune", 14, 900.0), ("export", 3, 60.0), ("benchmark", 1, 600.0)):
            waiting = max(0, round(most * (0.6 + math.sin(hours + most)) * self._noise(0.1)))
            metrics.JOBS_WAITING.labels(kind).set(waiting)
            metrics.JOBS_RUNNING.labels(kind).set(min(most, 4))
            metrics.OLDEST_JOB.labels(kind).set(waiting * seconds / 4)
            for state in ("done", "skipped", "failed", "cancelled"):
                metrics.JOBS_ENDED.labels(kind, state)
            for cause in get_args(Cause):
                metrics.JOB_RETRIES.labels(kind, cause)
            for _ in range(int(2 * gone / seconds + self._random.random())):
                metrics.JOB_ATTEMPTS.labels(kind).inc()
                metrics.JOB_WAIT.labels(kind).observe(seconds * self._random.random())
                metrics.JOB_SECONDS.labels(kind).observe(seconds * abs(self._noise(0.3)))
                state = self._random.choices(("done", "skipped", "failed"), (0.9, 0.07, 0.03))[0]
                metrics.JOBS_ENDED.labels(kind, state).inc()
                if self._random.random() < 0.1:
                    metrics.JOB_RETRIES.labels(kind, self._random.choice(("node", "memory"))).inc()
        metrics.QUEUE_TIME.set(now)
        metrics.QUEUE_DRAINING.set(0)

    def _text(self, gone: float) -> None:
        for task, kept, lost in (("corpus", "passed", "dropped"), ("tokens", "train", "failed")):
            share = abs(self._noise(0.2))
            metrics.ACTORS.labels(task).set(16 if task == "tokens" else 24)
            metrics.UNITS.labels(task).inc(gone / 20 * share)
            metrics.UNIT_BYTES.labels(task).inc(gone * 38e6 * share)
            metrics.DOCUMENTS.labels(task, kept).inc(gone * 9000 * share)
            metrics.DOCUMENTS.labels(task, lost).inc(gone * (700 if task == "corpus" else 2) * share)
            died = self._random.random() < 0.004
            metrics.ACTOR_DEATHS.labels(task).inc(died)
            metrics.LOST_UNITS.labels(task).inc(died)
            if task == "tokens":
                metrics.TOKENS_MADE.inc(gone * 8.5e6 * share)

    def _results(self) -> None:
        scores = {"mnli": (84.7, 82.2), "sst-2": (92.7, 91.3), "mrpc": (88.6, 87.5), "rte": (69.3, 59.9)}
        for task, (teacher, student) in scores.items():
            metrics.SCORE.labels("teacher", task).set(teacher / 100)
            metrics.SCORE.labels("student", task).set(student / 100)
        torch, onnx = "PyTorch 2.13.0", "ONNX Runtime 1.31.1 int8"
        for model, runtime, seconds in (
            ("teacher", torch, 0.093),
            ("student", torch, 0.047),
            ("student", onnx, 0.0101),
        ):
            for tokens, times in (("30", 1.0), ("384", 8.7)):
                for percentile, slower in (("50", 1.0), ("90", 1.1), ("99", 1.25)):
                    gauge = metrics.LATENCY.labels(model, runtime, tokens, percentile)
                    gauge.set(seconds * times * slower)
        for model, weights, megabytes in (
            ("teacher", "safetensors", 438),
            ("student", "safetensors", 265),
            ("student", "int8", 67),
        ):
            metrics.MODEL_BYTES.labels(model, weights).set(megabytes * 1e6)

    def _machines(self, now: float) -> None:
        for gpu in range(GPUS):
            labels = ("v100-node-1", str(gpu), f"GPU-{gpu}")
            values = {
                "DEV_GPU_UTIL": min(100.0, 97 * self._noise(0.01)),
                "PROF_PIPE_TENSOR_ACTIVE": 0.31 * self._noise(0.05),
                "DEV_FB_USED": 14_200 + 30 * gpu,
                "DEV_FB_FREE": 1_900 - 30 * gpu,
                "DEV_POWER_USAGE": (262 - 4 * gpu) * self._noise(0.02),
                "DEV_GPU_TEMP": 58 + 2 * gpu + 2 * math.sin(now / 1800),
                "DEV_SM_CLOCK": 1530 if gpu != 5 else 1455,
                "DEV_XID_ERRORS": 0,
            }
            for name, value in values.items():
                _GPU[name].labels(*labels).set(value)
        for claim, size, used in (("stillhouse-shared", 4e12, 0.41), ("stillhouse-cache", 1e12, 0.63)):
            _SIZE.labels("stillhouse", claim).set(size)
            _FREE.labels("stillhouse", claim).set(size * (1 - used - 0.01 * (now - self._started) / 3600))


def history(script: Script, start: float, end: float, every: float, labels: str) -> Iterator[str]:
    """The script's series from ``start`` to ``end`` as OpenMetrics with times, for ``promtool tsdb
    create-blocks-from openmetrics``; ``labels`` are those that a scrape adds."""
    told: dict[str, list[str]] = {}
    for number in range(int((end - start) / every)):
        now = start + number * every
        script.advance(now)
        for family in _families():
            lines = told.setdefault(family.name, [f"# TYPE {family.name} {_kind(family.type)}\n"])
            for sample in family.samples:
                own = "".join(f',{name}="{value}"' for name, value in sample.labels.items())
                lines.append(f"{sample.name}{{{labels}{own}}} {sample.value} {now:.3f}\n")
    for lines in told.values():
        yield from lines
    yield "# EOF\n"


def _families() -> Iterator[Any]:
    yield from (family for family in REGISTRY.collect() if family.name.startswith("stillhouse_"))
    yield from FOREIGN.collect()


def _kind(kind: str) -> str:
    # The samples of a histogram must be adjacent for every time; those of a series of unknown type need not.
    return {"counter": "counter", "info": "info"}.get(kind, "gauge" if kind == "gauge" else "unknown")


def write_history(script: Script, start: float, end: float, every: float, labels: str, path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(history(script, start, end, every, labels))
