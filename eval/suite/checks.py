"""What a suite refuses: contradictions in its recipe, and folders, models or libraries that are not there."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cluster.artifacts import registry
from cluster.artifacts.errors import StageError
from cluster.artifacts.recipe_errors import nearest, suggest
from cluster.artifacts.stage import StageContext
from eval.results.export_formats import FORMATS, check_toolchains
from eval.results.schema import STUDENT, TEACHER
from eval.suite.plan import corpus_values, data_folder, export_formats, export_values, finetune_values, sweep_students
from eval.suite.recipe import PAIRS, Baselines, Exports, Suite
from eval.tasks.definitions import MADE_HERE, known


def validate(suite: Suite) -> None:
    """Refuse tables that contradict each other, or that their stages refuse.

    Raises:
        ValueError: says which table is wrong and what to write instead.
    """
    _check_data(suite)
    _check_names(suite)
    for stage, values, where in _tables(suite):
        registry.find(stage).read(values, f"[{where}]")


def check(suite: Suite, context: StageContext) -> None:
    """Find out before anything runs that every folder, model and library will be there.

    Raises:
        StageError: names the first one that will not.
    """
    for task in suite.tasks:
        data_folder(suite, task)
    if suite.baselines is not None and data_folder(suite, PAIRS) is None:
        raise StageError(f"baselines are timed on the pairs of {PAIRS}: name its folder in data or folders")
    if suite.sweep is not None and not sweep_students(suite, context.models):
        raise StageError("sweep has no students to compare: name some of models in sweep.students, or leave it out")
    _check_baselines(suite)
    if suite.exports:
        _check_exports(suite.exports, context)
    for where, name in _models(suite):
        if name not in context.models and name not in suite.models:
            near = nearest(name, [*context.models, *suite.models])
            hint = f"did you mean {near}?" if near else f"there is {', '.join(context.models) or 'none'}"
            raise StageError(f"{where} needs the model {name}: {hint}")


def _check_data(suite: Suite) -> None:
    if suite.data and suite.hub:
        raise ValueError("data and hub: write one of them")
    for task in suite.tasks:
        values = finetune_values(suite, known(task))
        if not (task in (*MADE_HERE, *suite.folders) or suite.data or suite.hub or "data" in values):
            raise ValueError(f'no data for {task}: write data = "folder/{{task}}" or hub, or {task} in folders')
        if "placement" in values:
            raise ValueError("fine-tuning is placed by job_cpus and job_gpus: write those instead of a placement")


def _check_names(suite: Suite) -> None:
    named = [("folders", tuple(suite.folders))]
    named += [("second_step.tasks", suite.second_step.tasks or ())] if suite.second_step else []
    named += [("sweep.tasks", suite.sweep.tasks or ())] if suite.sweep else []
    named += [("probes.tasks", suite.probes.tasks)] if suite.probes else []
    named += [("exports.task", suite.exports.tasks)] if suite.exports else []
    for where, names in named:
        if unknown := [name for name in names if name not in suite.tasks]:
            hint = suggest(unknown[0], [*suite.tasks]) or ": there are none"
            raise ValueError(f"{where} names {unknown[0]}, which is not among tasks{hint}")
    if suite.baselines is not None and PAIRS not in suite.tasks:
        raise ValueError(f"baselines are timed on the pairs of {PAIRS}: put {PAIRS} = {{}} among the tasks")
    if suite.exports is None:
        return
    if odd := [name for name in suite.exports.values if name not in export_formats(suite.exports)]:
        raise ValueError(f"exports.values is about {odd[0]}, which is not among exports.formats: add it there")
    if not {*suite.exports.models} <= {TEACHER, STUDENT}:
        raise ValueError(f"exports.models are {TEACHER} and {STUDENT}, which latency compares: leave others out")
    if STUDENT not in suite.exports.models:
        raise ValueError(f"exports.models must have {STUDENT} among them: latency compares the teacher with it")


def _tables(suite: Suite) -> Iterator[tuple[str, Mapping[str, Any], str]]:
    """The recipes of other stages in a suite: stage, values, and the table that people correct."""
    for task, made_by in MADE_HERE.items():
        yield made_by, corpus_values(suite, task), task
    for task in suite.tasks:
        yield "eval.finetune", finetune_values(suite, task), f"tasks.{task}"
    changes: list[tuple[tuple[str, ...] | None, Mapping[str, Any], str]] = []
    changes += [(suite.sweep.tasks, suite.sweep.finetune, "sweep.finetune")] if suite.sweep else []
    if suite.second_step:
        changes.append((suite.second_step.tasks, {"second_step": suite.second_step.loss}, "second_step.loss"))
    changes += [(suite.probes.tasks, suite.probes.finetune, "probes.finetune")] if suite.probes else []
    for tasks, change, where in changes:
        for task in tasks or suite.tasks:
            yield "eval.finetune", finetune_values(suite, task, change), where
    if suite.exports:
        for form in export_formats(suite.exports):
            yield FORMATS[form].stage, export_values(suite.exports, form), f"exports.values.{form}"
        yield "eval.latency", suite.exports.latency, "exports.latency"
        for name, phone in suite.exports.mobile.items():
            yield "eval.mobile", phone.values, f"exports.mobile.{name}.measure"
            yield "deploy.web_page", phone.page, f"exports.mobile.{name}.page"
    if suite.baselines is not None:
        yield "eval.latency", suite.baselines.values, "baselines.measure"


def _check_baselines(suite: Suite) -> None:
    baselines = suite.baselines or Baselines()
    timed = {*baselines.values["models"], *(suite.exports.latency if suite.exports else {}).get("models", ())}
    for name, place in baselines.folders.items():
        if not Path(place).is_dir():
            raise StageError(f"baselines.folders: no folder {place} for {name}: correct it, or leave it out")
        if name not in timed:
            raise StageError(f"baselines.folders names {name}, which is not measured: leave it out")


def _check_exports(exports: Exports, context: StageContext) -> None:
    check_toolchains(exports.formats, "exports.formats")
    for name, phone in exports.mobile.items():
        check_toolchains([phone.format], f"exports.mobile.{name}.format")
        if phone.binary is not None and not Path(phone.binary).is_dir():
            raise StageError(f"exports.mobile.{name}: no folder {phone.binary}: correct it")
        if phone.libraries is not None:
            page, given = registry.find("deploy.web_page"), {"libraries": Path(phone.libraries)}
            page.check(page.read(phone.page), StageContext(context.out / "pages" / name, given))
    if exports.tokens is not None and not Path(exports.tokens).is_dir():
        raise StageError(f"exports.tokens: no folder {exports.tokens}: correct it, or leave it out")


def _models(suite: Suite) -> Iterator[tuple[str, str]]:
    """The models that must exist, each with the key that needs it."""
    if suite.sweep:
        yield "sweep.reference", suite.sweep.reference
        yield from (("sweep.students", name) for name in suite.sweep.students or ())
    if suite.exports:
        yield from (("exports.models", name) for name in suite.exports.models)
    if suite.second_step:
        yield from (("second_step", name) for name in (TEACHER, STUDENT))
