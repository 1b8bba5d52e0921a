"""Runs a whole pipeline, from text to report, on a Ray cluster.

::

    stillhouse launch PIPELINE --out DIR [--set key=value]…

Runs on the cluster at ``RAY_ADDRESS`` (``ray job submit -- python -m distill.launch …``), or starts one on this
machine for as long as it runs. All results are below ``--out``, which all nodes must see::

    corpus/ tokens/ teacher/                     artifacts; tokens-<seq_len>/ where phases read other lengths
    runs/<name>/  students/<name>/               training runs, and the students exported from them
    probes/<name>/                               scores of a run's checkpoints, while it trains
    finetune/ exports/ latency/ baselines/       results of :mod:`eval.suite`
    queue/  jobs.json  report/                   the queue's ledger, how every job ended, the report

Run again, it skips what is complete and resumes what is not.
"""

import argparse
import contextlib
import os
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cluster.actors import ray_cluster
from cluster.artifacts import commit, errors, registry, stage
from cluster.artifacts.cli import SET_HELP
from cluster.artifacts.help_format import HelpFormatter
from cluster.artifacts.stage import TrainingRun
from cluster.jobs import client
from cluster.jobs.job import GOOD, Job, JobsFailedError, Outcome
from cluster.storage import filesystem
from cluster.telemetry.formatting import elapsed, plural
from cluster.telemetry.progress import say
from cluster.tokens.rows import open_tokens
from distill.checkpointing.run_folder import Run
from distill.data.schedule import Schedule
from distill.launch import pipeline_recipe
from distill.launch.elastic import LaunchError
from distill.launch.pipeline_recipe import MAIN, SUITE, Pipeline, PipelinePlan
from distill.launch.pipeline_stages import Stages
from distill.launch.ray_train import Call, on_workers
from distill.train.teacher import RUN, Teacher

JOBS = "jobs.json"


def main(arguments: Sequence[str] | None = None, prog: str = "python -m distill.launch") -> None:
    """The command line."""
    epilog = f"example: {prog} own-text --out out --set teacher.source=models/my-bert"
    parser = argparse.ArgumentParser(
        prog=prog, formatter_class=HelpFormatter, description=(__doc__ or "").partition("\n")[0], epilog=epilog
    )
    what = "TOML file, or a pipeline that ships, as stillhouse recipes lists them; example: demo"
    parser.add_argument("pipeline", metavar="PIPELINE", help=what)
    where = "folder of all results, which all nodes must see; run again, it continues there; example: out"
    parser.add_argument("--out", metavar="DIR", required=True, help=where)
    parser.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], help=f"{SET_HELP}train.rows_per_step=16"
    )
    options = parser.parse_args(arguments)
    with errors.errors_for_people():
        pipeline, out = pipeline_recipe.load(options.pipeline, options.set), filesystem.location(options.out)
        if not isinstance(out, Path):
            raise LaunchError(f"--out {options.out}: a pipeline runs in a folder: name one that all nodes see")
        if launch(pipeline, out):
            sys.exit(1)


def launch(pipeline: Pipeline, out: Path) -> list[dict[str, Any]]:
    """Run a pipeline to its report; returns the entries of ``jobs.json`` of the jobs that failed.

    Raises:
        ValueError: corpus, tokens, teacher or the main training failed, on which the rest depends.
    """
    out = out.absolute()
    plan = PipelinePlan(pipeline, out)
    plan.check()
    plan.check_sources()
    out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    stages = Stages(plan)
    with ray_cluster.connect(pipeline.cpus):
        outcomes = []
        for jobs in _turns(plan.text()):
            stages.begin(jobs[0].name)
            outcomes += client.run(jobs, plan.ledger)
            if failure := next((outcome for outcome in outcomes if outcome.state not in GOOD), None):
                raise LaunchError(f"{failure.name} failed, as said above: correct that, and run the command again")
        stages.begin("teacher")
        train_teacher(plan)
        stages.begin(MAIN)
        outcomes += train_student(plan, MAIN)
        for name in pipeline.all_ablations():
            stages.begin(name)
            outcomes += train_ablation(plan, name)
        filesystem.write_json(out / JOBS, [outcome.resolved() for outcome in outcomes])
        stages.begin("suite")
        # jobs.json says which jobs have failed.
        with contextlib.suppress(JobsFailedError):
            registry.execute(SUITE, pipeline.suite, {}, out)
    failed = [entry for entry in filesystem.read_json(out / JOBS) if entry["state"] not in GOOD]
    say(f"{out.name}: {elapsed(time.monotonic() - started)}, {plural(len(failed), 'job')} failed")
    print(ending(out), flush=True)
    return failed


