"""Fine-tunes and scores the checkpoints of a run while it trains.

::

    stillhouse probes RECIPE --run RUN --out DIR

The stage exports every new checkpoint as a student and submits a fine-tuning job for each task. A score becomes a line
of ``RUN/probes.jsonl``, a point in the report and a value of ``stillhouse_probe_score_ratio``. The stage ends when it
has scored the run's last step::

    DIR/probes.json                  all points
    DIR/step-00000050/<task>/        manifest.json and scores.json of a fine-tuning; its weights are not kept
"""

import json
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field, PositiveFloat, PositiveInt

from cluster.actors import ray_cluster
from cluster.artifacts import artifact, errors, registry, stage
from cluster.artifacts.recipe import Recipe
from cluster.jobs import client
from cluster.jobs.job import GOOD, Job, Outcome
from cluster.storage import filesystem
from cluster.telemetry import exporter, metrics, metrics_log, progress

POINTS = "probes.jsonl"
STUDENT = "student"
POLL_SECONDS = 2.0


class ProbePlacement(Recipe):
    cpus: PositiveInt = 1
    """CPUs of a fine-tuning job."""
    gpus: float = Field(0.0, ge=0)
    """GPUs of a fine-tuning job; with a fraction, several jobs share one."""
    priority: int = 0
    """Of the jobs in the queue: higher ones start first."""
    metrics_port: int | None = Field(None, ge=0, le=65535)
    """Port of this process's ``/metrics``."""
    patience_hours: PositiveFloat = 24.0
    """The stage fails when the run has written nothing for this long."""


class Probe(Recipe):
    """One task: values of ``eval.finetune``, and the folder of its examples unless they are on the hub."""

    finetune: dict[str, Any]
    """Values of ``eval.finetune``."""
    folder: str | None = None
    """Folder of the examples, unless they are on the Hub."""


class Probing(Recipe):
    """Which checkpoints of a run are fine-tuned on which tasks."""

    tasks: dict[str, Probe] = Field(min_length=1)
    """Tasks to fine-tune on, by name."""
    steps: PositiveInt
    """Steps of the whole run."""
    every: PositiveInt = 1
    """At least this many steps between probes; the last checkpoint is always probed."""
    placement: ProbePlacement = ProbePlacement()


