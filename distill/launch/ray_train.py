"""A training stage on Ray Train workers, started again when they die, leave or could be more.

Ray Train places the workers of one attempt and says how it ended; attempts are ours. Its own restarts would repeat what
the user must mend, and its own elasticity stops workers without a checkpoint and counts them without asking whether
they divide a step's rows.
"""

import contextlib
import logging
import signal
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
import torch
from ray.exceptions import RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError

from cluster.actors.ray_state import draining_nodes
from cluster.artifacts import errors, registry, stage
from cluster.jobs import worker
from cluster.telemetry import metrics, metrics_log, progress
from cluster.telemetry.progress import say
from distill.checkpointing.run_folder import Run
from distill.config import Training, WorkerRange
from distill.launch import elastic
from distill.launch.elastic import WorkerSlots
from distill.launch.failure_policy import FailureTracker, last_step
from distill.train import graceful_stop
from distill.train.graceful_stop import Reason, StoppedError

WATCH_SECONDS = 2.0
STEADY_LOOKS = 3
"""How often in a row more places must be seen before workers stop for them: another job may be about to take them."""


@dataclass(frozen=True)
class Call:
    """A stage call that workers make together."""

    module: str
    recipe: Mapping[str, Any]
    inputs: Mapping[str, Path]
    out: Path
    cwd: Path = field(default_factory=Path.cwd)


def on_workers(call: Call, training: Training, run: Run) -> None:
    """Run a training stage on workers, one per place, until it is done.

    ``run`` is the folder it trains in: what is shown meanwhile, and how far it got when workers died. SIGTERM to this
    process (``ray job stop``) ends it after a checkpoint, as SIGTERM to every worker would.

    Raises:
        KeyboardInterrupt: it was asked to stop, and has.
        LaunchError: the cluster is too small, the workers died too often or twice at the same step, or the stage
            refused (its own line).
    """
    asked = WorkerSlots.of(training)
    log = _folder(call) / f"{call.out.name}.log"
    deaths = FailureTracker(call.out.name, training.placement.restarts, run, log)
    count = None
    restarts = Counter[str]()
    while True:
        count = asked.await_workers(count)
        try:
            with _output_to(log), _shown(run, call.out.name):
                stopped = _attempt(call, run, asked, count, restarts)
        except TrainingFailedError as error:
            restarts[deaths.add(error)] += 1
            continue
        if stopped is None:
            return
        told = f"{call.out.name}: {Reason(stopped).words}; stopped at step {last_step(run)}"
        if stopped == Reason.TERMINATED:
            say(f"{told}, checkpoint written")
            raise KeyboardInterrupt
        restarts["growth" if stopped == Reason.GROWING else "drain"] += 1
        say(f"{told}, starting again from there")


def _attempt(call: Call, run: Run, asked: WorkerSlots, count: int, restarts: Mapping[str, int]) -> int | None:
    """Start the workers once; the :class:`Reason` they stopped for, or None when they were done."""
    wish = _folder(call) / f"{call.out.name}.stop"
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={
            "call": call,
            "run": metrics.run_name(run.path),
            "places": asked,
            "wish": wish,
            "restarts": dict(restarts),
        },
        torch_config=TorchConfig(backend="nccl" if asked.gpu else "gloo"),
        scaling_config=ScalingConfig(num_workers=count, use_gpu=asked.gpu, resources_per_worker=asked.resources),
        run_config=RunConfig(
            name=call.out.name,
            storage_path=str(_folder(call)),
            failure_config=FailureConfig(max_failures=0, max_preemption_failures=0, controller_failure_limit=0),
            worker_runtime_env=_environment(asked.gpu),
        ),
    )
    with _sigterm_asks(wish):
        stopped: int | None = trainer.fit().return_value
    return stopped


@contextlib.contextmanager
def _sigterm_asks(wish: Path) -> Iterator[None]:
    """Inside the block a first SIGTERM leaves a file that workers look for; a second one interrupts."""
    wish.unlink(missing_ok=True)
    before: Any = None

    def ask(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, before)
        wish.parent.mkdir(parents=True, exist_ok=True)
        wish.touch()

    if threading.current_thread() is threading.main_thread():
        before = signal.getsignal(signal.SIGTERM)
        signal.signal(signal.SIGTERM, ask)
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)
        wish.unlink(missing_ok=True)


