"""The front door: a whole pipeline, from text to report, on a Ray cluster.

::

    python -m distill.launch PIPELINE --out DIR [--set key=value]…

Runs on the cluster at ``RAY_ADDRESS`` (``ray job submit -- python -m distill.launch …``), or starts one on this
machine for as long as it runs. Everything lands below ``--out``, which all nodes must see::

    corpus/ tokens/ teacher/                     artifacts
    runs/<name>/  students/<name>/               training runs, and the students exported from them
    finetune/<model>/<task>/                     scores
    exports/<model>/onnx|int8/  latency/         exports, and how fast they are
    logs/  jobs.json  report/                    what happened, and what came of it

Run again, it skips what is complete and resumes what is not.
"""

import argparse
import contextlib
import logging
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError

from cluster import artifact, jobs, ray_cluster, recipe, stage, telemetry
from cluster.jobs import Job, Outcome
from cluster.telemetry import say
from distill.distillation import Placement
from distill.pipeline import MAIN, Pipeline, Plan
from distill.run import Run
from distill.teacher import RUN, Teacher

_WATCH_SECONDS = 2.0


class LaunchError(ValueError):
    """A pipeline cannot go on."""


@dataclass(frozen=True)
class Call:
    """A stage call that workers make together."""

    module: str
    recipe: Mapping[str, Any]
    inputs: Mapping[str, Path]
    out: Path
    cwd: Path = field(default_factory=Path.cwd)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m distill.launch", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("pipeline", metavar="PIPELINE", help="TOML file, or a pipeline that ships: demo, distilbert, …")
    parser.add_argument("--out", metavar="DIR", required=True, help="where everything will be, seen by all nodes")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="override a recipe value")
    options = parser.parse_args()
    with stage.errors_for_people():
        failed = launch(recipe.load(Pipeline, options.pipeline, options.set), Path(options.out))
    if failed:
        sys.exit(1)


def launch(pipeline: Pipeline, out: Path) -> list[Outcome]:
    """Run a pipeline to its report; returns the outcomes of the jobs that failed.

    Raises:
        ValueError: something the rest depends on (corpus, tokens, teacher, training) cannot be made.
    """
    out = out.absolute()
    plan = Plan(pipeline, out)
    plan.check_data()
    out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with ray_cluster.connect(pipeline.cpus):
        outcomes = _required(jobs.run(plan.text(), out / "logs"))
        train_teacher(plan)
        train_student(plan, MAIN)
        outcomes += [train_ablation(plan, name) for name in pipeline.ablations]
        outcomes += jobs.run(plan.measurements(), out / "logs")
        artifact.write_json(out / "jobs.json", [outcome.resolved() for outcome in outcomes])
        outcomes += jobs.run([_report_job(plan)], out / "logs")
    failed = [outcome for outcome in outcomes if outcome.state == "failed"]
    if (out / "report" / "summary.txt").is_file():
        print((out / "report" / "summary.txt").read_text(encoding="utf-8"))
        print(f"report: {out / 'report' / 'report.html'}")
    say(f"pipeline {out.name}: {time.monotonic() - started:.0f} s, {len(failed)} failed jobs")
    return failed


def train_teacher(plan: Plan) -> None:
    """Make the teacher: where it trains, on the workers; where it is taken as it is, here."""
    out = plan.out / "teacher"
    teacher = Teacher.of(plan.pipeline.teacher, "teacher")
    inputs = {"tokens": plan.out / "tokens"} if teacher.train else {}
    if teacher.train is None or (out / artifact.MANIFEST).is_file():
        stage.execute(stage.find("distill.teacher"), teacher, inputs, out)
    else:
        call = Call("distill.teacher", plan.pipeline.teacher, inputs, out)
        on_workers(call, teacher.train.placement, Run(artifact.staging(out) / RUN))


def train_student(plan: Plan, name: str) -> None:
    """Train one student on the workers and export it; a finished run is left as it is."""
    distillation = plan.distillation(name)
    inputs = {"tokens": plan.out / "tokens", "teacher": plan.out / "teacher"}
    run = Run(plan.out / "runs" / name)
    train = stage.find("distill.train")
    total = distillation.total_steps(int(artifact.read(inputs["tokens"]).facts["train_rows"]))
    newest = run.newest()
    if newest is None or newest.step < total:
        on_workers(Call("distill.train", distillation.resolved(), inputs, run.path), distillation.placement, run)
    else:
        run.claim(distillation.identity(), stage.identities(train, inputs))
        say(f"runs/{name}: already complete")
    export = stage.find("distill.export")
    stage.execute(export, export.recipe(), {"run": run.path}, plan.out / "students" / name)


def train_ablation(plan: Plan, name: str) -> Outcome:
    """Train another student; that it cannot be made (it may diverge) is a result, and stops nothing else."""
    started = time.monotonic()
    try:
        train_student(plan, name)
    except ValueError as error:
        say(f"runs/{name}: failed: {error}")
        return Outcome(f"runs/{name}", "failed", time.monotonic() - started, stage.explain(error))
    return Outcome(f"runs/{name}", "done", time.monotonic() - started)