def run(recipe: Probing, inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
    """Probe every checkpoint up to the run's last; facts hold the points.

    Raises:
        StageError: the run has written nothing for hours, and has checkpoints to come.
    """
    source = inputs["run"]
    watch = CheckpointWatch(recipe, source, out)
    with ray_cluster.connect(), exporter.serving(recipe.placement.metrics_port):
        queue = client.queue(out.parent / "queue")
        watch.resume(queue)
        while not watch.is_over:
            watch.look(queue)
            watch.check_alive()
            time.sleep(POLL_SECONDS)
    points = metrics_log.read_metrics(source / POINTS)
    filesystem.write_json(out / "probes.json", points)
    return {"points": points}


@dataclass
class CheckpointWatch:
    """The checkpoints of one run, and their jobs in the queue."""

    recipe: Probing
    source: Path
    out: Path
    begun: set[int] = field(default_factory=set)
    waiting: dict[str, tuple[int, Job]] = field(default_factory=dict)
    """Jobs without a score by id, each with the step of its checkpoint."""

    @property
    def is_over(self) -> bool:
        return self.recipe.steps in self.begun and not self.waiting

    def resume(self, queue: client.Queue) -> None:
        """Submit the jobs of an earlier attempt again: the queue knows them, or finds their artifacts."""
        scored = {point["step"] for point in metrics_log.read_metrics(self.source / POINTS)}
        folders = {int(path.name.removeprefix("step-")) for path in self.out.glob("step-*[0-9]")}
        for step in sorted(scored | folders):
            self._begin(step, queue)

    def look(self, queue: client.Queue) -> None:
        """Submit jobs for new checkpoints, and record the scores of jobs that have ended."""
        for step in self.new():
            self._begin(step, queue)
        for known, outcome in queue.outcomes(list(self.waiting)).items():
            self._score(*self.waiting.pop(known), outcome)

    def _begin(self, step: int, queue: client.Queue) -> None:
        self.begun.add(step)
        for job in self._jobs(step):
            self.waiting[queue.submit([job])[0]] = (step, job)
        self._drop_export(step)

    def _folder(self, step: int) -> Path:
        return self.out / f"step-{step:08d}"

    def check_alive(self) -> None:
        """
        Raises:
            StageError: the run has written nothing for ``patience_hours``.
        """
        written = (self.source / name for name in ("metrics.jsonl", "recipe.json"))
        latest = max((path.stat().st_mtime for path in written if path.exists()), default=time.time())
        hours = self.recipe.placement.patience_hours
        if not self.waiting and self.recipe.steps not in self.begun and time.time() - latest > 3600 * hours:
            raise errors.StageError(
                f"{self.source} has written nothing for {hours:g} hours, and has not reached its {self.recipe.steps:,} "
                "steps: continue the run and probe it again, or raise placement.patience_hours"
            )

    def new(self) -> list[int]:
        """Steps of checkpoints to probe now, oldest first."""
        there = sorted(int(path.name.removeprefix("step_")) for path in self.source.glob("checkpoints/step_*[0-9]"))
        found: list[int] = []
        for step in there:
            last = max((*self.begun, *found), default=-self.recipe.every)
            if step not in self.begun and (step >= last + self.recipe.every or step == self.recipe.steps):
                found.append(step)
        return found

    def _jobs(self, step: int) -> Iterator[Job]:
        """A job for each task without a score of this step. Exports the student first: training prunes checkpoints."""
        scored = {point["task"] for point in metrics_log.read_metrics(self.source / POINTS) if point["step"] == step}
        folder, placement = self._folder(step), self.recipe.placement
        tasks = [task for task in self.recipe.tasks if task not in scored]
        if tasks and not self._export(step, folder / STUDENT):
            return
        for task in tasks:
            probe = self.recipe.tasks[task]
            inputs = {"model": folder / STUDENT} | ({} if probe.folder is None else {"data": Path(probe.folder)})
            yield Job(
                name=f"{self.source.name} at step {step:,}: {task}",
                stage="eval.finetune",
                recipe={**probe.finetune, "placement": {"threads": placement.cpus}},
                inputs=inputs,
                out=folder / task,
                cpus=placement.cpus,
                gpus=placement.gpus,
                priority=placement.priority,
            )

    def _export(self, step: int, student: Path) -> bool:
        """Export a checkpoint as a student; False if training has deleted it already."""
        try:
            if not student.exists():
                registry.execute("distill.export", {"step": step}, {"run": self.source}, student)
        except ValueError as error:
            if (self.source / "checkpoints" / f"step_{step:08d}").exists():
                raise
            progress.say(f"step {step:,} is not probed: {error}")
            return False
        return True

    def _score(self, step: int, job: Job, outcome: Outcome) -> None:
        """Record the score of a fine-tuned checkpoint; a failed job only prints a line."""
        place = Path(job.out)
        if outcome.state in GOOD:
            self._record(step, place, seeds=len(job.recipe.get("seeds", (1,))))
            for path in place.iterdir():
                if path.name not in ("manifest.json", "scores.json"):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        else:
            progress.say(f"{job.name}: {outcome.state}: {outcome.error}")
        self._drop_export(step)

    def _drop_export(self, step: int) -> None:
        """Delete the exported student once no job needs it."""
        if not any(waiting == step for waiting, _ in self.waiting.values()):
            shutil.rmtree(self._folder(step) / STUDENT, ignore_errors=True)

    def _record(self, step: int, place: Path, seeds: int) -> None:
        facts = artifact.read(place, "finetune").facts
        task, name = facts["task"], self.source.name
        point = {"step": step, **{key: facts[key] for key in ("task", "metric", "score", "low", "high")}}
        # Where the fine-tuning will be once this artifact is complete, relative to the folder of the pipeline.
        final = f"probes/{name}/{place.parent.name}/{task}"
        with (self.source / POINTS).open("a", encoding="utf-8") as file:
            file.write(json.dumps({**point, "seeds": seeds, "artifact": final}) + "\n")
        shown = metrics.run_name(self.source)
        metrics.PROBE_STEP.labels(shown, task).set(step)
        metrics.PROBE_SCORE.labels(shown, task).set(facts["score"] / 100)


def identity(path: Path) -> str:
    """Identity of a run folder: what it trains, not how far it is."""
    recipe = path / "recipe.json"
    if not recipe.is_file():
        raise errors.StageError(f"{path} is not a run: it has no recipe.json; stillhouse train makes one")
    return filesystem.file_sha256(recipe)


STAGE = stage.Stage(
    name="eval.probes",
    run=run,
    recipe=Probing,
    inputs={"run": stage.Role((stage.FOLDER,), identify=identity)},
    example="default --set steps=200 --set tasks.rte.finetune.epochs=1 --set tasks.rte.folder=glue/rte",
    produces="probes",
    starts_jobs=True,
)