def _turns(jobs: Sequence[Job]) -> list[list[Job]]:
    """The corpus alone, then what is made of it at the same time: the corpus is complete by then."""
    corpus, *others = jobs
    after = [tuple(name for name in job.after if name != corpus.name) for job in others]
    return [[corpus], [replace(job, after=left) for job, left in zip(others, after, strict=True)]]


def ending(out: Path) -> str:
    """The last screen: the report's summary, and what to do next."""
    summary = out / "report" / "summary.txt"
    if not summary.is_file():
        return f"no report: {out / JOBS} says why"
    place = os.path.relpath(out)
    shown = place if not place.startswith("..") else str(out)
    return (
        f"\n{summary.read_text(encoding='utf-8')}\n"
        f"report   {summary.with_name('report.html').as_uri()}\n"
        f"ask it   stillhouse ask {shlex.quote(shown)}\n"
        "yours    stillhouse new mine    # a recipe of ten lines: your text, your BERT"
    )


def train_teacher(plan: PipelinePlan) -> None:
    """Make the teacher: on the workers if it trains, else in this process."""
    out = plan.out / "teacher"
    teacher = Teacher.of(plan.pipeline.teacher, "teacher")
    inputs = plan.rows_of(teacher.train) if teacher.train else {}
    if teacher.train is None or (out / commit.MANIFEST).is_file():
        registry.execute("distill.teacher", plan.pipeline.teacher, inputs, out)
    else:
        call = Call("distill.teacher", plan.pipeline.teacher, inputs, out)
        on_workers(call, teacher.train, Run(commit.staging(out) / RUN))


def train_student(plan: PipelinePlan, name: str) -> list[Outcome]:
    """Train and export one student while the suite's side jobs run; returns how those ended.

    A finished run stays as it is.
    """
    distillation = plan.distillation(name)
    rows = plan.rows_of(distillation)
    inputs = {**rows, "teacher": plan.out / "teacher"}
    run = Run(plan.out / "runs" / name)
    run.claim(distillation.identity(), stage.identities(registry.find("distill.train"), inputs))
    total = Schedule(distillation, map(open_tokens, rows.values())).steps
    newest = run.newest()
    side_jobs = plan.side_jobs(TrainingRun(name, total))
    with _submitted(side_jobs, plan.ledger):
        if newest is None or newest.step < total:
            on_workers(Call("distill.train", distillation.resolved(), inputs, run.path), distillation, run)
        else:
            say(f"runs/{name}: already complete")
    registry.execute("distill.export", {}, {"run": run.path}, plan.out / "students" / name)
    return client.run(side_jobs, plan.ledger)


@contextlib.contextmanager
def _submitted(jobs: Sequence[Job], ledger: Path) -> Iterator[None]:
    """Submit jobs that run during the block and after it; cancel them where the block fails."""
    queue = client.queue(ledger)
    known = queue.submit(jobs)
    try:
        yield
    except BaseException:
        queue.cancel(known)
        raise


def train_ablation(plan: PipelinePlan, name: str) -> list[Outcome]:
    """Train another student. Its failure, for example because it diverges, is a result and stops no other run."""
    started = time.monotonic()
    try:
        side_jobs = train_student(plan, name)
    except ValueError as error:
        say(f"runs/{name}: failed: {error}")
        return [Outcome(f"runs/{name}", "failed", time.monotonic() - started, errors.explain(error))]
    return [Outcome(f"runs/{name}", "done", time.monotonic() - started), *side_jobs]
