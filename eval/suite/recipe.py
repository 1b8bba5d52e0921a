"""What a suite measures: models against tasks, and what else is done with the fine-tuned models."""

import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import Field, PositiveInt, model_validator

from cluster.artifacts import recipe, registry
from cluster.artifacts.errors import StageError
from cluster.artifacts.recipe import Recipe
from eval.results.export_formats import FORMATS, Format, check_toolchains, with_sources
from eval.tasks.definitions import TASKS

TEACHER, STUDENT = "teacher", "student"
PROVENANCE = "provenance"
PAIRS, QUESTIONS = "stsb", "squad"
"""The tasks whose development sets models are timed on: the paper's (table 3), and a phone's."""
TABLE_3 = {
    "models": ["elmo", "bert_base", "distilbert", "roberta_base", "distilroberta"],
    "lengths": [],
    "threads": [1],
    "turn": 25,
}
"""Values of ``eval.latency`` for the paper's table 3."""


RUN_BY: dict[str, tuple[Format, ...]] = {
    "browser": ("onnx", "int8", "ort", "ort-int8"),
    "adb": ("onnx", "int8", "ort", "ort-int8", "executorch-fp32", "executorch-int8", "litert-fp32", "litert-int8"),
}
"""Way of measuring a phone to the formats that it runs; this host runs all of them."""


class PhoneBenchmark(Recipe):
    """A measurement of exports on a phone, or in a stand-in for one."""

    format: Format = "int8"
    """Of the models' exports."""
    task: str | None = None
    """Of the exports' tasks, ``squad`` where it is among them, else the first."""
    measure: dict[str, Any] = Field(default_factory=dict)
    """Values of ``eval.mobile``; without ``way``, a stand-in on this host."""
    binary: str | None = None
    """Folder of the programs that an Android phone runs, for ``way.kind = "adb"``."""
    libraries: str | None = None
    """Folder that ``make browser`` fills, for ``way.kind = "browser"``."""
    page: dict[str, Any] = Field(default_factory=dict)
    """Values of ``deploy.web_page``, for the same."""

    @property
    def values(self) -> dict[str, Any]:
        return recipe.merge({"way": {"kind": "proxy"}}, self.measure)

    @property
    def way(self) -> str:
        way = self.values["way"]
        return str(way.get("kind") if isinstance(way, Mapping) else way)

    @model_validator(mode="after")
    def _says_what_it_needs(self) -> Self:
        # What is none of these eval.mobile refuses, with what it knows.
        if self.way not in ("adb", "browser", "proxy"):
            return self
        run = RUN_BY.get(self.way, (self.format,))
        if self.format not in run:
            raise ValueError(
                f'way.kind = "{self.way}" does not run {self.format}: set format to one of {", ".join(run)}'
            )
        for way, name, given in (("adb", "binary", self.binary), ("browser", "libraries", self.libraries)):
            if (self.way == way) != (given is not None):
                need = f"needs {name}: name its folder" if given is None else f"has no use for {name}: leave it out"
                raise ValueError(f'way.kind = "{self.way}" {need}')
        if self.page and self.way != "browser":
            raise ValueError(f'way.kind = "{self.way}" has no use for page: leave it out')
        return self


def _asks(task: str) -> bool:
    """Whether a task is to answer questions."""
    return task in TASKS and TASKS[task].answers is not None


class Exports(Recipe):
    """Which fine-tuned models are exported, to what, and timed."""

    task: str | tuple[str, ...]
    """Task of the models that are exported, or several: those of ``stsb`` and ``squad`` are timed on its texts."""
    models: tuple[str, ...] = (TEACHER, STUDENT)
    formats: tuple[Format, ...] = Field(("onnx", "int8"), min_length=1)
    """With them come those that they are made of."""
    values: dict[Format, dict[str, Any]] = Field(default_factory=dict)
    """Format to values of the stage that makes it."""
    tokens: str | None = None
    """Token rows that formats with fixed ranges are calibrated on; those of the pipeline where it is left out."""
    score_limit: PositiveInt | None = None
    """Examples of the task's development set that every export is scored on beside its model, and refused where it
    falls too far; without it none is scored."""
    latency: dict[str, Any] = Field(default_factory=dict)
    mobile: dict[str, PhoneBenchmark] = Field(default_factory=dict)
    """What is measured on phones, by the name it has in the report."""

    @property
    def tasks(self) -> tuple[str, ...]:
        return (self.task,) if isinstance(self.task, str) else self.task

    def on_phone(self, phone: PhoneBenchmark) -> str:
        """Task of the exports that a phone runs."""
        return phone.task or (QUESTIONS if QUESTIONS in self.tasks else self.tasks[0])

    @model_validator(mode="after")
    def _phones_can_run(self) -> Self:
        for name, phone in self.mobile.items():
            if not re.fullmatch(r"\w[\w.-]*", name):
                raise ValueError(f"exports.mobile.{name}: a folder is called after it: use letters, digits, . and -")
            if phone.task not in (None, *self.tasks):
                raise ValueError(f"exports.mobile.{name} has the task {phone.task}, which is not among exports.task")
            if phone.way == "browser" and not _asks(self.on_phone(phone)):
                raise ValueError(
                    f"exports.mobile.{name}: its page asks questions: set task to one of exports.task that does"
                )
        return self

    def making(self, name: Format) -> dict[str, Any]:
        """Values of the stage that makes a format."""
        scored = {} if self.score_limit is None else {"score": {"limit": self.score_limit}}
        return recipe.merge(recipe.merge(FORMATS[name].values, scored), self.values.get(name, {}))


