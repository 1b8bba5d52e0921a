"""The jobs of a suite: pure functions of its recipe and of the models that exist."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cluster.artifacts import recipe
from cluster.artifacts.errors import StageError
from cluster.artifacts.stage import SideJob, StageContext
from cluster.jobs.job import Job
from eval.results.export_formats import FORMATS, Format, with_sources
from eval.results.schema import STUDENT, TEACHER
from eval.suite.recipe import PAIRS, QUESTIONS, Exports, Suite
from eval.tasks.definitions import MADE_HERE, TASKS

SECOND_STEP = "student-second-step"
BAG_KEYS = ("task", "data", "train_limit", "dev_limit")
"""Values of ``eval.finetune`` that a bag of words shares."""


def finetune_values(suite: Suite, task: str, *changes: Mapping[str, Any]) -> dict[str, Any]:
    """Values of ``eval.finetune`` for a task; later changes win."""
    values = suite.finetune
    for change in (suite.tasks[task], *changes):
        values = recipe.merge(values, change)
    return {**values, "task": task}


def corpus_values(suite: Suite, task: str) -> dict[str, Any]:
    """Values of the stage that makes a task from the corpus."""
    values: dict[str, Any] = getattr(suite, task)
    return values


def data_folder(suite: Suite, task: str) -> Path | None:
    """Folder of a task's examples; None where they come from the hub or from the corpus.

    Raises:
        StageError: it is not there.
    """
    place = suite.folders.get(task)
    if (
        place is None
        and suite.data is not None
        and task not in MADE_HERE
        and "data" not in finetune_values(suite, task)
    ):
        place = suite.data.format(task=task)
    if place is None:
        return None
    if not Path(place).exists():
        raise StageError(f"{task}: no folder {place}: point data or folders at the tasks, or leave the task out")
    return Path(place).absolute()


def _finetuning(suite: Suite, task: str, out: Path, *changes: Mapping[str, Any]) -> tuple[dict[str, Any], Path | None]:
    """Values of ``eval.finetune`` for a task, and the folder of its examples where the values name no data set."""
    values = finetune_values(suite, task, *changes)
    folder = out / "datasets" / task if task in MADE_HERE else data_folder(suite, task)
    if folder is None and suite.hub is not None and "data" not in values:
        values["data"] = suite.hub.format(task=task)
    return values, folder


def _after(task: str) -> list[str]:
    """Jobs that make a task's examples."""
    return [f"datasets/{task}"] if task in MADE_HERE else []


def sweep_students(suite: Suite, models: Collection[str]) -> tuple[str, ...]:
    """The students of the sweep among all models, without its reference."""
    if suite.sweep is None:
        return ()
    if suite.sweep.students is not None:
        return suite.sweep.students
    known = (TEACHER, STUDENT, suite.sweep.reference, *suite.models)
    return tuple(name for name in models if name not in known)


def export_formats(exports: Exports) -> list[Format]:
    """Formats in the order in which they can be made, with those that others are made from."""
    return with_sources((*exports.formats, *(phone.format for phone in exports.mobile.values())))


def export_values(exports: Exports, form: Format) -> dict[str, Any]:
    """Values of the stage that makes a format."""
    scored = {} if exports.score_limit is None else {"score": {"limit": exports.score_limit}}
    return recipe.merge(recipe.merge(FORMATS[form].values, scored), exports.values.get(form, {}))


def side_jobs(suite: Suite, context: StageContext) -> list[SideJob]:
    """The jobs that fine-tune a run's checkpoints while it trains; before any run, the data these need."""
    probes, run, out = suite.probes, context.training, context.out
    if probes is None:
        return []
    if run is None:
        given = {"corpus": out / "corpus"}
        return [
            SideJob(name, made_by, corpus_values(suite, task), given, out / name, ("corpus",))
            for task, made_by in MADE_HERE.items()
            if task in probes.tasks and (name := f"datasets/{task}")
        ]
    if run.name not in probes.runs:
        return []
    tasks = {}
    for task in probes.tasks:
        tuning, folder = _finetuning(suite, task, out, probes.finetune)
        tasks[task] = {"finetune": tuning, "folder": None if folder is None else str(folder)}
    placement = {"cpus": suite.job_cpus, "gpus": suite.job_gpus, "priority": suite.priority}
    if probes.metrics_port is not None:
        placement["metrics_port"] = probes.metrics_port
    values = {"tasks": tasks, "steps": run.steps, "every": probes.every, "placement": placement}
    name, given = f"probes/{run.name}", {"run": out / "runs" / run.name}
    return [SideJob(name, "eval.probes", values, given, out / name)]


