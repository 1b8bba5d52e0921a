"""What a run did not measure, and why: nobody asked for it, it failed, or it is impossible here.

Each measurement has the lines of a pipeline's recipe that ask for it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from glob import escape
from typing import Any, Literal

from eval.results import paper
from eval.results.comparison import failed
from eval.results.schema import STUDENT

Report = Mapping[str, Any]
State = Literal["not asked for", "failed", "impossible"]


@dataclass(frozen=True)
class Measurable:
    """Something that a run can measure."""

    name: str
    recipe: str
    """Lines of a pipeline's recipe that ask for it."""
    jobs: tuple[str, ...]
    """Patterns of the names of its jobs."""
    has: Callable[[Report], bool]
    """Whether the report has at least a part of it."""
    claims: tuple[str, ...] = ()
    """The paper's claims that it decides."""


@dataclass(frozen=True)
class Unmeasured:
    """A measurement that is not in the report."""

    name: str
    state: State
    reason: str = ""
    """The error of its first failed job, or why it is impossible."""
    recipe: str = ""


def _scored(*tasks: str) -> Callable[[Report], bool]:
    def has(report: Report) -> bool:
        rows = report["tables"]["1"]["rows"] + report["tables"]["2"]["rows"]
        return any(row["scores"] for row in rows if row["task"] in tasks)

    return has


def _second_step(report: Report) -> bool:
    rows = report["tables"]["1"]["rows"] + report["tables"]["2"]["rows"] + report["other_tasks"]
    return any(row["second_step"] for row in rows)


_GLUE = tuple(row.task for row in paper.GLUE)

MEASUREMENTS = (
    Measurable(
        "GLUE", 'data = "glue/{task}"\ntasks = { mrpc = {}, rte = {}, sst2 = {} }  # any of the nine',
        tuple(f"finetune/*/{task}" for task in _GLUE), _scored(*_GLUE), ("glue",),
    ),
    Measurable(
        "IMDb", 'data = "data/{task}"\ntasks = { imdb = {} }', ("finetune/*/imdb",), _scored("imdb"), ("imdb",)
    ),
    Measurable(
        "SQuAD", 'data = "data/{task}"\ntasks = { squad = {} }', ("finetune/*/squad",), _scored("squad"), ("squad",)
    ),
    Measurable(
        "a task from your own sources", "tasks = { provenance = {} }", ("finetune/*/provenance",),
        lambda report: bool(report["scores"]),
    ),
    Measurable(
        "a second distillation", "second_step = {}", ("finetune/student-second-step/*",), _second_step,
        ("second_step",),
    ),
    Measurable(
        "exports and their speed", 'exports = { task = "provenance" }\ntasks = { provenance = {} }',
        ("latency", "exports/*"), lambda report: bool(report["latency"]),
    ),
    Measurable(
        "the paper's table 3", 'data = "data/{task}"\ntasks = { stsb = {} }\nbaselines = {}', ("baselines",),
        lambda report: report["tables"]["3"]["source"] is not None, ("speed",),
    ),
    Measurable(
        "a phone", 'exports = { task = "provenance", mobile = { here = {} } }\ntasks = { provenance = {} }',
        ("mobile/*", "pages/*"), lambda report: bool(report["phones"]["measured"] or report["phones"]["waiting"]),
    ),
    Measurable(
        "ablations", "sweep = {}\ntasks = { provenance = {} }", ("runs/*",),
        lambda report: any(row["score"] is not None for row in report["tables"]["4"]["rows"]), ("ablations",),
    ),
    Measurable(
        "scores during training", 'probes = { tasks = ["provenance"] }\ntasks = { provenance = {} }', ("probes/*",),
        lambda report: any(run["probes"] for run in report["runs"]),
    ),
)  # fmt: skip


def unmeasured(report: Report) -> list[Unmeasured]:
    """Everything that the report lacks: what failed first, then what is impossible, then what nobody asked for."""
    found = [_state(report, each) for each in MEASUREMENTS if not each.has(report)]
    found += [*_lost_tasks(report), *_impossible(report)]
    order: tuple[State, ...] = ("failed", "impossible", "not asked for")
    return sorted(found, key=lambda each: order.index(each.state))


def _state(report: Report, wanted: Measurable) -> Unmeasured:
    # The main student is no ablation: without it there is nothing to compare.
    others = [job for job in failed(report) if job["name"] != f"runs/{STUDENT}"]
    lost = [job for job in others if any(fnmatchcase(job["name"], pattern) for pattern in wanted.jobs)]
    if lost:
        return Unmeasured(wanted.name, "failed", f"{lost[0]['name']}: {lost[0]['error'] or 'no error recorded'}")
    return Unmeasured(wanted.name, "not asked for", recipe=wanted.recipe)


def _lost_tasks(report: Report) -> list[Unmeasured]:
    """Tasks outside the paper on which every fine-tuning failed."""
    scored = {score["task"] for score in report["scores"]}
    tasks = sorted({task for _, task in lost_scores(report)} - scored)
    return [
        _state(report, Measurable(f"the task {task}", "", (f"finetune/*/{escape(task)}",), bool))
        for task in tasks
        if not paper.find(task)
    ]


def _impossible(report: Report) -> list[Unmeasured]:
    """Measurements that this machine, or a phone, cannot make."""
    energy = (report["latency"] or {}).get("energy")
    found = [Unmeasured("energy", "impossible", energy)] if energy else []
    for phone in report["phones"]["measured"]:
        for problem in phone["problems"]:
            what = ", ".join(f"{key} {value}" for key, value in problem.items() if key != "error")
            found.append(Unmeasured(f"{phone['name']}, {what}", "impossible", problem["error"]))
    return found


def lost_scores(report: Report) -> set[tuple[str, str]]:
    """Model and task of every failed fine-tuning."""
    parts = [job["name"].split("/") for job in failed(report)]
    return {(part[1], part[2]) for part in parts if part[0] == "finetune" and len(part) == 3}


def unmeasured_claims(report: Report) -> list[str]:
    """The paper's claims without a verdict."""
    return [claim["claim"] for claim in report["claims"] if claim["ours"] is None]


def has_student(report: Report) -> bool:
    return any(model["name"] == STUDENT for model in report["models"])