class TaskDistillationJobs(Recipe):
    """Fine-tuning the student once more, taught by the fine-tuned teacher (paper, section 4: "DistilBERT (D)")."""

    tasks: tuple[str, ...] | None = None
    """All tasks of the suite by default; the paper did SQuAD."""
    loss: dict[str, Any] = Field(default_factory=dict)
    """Values of ``[second_step]`` in ``eval.finetune``. All else is as in the student's own fine-tuning, which the gain
    is measured against."""

    @property
    def change(self) -> dict[str, Any]:
        """What differs from the student's own fine-tuning."""
        return {"second_step": self.loss}


class Baselines(Recipe):
    """Sizes and speeds of published architectures beside teacher and student (paper, table 3)."""

    folders: dict[str, str] = Field(default_factory=dict)
    """Architecture to a folder that brings its tokenizer, and its weights where it has them."""
    measure: dict[str, Any] = Field(default_factory=dict)
    """What differs from the values of ``eval.latency`` for table 3."""

    @property
    def values(self) -> dict[str, Any]:
        return recipe.merge(TABLE_3, self.measure)


class Probes(Recipe):
    """Short fine-tunes of a run's checkpoints as they appear: how the scores grow with training."""

    tasks: tuple[str, ...] = Field(min_length=1)
    finetune: dict[str, Any] = Field(default_factory=dict)
    """What differs from the suite's fine-tuning: few seeds, few examples."""
    runs: tuple[str, ...] = (STUDENT,)
    every: PositiveInt = 1
    """Steps between probes at least; the last checkpoint is always one."""
    metrics_port: int | None = Field(None, ge=0, le=65535)
    """Port on which the scores so far are served to Prometheus."""


class CardFacts(Recipe):
    """What only people know of a student, for its model card."""

    license: str | None = None
    language: tuple[str, ...] | None = None
    base_model: str | None = None
    datasets: tuple[str, ...] | None = None


class Sweep(Recipe):
    """Students that were trained otherwise, on the same tasks as one that was not (paper, section 4.1, table 4)."""

    reference: str = STUDENT
    """The student the others are compared with: of the same length, with everything."""
    students: tuple[str, ...] | None = None
    """The others; by default all that the pipeline has trained otherwise. They are measured for the sweep only."""
    tasks: tuple[str, ...] | None = None
    """All tasks of the suite by default."""
    finetune: dict[str, Any] = Field(default_factory=dict)
    """What differs from the suite's fine-tuning, for the reference as for the others."""

    @model_validator(mode="after")
    def _compares_like_with_like(self) -> Self:
        if self.finetune and self.reference == STUDENT:
            raise ValueError(
                f"sweep.finetune would measure the others otherwise than {STUDENT}: leave it out, or train a reference "
                "for the sweep and name it"
            )
        return self


