"""Runs a training stage on Ray Train workers, and restarts them when they die, must leave, or could be more.

Ray Train places the workers of one attempt and reports how it ended; this module makes the attempts. Ray's own restarts
would repeat errors that the user must fix, and its own elasticity stops workers without a checkpoint and ignores
whether their number divides the rows of a step.
"""

import contextlib
import logging
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import ray
import torch
from ray.exceptions import RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError

from cluster.actors.ray_state import draining_nodes
from cluster.artifacts import errors, registry
from cluster.jobs import worker
from cluster.telemetry import metrics, metrics_log, progress
from cluster.telemetry.progress import say
from distill.checkpointing.run_folder import Run
from distill.config import Training, WorkerRange
from distill.launch import elastic
from distill.launch.elastic import WorkerSlots
from distill.launch.failure_policy import FailureTracker, last_step
from distill.train import graceful_stop
from distill.train.graceful_stop import StoppedError, StopReason

PROGRESS_SECONDS = 2.0
_JOIN_SECONDS = 5.0
"""Longest wait for a thread that a call to Ray may block."""
STEADY_POLLS = 3
"""Polls in a row that must find room before a run grows; another job may be about to take the slots."""


@dataclass(frozen=True)
class Call:
    """A stage call that the workers make together."""

    stage: str
    recipe: Mapping[str, Any]
    inputs: Mapping[str, Path]
    out: Path
    cwd: Path = field(default_factory=Path.cwd)

    @property
    def ray_folder(self) -> Path:
        """Folder for the files of Ray Train, on storage that all nodes share."""
        return self.out.parent / ".ray"


def on_workers(call: Call, training: Training, run: Run) -> None:
    """Run a training stage on workers, one per slot, until it is complete.

    ``run`` is the folder it trains in. SIGTERM to this process (``ray job stop``) and Ctrl-C stop it
    after a checkpoint.

    Raises:
        KeyboardInterrupt: SIGTERM or Ctrl-C stopped the run.
        LaunchError: the cluster is too small, the workers died too often or twice at the same step, or the stage
            raised an error for the user (with its message).
    """
    slots = WorkerSlots.of(training)
    name, log = call.out.name, call.ray_folder / f"{call.out.name}.log"
    failures = FailureTracker(name, training.placement.restarts, run, log)
    count = None
    restarts = Counter[str]()
    while True:
        count = slots.await_workers(count)
        try:
            with _ray_train_log(log), _thread(partial(_display_progress, run, name)):
                stopped = _attempt(call, run, slots, count, restarts)
        except TrainingFailedError as error:
            restarts[failures.add(error)] += 1
            continue
        if stopped is None:
            return
        if stopped == StopReason.TERMINATED:
            say(f"{name}: stopped at step {last_step(run)}, checkpoint written")
            raise KeyboardInterrupt
        status = f"{name}: {StopReason(stopped).text}; stopped at step {last_step(run)}"
        restarts["growth" if stopped == StopReason.GROWING else "drain"] += 1
        say(f"{status}, starting again from there")


def _attempt(call: Call, run: Run, slots: WorkerSlots, count: int, restarts: Mapping[str, int]) -> int | None:
    """Start ``count`` workers; returns the :class:`StopReason` they stopped for, or None when the run is complete."""
    stop_file = call.ray_folder / f"{call.out.name}.stop"
    trainer = _Trainer(
        train_worker,
        train_loop_config={
            "call": call,
            "run": metrics.run_name(run.path),
            "slots": slots,
            "stop_file": stop_file,
            "restarts": dict(restarts),
        },
        torch_config=TorchConfig(backend="nccl" if slots.gpu else "gloo"),
        scaling_config=ScalingConfig(num_workers=count, use_gpu=slots.gpu, resources_per_worker=slots.resources),
        run_config=RunConfig(
            name=call.out.name,
            storage_path=str(call.ray_folder),
            failure_config=FailureConfig(max_failures=0, max_preemption_failures=0, controller_failure_limit=0),
            worker_runtime_env=_environment(slots.gpu),
        ),
    )
    with _signals_create(stop_file):
        stopped: int | None = trainer.fit().return_value
    return stopped