@dataclass(frozen=True)
class SuitePlan:
    """The jobs of a suite, with their results below the folder ``out``; ``models`` are folders by name."""

    suite: Suite
    models: Mapping[str, Path]
    out: Path

    def jobs(self) -> list[Job]:
        """Data made from the corpus, bags of words, fine-tuning, exports, speed: each after what it needs, timed ones
        alone on a node.

        Raises:
            StageError: no token rows to calibrate an export with.
        """
        return [*self._data(), *self._bags(), *self.scores(), *self._exports(), *self._baselines()]

    def described(self) -> dict[str, Any]:
        """The contents of ``suite.json``: what the report must know about the models."""
        sweep, students = self.suite.sweep, sweep_students(self.suite, self.models)
        places = {
            name: str(place.relative_to(self.out) if place.is_relative_to(self.out) else place)
            for name, place in self.models.items()
        }
        return {
            "models": places,
            "ablations": sweep and {"reference": sweep.reference, "students": list(students)},
            "second_step": SECOND_STEP if self.suite.second_step else None,
        }

    def scores(self) -> list[Job]:
        """Fine-tuning: teacher, student and other models, the second step, then the sweep."""
        suite, students = self.suite, sweep_students(self.suite, self.models)
        swept = {*students, suite.sweep.reference} - {TEACHER, STUDENT} if suite.sweep else set()
        named = dict.fromkeys(name for name in (TEACHER, STUDENT, *suite.models) if name not in swept)
        found = [self._finetune(name, name, task) for task in suite.tasks for name in named if name in self.models]
        if suite.second_step:
            tasks, change = suite.second_step.tasks or suite.tasks, {"second_step": suite.second_step.loss}
            found += [self._finetune(SECOND_STEP, STUDENT, task, change, taught=True) for task in tasks]
        if suite.sweep:
            # Where the student is the reference, its own scores serve.
            names = [name for name in (suite.sweep.reference, *students) if name != STUDENT]
            tasks, change = suite.sweep.tasks or suite.tasks, suite.sweep.finetune
            found += [self._finetune(name, name, task, change) for task in tasks for name in names]
        return found

    def _data(self) -> Iterator[Job]:
        for task, made_by in MADE_HERE.items():
            if task in self.suite.tasks:
                inputs = {"corpus": self.out / "corpus"}
                yield self._job(f"datasets/{task}", made_by, corpus_values(self.suite, task), inputs)

    def _bags(self) -> Iterator[Job]:
        """The bag of words of every task of classes or scores, on the examples of the models."""
        tasks = self.suite.tasks if self.suite.bag_of_words == "classification" else ()
        for task in tasks:
            values, folder = _finetuning(self.suite, task, self.out)
            if TASKS[task].answers is None:
                shared = {key: values[key] for key in BAG_KEYS if key in values}
                inputs = {} if folder is None else {"data": folder}
                yield self._job(f"bag_of_words/{task}", "eval.bag_of_words", shared, inputs, after=_after(task))

    def _finetune(
        self, name: str, model: str, task: str, change: Mapping[str, Any] | None = None, taught: bool = False
    ) -> Job:
        suite = self.suite
        values, folder = _finetuning(suite, task, self.out, change or {})
        values["placement"] = {"threads": suite.job_cpus}
        inputs = {"model": self.models[model], **({} if folder is None else {"data": folder})}
        after = _after(task)
        if taught:
            inputs["teacher"] = self.out / "finetune" / TEACHER / task
            after.append(f"finetune/{TEACHER}/{task}")
        job = self._job(f"finetune/{name}/{task}", "eval.finetune", values, inputs, after=after)
        return replace(job, cpus=suite.job_cpus, gpus=suite.job_gpus)

    def _exports(self) -> list[Job]:
        exports = self.suite.exports
        if exports is None:
            return []
        made: dict[tuple[str, str | None, Format], Job] = {}
        inputs: dict[str, Path] = {}
        for model in exports.models:
            for task in exports.tasks or (None,):
                formats = export_formats(exports)
                made |= {(model, task, form): self._export(exports, model, task, form) for form in formats}
                # A single input has the plain name of its role, as on the command line.
                inputs[model if len(exports.tasks) < 2 else f"{model}-{task}"] = self._tuned(model, task)
                role = f"export-{model}" if task is None else f"export-{model}-{task}"
                inputs |= {f"{role}-{name}": made[model, task, name].out for name in exports.formats}
        inputs |= self._texts(exports.tasks) | self._architectures(exports.latency)
        names = [job.name for job in made.values()]
        timed = self._job("latency", "eval.latency", exports.latency, inputs, after=names)
        return [*made.values(), timed, *self._phones(exports, made)]

    def _phones(self, exports: Exports, made: Mapping[tuple[str, str | None, Format], Job]) -> Iterator[Job]:
        """Measurements on phones, each browser's after its page."""
        for name, phone in exports.mobile.items():
            given = {model: made[model, exports.on_phone(phone), phone.format] for model in exports.models}
            inputs, after = {model: job.out for model, job in given.items()}, [job.name for job in given.values()]
            if phone.libraries is not None:
                inputs["libraries"] = Path(phone.libraries).absolute()
                page = self._job(f"pages/{name}", "deploy.web_page", phone.page, inputs, after=after)
                yield page
                inputs, after = {"page": page.out}, [page.name]
            if phone.binary is not None:
                inputs["binary"] = Path(phone.binary).absolute()
            job = self._job(f"mobile/{name}", "eval.mobile", phone.values, inputs, after=after)
            yield replace(job, alone=phone.way == "proxy")

    def _export(self, exports: Exports, model: str, task: str | None, name: Format) -> Job:
        """One export; the first task is left out of its name. Without a task, of the model itself."""
        making, tuned = FORMATS[name], self._tuned(model, task)

        def called(form: Format) -> str:
            return f"exports/{model}/{form if task in (None, *exports.tasks[:1]) else f'{task}-{form}'}"

        inputs, after = {"model": tuned}, [] if task is None else [f"finetune/{model}/{task}"]
        if making.of is not None:
            inputs["export"], after = self.out / called(making.of), [called(making.of)]
        if making.calibrated:
            inputs["tokens"] = self._rows(exports, name)
        data = None if task is None else _finetuning(self.suite, task, self.out)[1]
        if exports.score_limit is not None and data is not None:
            inputs["data"] = data
        return self._job(called(name), making.stage, export_values(exports, name), inputs, after=after)

    def _rows(self, exports: Exports, name: Format) -> Path:
        """Token rows to calibrate with: those of the recipe, else the pipeline's shortest."""
        if exports.tokens is not None:
            return Path(exports.tokens).absolute()
        by_length = sorted(self.out.glob("tokens-*"), key=lambda path: path.name.rpartition("-")[2].zfill(9))
        for place in (self.out / "tokens", *by_length):
            if place.is_dir():
                return place
        raise StageError(
            f"exports.formats has {name}, which is calibrated on token rows, and {self.out} has none: name a folder of "
            "them in exports.tokens"
        )

    def _texts(self, tasks: Collection[str]) -> dict[str, Path]:
        """Folders of the texts on which models of these tasks are timed."""
        roles = (("pairs", PAIRS), ("questions", QUESTIONS))
        found = {role: data_folder(self.suite, task) for role, task in roles if task in tasks}
        return {role: folder for role, folder in found.items() if folder is not None}

    def _architectures(self, latency: Mapping[str, Any]) -> dict[str, Path]:
        folders = {} if self.suite.baselines is None else self.suite.baselines.folders
        return {name: Path(folders[name]).absolute() for name in latency.get("models", ()) if name in folders}

    def _baselines(self) -> Iterator[Job]:
        baselines = self.suite.baselines
        pairs = None if baselines is None else data_folder(self.suite, PAIRS)
        if baselines is None or pairs is None:
            return
        known = [name for name in (TEACHER, STUDENT) if name in self.models]
        inputs = {"pairs": pairs, **{name: self._tuned(name, PAIRS) for name in known}}
        inputs |= self._architectures(baselines.values)
        after = [f"finetune/{name}/{PAIRS}" for name in known]
        yield self._job("baselines", "eval.latency", baselines.values, inputs, after=after)

    def _tuned(self, model: str, task: str | None) -> Path:
        """The fine-tuned model, or without a task the model itself."""
        return self.models[model] if task is None else self.out / "finetune" / model / task

    def _job(
        self, name: str, stage: str, values: Mapping[str, Any], inputs: Mapping[str, Path], after: Sequence[str] = ()
    ) -> Job:
        hours = self.suite.deadline_hours
        deadline = None if hours is None else 3600 * hours
        job = Job(name, stage, values, inputs, self.out / name, tuple(after))
        return replace(job, priority=self.suite.priority, deadline=deadline)