class Suite(Recipe):
    """A table of jobs: models times tasks, exports, speed, one report."""

    tasks: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Task to what differs from ``finetune`` for it."""
    data: str | None = None
    """Folder of a task's files, with ``{task}`` where its name goes; ``provenance`` needs none."""
    folders: dict[str, str] = Field(default_factory=dict)
    """Folders of the tasks that lie elsewhere than ``data`` says."""
    hub: str | None = None
    """Data set of a task on the hub, ``nyu-mll/glue:{task}``, for tasks without ``data`` of their own."""
    finetune: dict[str, Any] = Field(default_factory=dict)
    """Values of ``eval.finetune`` for every task."""
    models: dict[str, str] = Field(default_factory=dict)
    """More models to score: name to folder."""
    second_step: TaskDistillationJobs | None = None
    sweep: Sweep | None = None
    probes: Probes | None = None
    provenance: dict[str, Any] = Field(default_factory=dict)
    """Values of ``eval.provenance``, which makes a task out of the corpus."""
    exports: Exports | None = None
    baselines: Baselines | None = None
    """Timed on the development set of STS-B, which needs a folder."""
    card: CardFacts = CardFacts()
    """Filled, with the report's scores, into the README.md of every student below ``--out``."""
    job_cpus: PositiveInt = 1
    """CPUs, and threads, of a fine-tuning job."""
    job_gpus: float = Field(0.0, ge=0)
    """GPUs of a fine-tuning job; with a share, several run on one."""
    priority: int = 0
    """Of all jobs in the queue, before or after those of other people: higher goes first."""
    deadline_hours: float | None = Field(None, gt=0)
    """Jobs that are not done so long after the suite was started are given up."""

    @model_validator(mode="after")
    def _tasks_have_data(self) -> Self:
        if self.data and self.hub:
            raise ValueError("data and hub: write one of them")
        for task in self.tasks:
            if not (task in (PROVENANCE, *self.folders) or self.data or self.hub or "data" in self.tuning(task)):
                raise ValueError(f'no data for {task}: write data = "folder/{{task}}" or hub, or {task} in folders')
            if "placement" in self.tuning(task):
                raise ValueError("fine-tuning is placed by job_cpus and job_gpus: write those instead of a placement")
        return self

    @model_validator(mode="after")
    def _tasks_are_there(self) -> Self:
        asked = [("folders", tuple(self.folders))]
        asked += [("second_step.tasks", self.second_step.tasks or ())] if self.second_step else []
        asked += [("sweep.tasks", self.sweep.tasks or ())] if self.sweep else []
        asked += [("probes.tasks", self.probes.tasks)] if self.probes else []
        asked += [("exports.task", self.exports.tasks)] if self.exports else []
        for where, names in asked:
            if unknown := [name for name in names if name not in self.tasks]:
                raise ValueError(f"{where} names {unknown[0]}, which is not among tasks: {', '.join(self.tasks)}")
        if self.baselines is not None and PAIRS not in self.tasks:
            raise ValueError(f"baselines are timed on the pairs of {PAIRS}: put {PAIRS} = {{}} among the tasks")
        if self.exports and (odd := [name for name in self.exports.values if name not in self.exported()]):
            raise ValueError(f"exports.values is about {odd[0]}, which is not among exports.formats: add it there")
        if self.exports and not {*self.exports.models} <= {TEACHER, STUDENT}:
            raise ValueError(f"exports.models are {TEACHER} and {STUDENT}, which latency compares: leave others out")
        if self.exports and STUDENT not in self.exports.models:
            raise ValueError(f"exports.models must have {STUDENT} among them: latency compares the teacher with it")
        return self

    @model_validator(mode="after")
    def _stages_accept(self) -> Self:
        for module, values, where in self._tables():
            registry.find(module).recipe.of(values, f"[{where}]")
        return self

    def tuning(self, task: str, *changes: Mapping[str, Any]) -> dict[str, Any]:
        """Values of ``eval.finetune`` for a task, later changes last."""
        values: dict[str, Any] = self.finetune
        for change in (self.tasks[task], *changes):
            values = recipe.merge(values, change)
        return {**values, "task": task}

    def folder(self, task: str) -> Path | None:
        """Folder of a task's examples; None where they come from the hub, or are made from the corpus.

        Raises:
            StageError: it is not there.
        """
        place = self.folders.get(task)
        if place is None and self.data is not None and task != PROVENANCE and "data" not in self.tuning(task):
            place = self.data.format(task=task)
        if place is None:
            return None
        if not Path(place).exists():
            raise StageError(f"{task}: no folder {place}: point data or folders at the tasks, or leave the task out")
        return Path(place).absolute()

    def check(self, models: Collection[str]) -> None:
        """Find out before anything runs that all that is named will be there.

        Raises:
            StageError: names the first folder or model that is not.
        """
        for task in self.tasks:
            self.folder(task)
        if self.baselines is not None and self.folder(PAIRS) is None:
            raise StageError(f"baselines are timed on the pairs of {PAIRS}: name its folder in data or folders")
        if self.sweep is not None and not self.varied(models):
            raise StageError("sweep has no students to compare: name some of models in sweep.students, or leave it out")
        self._check_folders()
        if self.exports:
            check_toolchains(self.exports.formats, "exports.formats")
            for name, phone in self.exports.mobile.items():
                check_toolchains([phone.format], f"exports.mobile.{name}.format")
                if phone.binary is not None and not Path(phone.binary).is_dir():
                    raise StageError(f"exports.mobile.{name}: no folder {phone.binary}: correct it")
                if phone.libraries is not None:
                    # Of the versions that the page will want hours later.
                    registry.find("deploy.web_page").identify["libraries"](Path(phone.libraries))
            if self.exports.tokens is not None and not Path(self.exports.tokens).is_dir():
                raise StageError(f"exports.tokens: no folder {self.exports.tokens}: correct it, or leave it out")
        asked = [("sweep.reference", self.sweep.reference)] if self.sweep else []
        asked += [("sweep.students", name) for name in (self.sweep.students or () if self.sweep else ())]
        asked += [("exports.models", name) for name in (self.exports.models if self.exports else ())]
        asked += [("second_step", name) for name in ((TEACHER, STUDENT) if self.second_step else ())]
        for where, name in asked:
            if name not in models and name not in self.models:
                raise StageError(f"{where} needs the model {name}: there is {', '.join(models) or 'none'}")

    def _check_folders(self) -> None:
        baselines = self.baselines or Baselines()
        timed = {*baselines.values["models"], *(self.exports.latency if self.exports else {}).get("models", ())}
        for name, place in baselines.folders.items():
            if not Path(place).is_dir():
                raise StageError(f"baselines.folders: no folder {place} for {name}: correct it, or leave it out")
            if name not in timed:
                raise StageError(f"baselines.folders names {name}, which is not measured: leave it out")

    def probing(self, run: str, steps: int, datasets: Path) -> dict[str, Any] | None:
        """Values of ``eval.probes`` for a run of so many steps; None where it is not probed.

        ``datasets`` is where tasks are that were made from the corpus.
        """
        probes = self.probes
        if probes is None or run not in probes.runs:
            return None
        tasks = {}
        for task in probes.tasks:
            values = self.tuning(task, probes.finetune)
            place = datasets / task if task == PROVENANCE else self.folder(task)
            if place is None and self.hub is not None and "data" not in values:
                values["data"] = self.hub.format(task=task)
            tasks[task] = {"finetune": values, "folder": None if place is None else str(place)}
        placement = {"cpus": self.job_cpus, "gpus": self.job_gpus, "priority": self.priority}
        if probes.metrics_port is not None:
            placement["metrics_port"] = probes.metrics_port
        return {"tasks": tasks, "steps": steps, "every": probes.every, "placement": placement}

    def varied(self, models: Collection[str]) -> tuple[str, ...]:
        """The students of the sweep among all models, without its reference."""
        if self.sweep is None:
            return ()
        if self.sweep.students is not None:
            return self.sweep.students
        known = (TEACHER, STUDENT, self.sweep.reference, *self.models)
        return tuple(name for name in models if name not in known)

    def exported(self) -> list[Format]:
        """Formats in the order they are made in, with those that others are made of."""
        if self.exports is None:
            return []
        return with_sources((*self.exports.formats, *(phone.format for phone in self.exports.mobile.values())))

    def swept(self) -> tuple[str, ...]:
        """Tasks of the sweep."""
        return () if self.sweep is None else self.sweep.tasks or tuple(self.tasks)

    def taught(self) -> tuple[str, ...]:
        """Tasks of the second step."""
        return () if self.second_step is None else self.second_step.tasks or tuple(self.tasks)

    def _tables(self) -> Iterator[tuple[str, Mapping[str, Any], str]]:
        yield "eval.provenance", self.provenance, "provenance"
        for task in self.tasks:
            yield "eval.finetune", self.tuning(task), f"tasks.{task}"
        for task in self.swept() if self.sweep else ():
            yield "eval.finetune", self.tuning(task, self.sweep.finetune), "sweep.finetune"  # type: ignore[union-attr]
        for task in self.taught() if self.second_step else ():
            yield "eval.finetune", self.tuning(task, self.second_step.change), "second_step.loss"  # type: ignore[union-attr]
        for task in self.probes.tasks if self.probes else ():
            yield "eval.finetune", self.tuning(task, self.probes.finetune), "probes.finetune"  # type: ignore[union-attr]
        if self.exports:
            for name in self.exported():
                yield FORMATS[name].module, self.exports.making(name), f"exports.values.{name}"
            yield "eval.latency", self.exports.latency, "exports.latency"
            for phone_name, phone in self.exports.mobile.items():
                yield "eval.mobile", phone.values, f"exports.mobile.{phone_name}.measure"
                yield "deploy.web_page", phone.page, f"exports.mobile.{phone_name}.page"
        if self.baselines is not None:
            yield "eval.latency", self.baselines.values, "baselines.measure"