def _folder(call: Call) -> Path:
    """Where Ray Train keeps its own files, seen by all nodes."""
    return call.out.parent / ".ray"


def train_worker(config: Mapping[str, Any]) -> int | None:
    """What every worker does: the stage itself, as under torchrun; returns the :class:`Reason` it stopped for."""
    call: Call = config["call"]
    if ray.train.get_context().get_world_rank() == 0:  # who speaks for the run
        for cause, times in config["restarts"].items():  # its process is new after each of them, and so is its endpoint
            metrics.RESTARTS.labels(config["run"], cause).inc(times)
    with errors.logging_to_stderr(), worker.working_in(call.cwd), _listening(config["places"], config["wish"]):
        called = registry.find(call.module)
        try:
            stage.execute(called, called.recipe.of(call.recipe, call.module), call.inputs, call.out)
        except StoppedError as stopped:
            return int(stopped.reason)
    return None


@contextlib.contextmanager
def _listening(asked: WorkerSlots, wish: Path) -> Iterator[None]:
    """Ask for a stop when this worker's node is drained, or, in the first worker, when somebody wishes it (the file
    ``wish`` is there), or there could be more of them."""
    done = threading.Event()
    threading.Thread(target=_listen, args=(asked, wish, done), daemon=True).start()
    try:
        yield
    finally:
        done.set()


def _listen(asked: WorkerSlots, wish: Path, done: threading.Event) -> None:
    context = ray.train.get_context()
    node = ray.get_runtime_context().get_node_id()
    workers, first = context.get_world_size(), context.get_world_rank() == 0
    grows = first and isinstance(asked.training.placement.workers, WorkerRange)
    looks = 0
    while not done.wait(elastic.LOOK_SECONDS):
        if first and wish.exists():
            graceful_stop.request(Reason.TERMINATED)
        # A head that is busy or away for a moment is asked again.
        with contextlib.suppress(RayError):
            if node in draining_nodes():
                graceful_stop.request(Reason.LEAVING)
            elif grows:
                looks = looks + 1 if (asked.fitting(workers + asked.free()) or 0) > workers else 0
                if looks == STEADY_LOOKS:
                    graceful_stop.request(Reason.GROWING)


def _environment(gpu: bool) -> dict[str, Any]:
    """Hides GPUs from workers that were not given one, also those a cluster was told not to count; Ray does not."""
    hide = not gpu and (ray.cluster_resources().get("GPU", 0) or torch.cuda.is_available())
    return {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}} if hide else {}


@contextlib.contextmanager
def _shown(run: Run, name: str) -> Iterator[None]:
    """Show a run's progress from its metrics file while others train it."""
    stop = threading.Event()
    watching = threading.Thread(target=_watch, args=(run, name, stop), daemon=True)
    watching.start()
    try:
        yield
    finally:
        stop.set()
        watching.join()


def _watch(run: Run, name: str, stop: threading.Event) -> None:
    shown: progress.Progress | None = None
    done = 0
    while not stop.wait(WATCH_SECONDS):
        if (last := metrics_log.newest_metrics(run.metrics, "train")) is None:
            continue
        if shown is None:
            shown = progress.Progress(f"{name}: training", last["steps"], "steps", last["step"])
        elif last["step"] != done:  # less, where an attempt starts again from its last checkpoint
            shown.reach(last["step"], progress.training_note(last))
        done = last["step"]
    if shown is not None:
        shown.close()


@contextlib.contextmanager
def _output_to(path: Path) -> Iterator[None]:
    """Ray Train's own chatter goes to a file; ours is written by the workers' logs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path)
    loggers = [logging.getLogger(name) for name in ("ray.train", "ray.data")]
    for noisy in loggers:
        noisy.addHandler(handler)
        noisy.propagate = False
    try:
        yield
    finally:
        for noisy in loggers:
            noisy.removeHandler(handler)
        handler.close()
