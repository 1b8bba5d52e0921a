"""Measures a teacher and its students, as jobs in the queue, and makes one report.

::

    stillhouse suite RECIPE [--teacher DIR] [--student DIR] --out DIR

Models are the inputs, those the recipe names, and those of a pipeline below ``--out`` (``teacher/``,
``students/<name>/``). The results are there too::

    datasets/ bag_of_words/<task>/ finetune/<model>/<task>/ exports/<model>/<format>/ latency/ baselines/
    pages/<name>/ mobile/<name>/
    suite.json      the models, and which of them are compared how
    jobs.json       how every job ended
    report/         from which the model cards of the students are filled

Run again, it runs what is missing. The jobs go through the queue of the Ray cluster at ``RAY_ADDRESS``
(:mod:`cluster.jobs`), or of one that runs on this machine during the suite.
"""

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cluster.actors import ray_cluster
from cluster.artifacts import artifact, commit, errors, registry, stage
from cluster.jobs import client
from cluster.jobs.job import GOOD, Job, JobsFailedError, Outcome
from cluster.storage import filesystem
from eval.hub import model_card
from eval.results.schema import STUDENT, TEACHER
from eval.suite import checks
from eval.suite.plan import SuitePlan, side_jobs
from eval.suite.recipe import Suite
from eval.suite.workload import workload

LEDGER = "queue"
SUITE, JOBS, REPORT = "suite.json", "jobs.json", "report"
FEW = 5
"""Failed jobs that an error names."""
PLACES = ("datasets", "bag_of_words", "finetune", "exports", "latency", "baselines", "pages", "mobile", REPORT)
"""The folders of results below ``--out``, which start the names of the suite's jobs."""


def run(recipe: Suite, inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
    """Run the jobs of a suite in the folder ``out``, then report.

    Raises:
        StageError: a model or folder that the recipe needs is not there.
        JobsFailedError: some jobs have failed; the others are done, and in the report.
    """
    plan = SuitePlan(recipe, models(recipe, inputs, out), out)
    checks.check(recipe, stage.StageContext(out, models=tuple(plan.models)))
    wanted = plan.jobs()
    out.mkdir(parents=True, exist_ok=True)
    filesystem.write_json(out / SUITE, plan.described())
    with ray_cluster.connect():
        outcomes = client.run(wanted, out / LEDGER)
        record(out, outcomes)
        outcomes += client.run([_report_job(out)], out / LEDGER)
    record(out, outcomes)
    if (out / REPORT).is_dir():
        fill_cards(recipe, plan, out)
    if failed := [outcome.name for outcome in outcomes if outcome.state not in GOOD]:
        more = f" and {len(failed) - FEW} more" if len(failed) > FEW else ""
        raise JobsFailedError(
            f"{len(failed)} of {len(outcomes)} jobs failed ({', '.join(failed[:FEW])}{more}): {out / JOBS} says why; "
            "the same command tries them again"
        )
    return {}


def models(recipe: Suite, inputs: Mapping[str, Path], out: Path) -> dict[str, Path]:
    """The folder of every model: inputs before the recipe's, those before what is below ``out``.

    Raises:
        StageError: a folder that the recipe names is not there.
    """
    found = {TEACHER: out / TEACHER} if (out / TEACHER).is_dir() else {}
    students = sorted(path for path in out.glob("students/*") if path.is_dir() and not path.name.startswith("."))
    found |= {path.name: path for path in sorted(students, key=lambda path: path.name != STUDENT)}
    found |= {name: Path(place).absolute() for name, place in recipe.models.items()}
    found |= {name: place.absolute() for name, place in inputs.items()}
    for name, place in found.items():
        if not place.is_dir():
            raise errors.StageError(f"the model {name}: no folder {place}")
    return found


def fill_cards(recipe: Suite, plan: SuitePlan, out: Path) -> None:
    """Write the results into the model cards of the students below ``out``, and of their fine-tuned models."""
    filled = []
    for name, place in plan.models.items():
        if name == TEACHER or not place.is_relative_to(out):
            continue
        stated = recipe.card
        if stated.name and name != STUDENT:
            stated = stated.model_copy(update={"name": f"{stated.name}-{name}"})
        filled.append(model_card.fill(out / REPORT, place, stated))
        for tuned in sorted(path.parent for path in (out / "finetune" / name).glob(f"*/{commit.MANIFEST}")):
            own = {"name": f"{stated.name}-{tuned.name}"} if stated.name else {}
            filled.append(model_card.fill(out / REPORT, tuned, stated.model_copy(update=own)))
    model_card.say_missing(filled)


def record(out: Path, outcomes: Iterable[Outcome]) -> None:
    """Append the outcomes of a suite's jobs to ``jobs.json``, and drop those of an earlier suite."""
    path = out / JOBS
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    before = [entry for entry in known if entry["name"].partition("/")[0] not in PLACES]
    filesystem.write_json(path, [*before, *(outcome.resolved() for outcome in outcomes)])


def _report_job(out: Path) -> Job:
    """The job of the report; a report of other results is renamed first, never overwritten."""
    place = out / REPORT
    report = registry.find("eval.report")
    if place.exists():
        found = artifact.read(place, "report")
        given = stage.identities(report, {"results": out})
        if artifact.difference(found, inputs=given, recipe=report.read({}).identity()) is not None:
            aside = place.with_name(f"{REPORT}-{found.identity[:12]}")
            # The same results gave the same report before: keep one copy.
            shutil.rmtree(place) if aside.exists() else place.rename(aside)
    return Job(name=REPORT, stage="eval.report", recipe={}, inputs={"results": out}, out=place)


STAGE = stage.Stage(
    name="eval.suite",
    run=run,
    recipe=Suite,
    inputs={
        TEACHER: stage.Role((stage.FOLDER,), optional=True),
        STUDENT: stage.Role((stage.FOLDER,), optional=True),
    },
    produces="suite",
    example="glue --teacher out/teacher --student out/students/student",
    grows=True,
    starts_jobs=True,
    validate=checks.validate,
    check=checks.check,
    side_jobs=side_jobs,
    workload=workload,
)