@contextlib.contextmanager
def _signals_create(stop_file: Path) -> Iterator[None]:
    """Inside the block the first SIGTERM or Ctrl-C creates a file that workers poll for; a second one interrupts."""
    stop_file.unlink(missing_ok=True)
    before: dict[int, Any] = {}

    def on_signal(number: int, frame: object) -> None:
        signal.signal(number, before[number])
        stop_file.parent.mkdir(parents=True, exist_ok=True)
        stop_file.touch()
        if number == signal.SIGINT:
            say("stopping with a checkpoint; Ctrl-C again stops at once, without one")

    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        stop_file.unlink(missing_ok=True)


class _Trainer(TorchTrainer):  # type: ignore[misc]
    """A trainer that leaves Ctrl-C to :func:`_signals_create`.

    Ray Train's own handler ends this process without a checkpoint and without a word, also long after the training.
    """

    def _register_sigint_handler(self, controller: object) -> None:
        pass


def train_worker(config: Mapping[str, Any]) -> int | None:
    """Run the stage on one worker, as under torchrun; returns the :class:`StopReason` it stopped for."""
    call: Call = config["call"]
    if ray.train.get_context().get_world_rank() == 0:
        # Each attempt has a new process, whose metrics start at 0.
        for cause, times in config["restarts"].items():
            metrics.RESTARTS.labels(config["run"], cause).inc(times)
    stops = partial(_poll_for_stops, config["slots"], config["stop_file"])
    with errors.logging_to_stderr(), worker.working_in(call.cwd), _thread(stops):
        try:
            registry.execute(call.stage, call.recipe, call.inputs, call.out)
        except StoppedError as stopped:
            return int(stopped.reason)
    return None


@contextlib.contextmanager
def _thread(work: Callable[[threading.Event], None]) -> Iterator[None]:
    """Inside the block a thread runs ``work``, which returns soon after its event is set."""
    done = threading.Event()
    thread = threading.Thread(target=work, args=(done,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(_JOIN_SECONDS)


def _poll_for_stops(slots: WorkerSlots, stop_file: Path, done: threading.Event) -> None:
    """Request a stop when this node is drained. The first worker does so for the stop file and for new room, too."""
    context = ray.train.get_context()
    node = ray.get_runtime_context().get_node_id()
    workers, first = context.get_world_size(), context.get_world_rank() == 0
    grows = first and isinstance(slots.training.placement.workers, WorkerRange)
    polls = 0
    while not done.wait(elastic.POLL_SECONDS):
        if first and stop_file.exists():
            graceful_stop.request(StopReason.TERMINATED)
        # The head may be busy or away for a moment; the next poll asks again.
        with contextlib.suppress(RayError):
            if node in draining_nodes():
                graceful_stop.request(StopReason.LEAVING)
            elif grows:
                polls = polls + 1 if (slots.fitting(workers + slots.free()) or 0) > workers else 0
                if polls == STEADY_POLLS:
                    graceful_stop.request(StopReason.GROWING)


def _environment(gpu: bool) -> dict[str, Any]:
    """Hides GPUs from CPU workers. Ray does not hide GPUs that the cluster does not count."""
    hide = not gpu and (ray.cluster_resources().get("GPU", 0) or torch.cuda.is_available())
    return {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}} if hide else {}


def _display_progress(run: Run, name: str, done: threading.Event) -> None:
    """Show the run's progress from its metrics file."""
    display: progress.Progress | None = None
    step = 0
    while not done.wait(PROGRESS_SECONDS):
        if (last := metrics_log.newest_metrics(run.metrics, "train")) is None:
            continue
        if display is None:
            display = progress.Progress(f"{name}: training", last["steps"], "steps", last["step"])
        elif last["step"] != step:  # lower after a restart from an older checkpoint
            validated = metrics_log.newest_metrics(run.metrics, "validation") or {}
            display.reach(last["step"], progress.training_note(last, validated.get("agreement")))
        step = last["step"]
    if display is not None:
        display.close()


@contextlib.contextmanager
def _ray_train_log(path: Path) -> Iterator[None]:
    """Inside the block Ray Train's own log messages go to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path)
    loggers = [logging.getLogger(name) for name in ("ray.train", "ray.data")]
    for logger in loggers:
        logger.addHandler(handler)
        logger.propagate = False
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
        handler.close()