def on_workers(call: Call, placement: Placement, run: Run) -> None:
    """Run a training stage on Ray Train workers, one per device, starting them again when one dies.

    ``run`` is the folder it trains in, whose metrics are shown meanwhile.

    Raises:
        LaunchError: the cluster is too small, the workers died too often, or the stage refused (its own line).
    """
    workers, use_gpu = _workers(placement)
    out = call.out
    for attempt in range(placement.restarts + 1):
        trainer = TorchTrainer(
            train_worker,
            train_loop_config={"call": call},
            torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=workers, use_gpu=use_gpu, resources_per_worker=_resources(placement, use_gpu)
            ),
            # Restarting is ours: Ray would also repeat what the user must mend. Preempted nodes are Ray's.
            run_config=RunConfig(
                name=out.name,
                storage_path=str(out.parent / ".ray"),
                failure_config=FailureConfig(max_failures=0),
                worker_runtime_env=_environment(use_gpu),
            ),
        )
        try:
            with _output_to(out.parent / ".ray" / f"{out.name}.log"), _shown(run, out.name):
                trainer.fit()
            return
        except WorkerGroupError as error:
            if (line := _refusal(error)) is not None:
                raise LaunchError(line) from None
            if attempt == placement.restarts:
                raise LaunchError(f"workers of {out.name} died {attempt + 1} times: {_last_line(error)}") from None
            say(f"{out.name}: a worker died; starting again from the newest checkpoint ({_last_line(error)})")
        except TrainingFailedError as error:
            raise LaunchError(f"{out.name} could not be started: {_last_line(error)}") from None


def train_worker(config: Mapping[str, Call]) -> None:
    """What every Ray Train worker does: the stage itself, as under torchrun."""
    call = config["call"]
    with stage.logging_to_stderr(), jobs.working_in(call.cwd):
        called = stage.find(call.module)
        stage.execute(called, called.recipe.of(call.recipe, call.module), call.inputs, call.out)


def _workers(placement: Placement) -> tuple[int, bool]:
    """How many workers, and whether each has a GPU."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = int(sum(node.get("GPU", 0) for node in nodes)) if placement.device == "auto" else 0
    # Whole workers only: a worker's CPUs are all on one node.
    places = sum(int(node.get("CPU", 0) // placement.threads) for node in nodes)
    fitting = sum(1 for node in nodes if node.get("CPU", 0) >= placement.threads)
    workers = placement.workers if placement.workers != "auto" else gpus or fitting
    room, unit = (min(gpus, places), "GPU") if gpus else (places, f"{placement.threads} CPUs")
    if not 0 < workers <= room:
        raise LaunchError(
            f"placement asks for {workers} workers, the cluster has room for {room} (a worker takes {unit}): "
            'write fewer placement.workers, or placement.device = "cpu", or start a larger cluster'
        )
    return workers, gpus > 0


def _environment(use_gpu: bool) -> dict[str, Any]:
    """Hides the GPUs of a cluster from workers that were not given one; Ray does not."""
    hide = not use_gpu and ray.cluster_resources().get("GPU", 0)
    return {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}} if hide else {}


def _resources(placement: Placement, use_gpu: bool) -> dict[str, float]:
    return {"CPU": placement.threads, "GPU": 1} if use_gpu else {"CPU": placement.threads}


def _refusal(error: WorkerGroupError) -> str | None:
    """The line meant for people, when a worker stopped with one and none died.

    When one dies, the others fail as well, with whatever its silence breaks in them: that is nobody's to mend.
    """
    if any(isinstance(failure, ray.exceptions.RayActorError) for failure in error.worker_failures.values()):
        return None
    for failure in error.worker_failures.values():
        cause = getattr(failure, "_base_exc", failure)
        if (line := stage.explain(cause)) is not None:
            return line
    return None


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _required(outcomes: list[Outcome]) -> list[Outcome]:
    for outcome in outcomes:
        if outcome.state == "failed":
            raise LaunchError(f"{outcome.name}: {outcome.error}")
    return outcomes


def _report_job(plan: Plan) -> Job:
    """The report of what is there now; an older report of something else is set aside, never overwritten."""
    out = plan.out / "report"
    report = stage.find("eval.report")
    if out.exists():
        found = artifact.read(out, "report")
        given = stage.identities(report, {"results": plan.out})
        if artifact.difference(found, inputs=given, recipe=report.recipe().identity()) is not None:
            out.rename(out.with_name(f"report-{found.identity[:12]}"))
    return Job(name="report", module="eval.report", recipe={}, inputs={"results": plan.out}, out=out)


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
    shown: telemetry.Progress | None = None
    done = 0
    while not stop.wait(_WATCH_SECONDS):
        steps = [line for line in telemetry.read_metrics(run.metrics) if line["kind"] == "train"]
        if not steps:
            continue
        last = steps[-1]
        if shown is None:
            shown = telemetry.Progress(f"{name}: training", last["steps"], "steps", last["step"])
        elif last["step"] > done:
            shown.advance(last["step"] - done, telemetry.training_note(last))
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


if __name__ == "__main__":
    # The imported module instead of __main__: workers find train_worker by name.
    from distill import launch as imported

    imported.main()
