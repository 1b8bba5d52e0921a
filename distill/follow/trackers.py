"""The trackers: how each takes points. Their libraries are extras, imported where a follower opens one.

``open`` continues the curve of the state where it has one, else it names a new one there. It says what the tracker has
drawn already where it knows better than the state: a follower may have died after the tracker took a batch and before
it noted that.
"""

import importlib.util
import itertools
import os
import socket
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias, get_args

from cluster.artifacts.errors import StageError
from distill.follow.followed_run import KINDS, FollowedRun, Point, State

TrackerName: TypeAlias = Literal["tensorboard", "wandb", "mlflow", "trackio"]
NAMES: tuple[TrackerName, ...] = get_args(TrackerName)
PROJECT = "stillhouse"
"""Project or experiment of all runs, where the tracker's own variable names no other."""


class Tracker(Protocol):
    """An open curve of a run."""

    def draw(self, points: Sequence[Point]) -> None:
        """Take points, in the order of their steps; returns when they are handed over."""

    def close(self, finished: bool) -> None:
        """End the curve; ``finished`` where the run has made its last step."""


class TensorBoard:
    """Event files in ``tensorboard/``, which ``tensorboard --logdir`` reads."""

    def __init__(self, run: FollowedRun, state: State) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.plugins.hparams.summary_v2 import hparams_pb
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = Event, Summary
        folders = run.base / "tensorboard"
        state.curve = state.curve or _new_name(folders, run.name)
        folder = folders / state.curve
        is_new = not folder.exists()
        state.drawn = {} if is_new else _held(folder)
        folder.mkdir(parents=True, exist_ok=True)
        # The library's own writer of events writes in a thread, whose error would be a traceback beside our line.
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        self._writer = RecordWriter((folder / name).open("xb"))
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))
        if is_new:
            self._write(Event(wall_time=time.time(), step=0, summary=hparams_pb(run.parameters())))

    def draw(self, points: Sequence[Point]) -> None:
        for point in points:
            values = [self._summary.Value(tag=name, simple_value=value) for name, value in point.values.items()]
            self._write(self._event(wall_time=time.time(), step=point.step, summary=self._summary(value=values)))
        self._writer.flush()

    def _write(self, event: Any) -> None:
        self._writer.write(event.SerializeToString())

    def close(self, finished: bool) -> None:
        self._writer.close()


def _new_name(folders: Path, name: str) -> str:
    """``student``; ``student-2`` where an earlier run of this name has curves."""
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(each for each in names if not (folders / each).exists())


def _held(folder: Path) -> dict[str, int]:
    """The last step of every kind in the event files of a folder."""
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={SCALARS: 0})
    events.Reload()
    found: dict[str, int] = {}
    for tag in events.Tags()[SCALARS]:
        kind = tag.partition("/")[0]
        found[kind] = max(found.get(kind, -1), *(event.step for event in events.Scalars(tag)))
    return found


class WeightsAndBiases:
    """A run of Weights & Biases; ``WANDB_MODE=offline`` writes files for ``wandb sync``."""

    def __init__(self, run: FollowedRun, state: State) -> None:
        import wandb

        state.curve = state.curve or uuid.uuid4().hex[:16]
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=state.curve,
            name=run.title,
            config=run.parameters(),
            dir=os.environ.get("WANDB_DIR", str(run.base)),
            resume="allow",
            settings=wandb.Settings(console="off", x_disable_stats=True),
        )
        # Its own steps only grow: a run that it continues would lose the validation of its last step.
        self._run.define_metric("*", step_metric="step")

    def draw(self, points: Sequence[Point]) -> None:
        for point in points:
            self._run.log({**point.values, "step": point.step})

    def close(self, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)


_MLFLOW_CHARACTERS = 6000
"""Of a parameter; the server refuses longer ones."""


class MLflow:
    """A run of the MLflow server at ``MLFLOW_TRACKING_URI``."""

    def __init__(self, run: FollowedRun, state: State) -> None:
        # The library's own patience, minutes for every request, is longer than the end of a run may take.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        self._state = state
        self._metric, self._client = Metric, MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
        if state.curve:
            self._client.update_run(state.curve, status="RUNNING")
            for kind in KINDS:
                steps = [each.step for each in self._client.get_metric_history(state.curve, f"{kind}/total")]
                state.drawn[kind] = max([state.drawn.get(kind, -1), *steps])
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self._client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment else self._client.create_experiment(name)
        state.curve = self._client.create_run(number, run_name=run.title).info.run_id
        parameters = [Param(key, str(value)[:_MLFLOW_CHARACTERS]) for key, value in run.parameters().items()]
        for first in range(0, len(parameters), 100):  # the server's limit
            self._client.log_batch(state.curve, params=parameters[first : first + 100])

    def draw(self, points: Sequence[Point]) -> None:
        now = int(1000 * time.time())
        # The server takes at most 1000 values at once. A point is not divided: a part of it would count as drawn.
        together = max(1, 1000 // max(len(point.values) for point in points))
        for first in range(0, len(points), together):
            values = [
                self._metric(name, value, now, point.step)
                for point in points[first : first + together]
                for name, value in point.values.items()
            ]
            self._client.log_batch(self._state.curve, metrics=values)

    def close(self, finished: bool) -> None:
        self._client.set_terminated(self._state.curve, status="FINISHED" if finished else "KILLED")


class Trackio:
    """A run of Trackio, on this machine or in the Space of ``TRACKIO_SPACE_ID``."""

    def __init__(self, run: FollowedRun, state: State) -> None:
        import trackio

        state.curve = state.curve or f"{run.title.replace('/', '-')}-{uuid.uuid4().hex[:6]}"
        self._run = trackio.init(
            os.environ.get("TRACKIO_PROJECT", PROJECT),
            name=state.curve,
            config=run.parameters(),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def draw(self, points: Sequence[Point]) -> None:
        for point in points:
            self._run.log(dict(point.values), step=point.step)

    def close(self, finished: bool) -> None:
        self._run.finish()


@dataclass(frozen=True)
class TrackerSpec:
    """A tracker by its library and what it needs of the environment."""

    open: type[TensorBoard] | type[WeightsAndBiases] | type[MLflow] | type[Trackio]
    variable: str | None = None
    """A variable that must be set, and an example of its value."""


TRACKERS: Mapping[TrackerName, TrackerSpec] = {
    "tensorboard": TrackerSpec(TensorBoard),
    "wandb": TrackerSpec(WeightsAndBiases),
    "mlflow": TrackerSpec(MLflow, "MLFLOW_TRACKING_URI=http://localhost:5000"),
    "trackio": TrackerSpec(Trackio),
}


def check(names: Sequence[TrackerName]) -> None:
    """Find out before anything trains that every tracker can be opened.

    Raises:
        StageError: a library is not installed, with the command that installs it, or a variable is not set.
    """
    for name in names:
        found = importlib.util.find_spec(name)
        # Without an origin it is a folder of this name, such as the one that TensorBoard's files are in.
        if found is None or found.origin is None:
            raise StageError(f"{name} is not installed: pip install 'stillhouse[{name}]'")
        variable, _, example = (TRACKERS[name].variable or "").partition("=")
        if variable and not os.environ.get(variable):
            raise StageError(f"{name} needs its server: set {variable}, for example {variable}={example}")
