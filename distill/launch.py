"""The front door: a whole pipeline, from text to report, on a Ray cluster.

::

    python -m distill.launch PIPELINE --out DIR [--set key=value]…

Runs on the cluster at ``RAY_ADDRESS`` (``ray job submit -- python -m distill.launch …``), or starts one on this
machine for as long as it runs. Everything lands below ``--out``, which all nodes must see::

    corpus/ tokens/ teacher/                     artifacts; tokens-<seq_len>/ where phases read other lengths
    runs/<name>/  students/<name>/               training runs, and the students exported from them
    finetune/<model>/<task>/                     scores
    exports/<model>/onnx|int8/  latency/         exports, and how fast they are
    logs/  jobs.json  report/                    what happened, and what came of it

Run again, it skips what is complete and resumes what is not.
"""

import argparse
import sys
import time
from pathlib import Path

from cluster import artifact, jobs, ray_cluster, recipe, stage, storage
from cluster.jobs import Job, Outcome
from cluster.telemetry import say
from distill.phases import Schedule
from distill.pipeline import MAIN, Pipeline, Plan
from distill.places import LaunchError
from distill.run import Run
from distill.teacher import RUN, Teacher
from distill.workers import Call, on_workers


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m distill.launch", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("pipeline", metavar="PIPELINE", help="TOML file, or a pipeline that ships: demo, distilbert, …")
    parser.add_argument("--out", metavar="DIR", required=True, help="where everything will be, seen by all nodes")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="override a recipe value")
    options = parser.parse_args()
    with stage.errors_for_people():
        failed = launch(recipe.load(Pipeline, options.pipeline, options.set), _folder(options.out))
    if failed:
        sys.exit(1)


def _folder(text: str) -> Path:
    place = storage.location(text)
    if not isinstance(place, Path):
        raise LaunchError(
            f"--out {text}: runs grow in a folder, so a pipeline is made in one: name a folder that all nodes see"
        )
    return place


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
    inputs = plan.rows_of(teacher.train) if teacher.train else {}
    if teacher.train is None or (out / artifact.MANIFEST).is_file():
        stage.execute(stage.find("distill.teacher"), teacher, inputs, out)
    else:
        call = Call("distill.teacher", plan.pipeline.teacher, inputs, out)
        on_workers(call, teacher.train, Run(artifact.staging(out) / RUN))


def train_student(plan: Plan, name: str) -> None:
    """Train one student on the workers and export it; a finished run is left as it is."""
    distillation = plan.distillation(name)
    rows = plan.rows_of(distillation)
    inputs = {**rows, "teacher": plan.out / "teacher"}
    run = Run(plan.out / "runs" / name)
    train = stage.find("distill.train")
    total = Schedule.of(distillation, rows.values()).steps
    newest = run.newest()
    if newest is None or newest.step < total:
        on_workers(Call("distill.train", distillation.resolved(), inputs, run.path), distillation, run)
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


if __name__ == "__main__":
    main()
