"""The recipe of a suite: which models meet which tasks, and what else is measured of the fine-tuned models.

:mod:`eval.suite.checks` has the rules between its tables, :mod:`eval.suite.plan` the jobs.
"""

import re
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from cluster.artifacts import recipe
from cluster.artifacts.recipe import Recipe
from cluster.artifacts.recipe_errors import OF_STAGE
from eval.hub.card_metadata import CardFacts
from eval.results.export_formats import Format
from eval.results.schema import STUDENT, TEACHER
from eval.tasks.definitions import TASKS

PAIRS, QUESTIONS = "stsb", "squad"
"""The tasks on whose development sets models are timed: the paper's (table 3), and a phone's."""
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
"""Way of measuring a phone to the formats it runs; this host runs all of them."""


class PhoneBenchmark(Recipe):
    """A measurement of exports on a phone, or in a stand-in for one."""

    format: Format = "int8"
    """Of the models' exports."""
    task: str | None = None
    """One of the exports' tasks: by default ``squad`` if they have it, else the first."""
    measure: dict[str, Any] = Field(default_factory=dict, json_schema_extra={OF_STAGE: "eval.mobile"})
    """Values of ``eval.mobile``; without ``way``, a stand-in on this host."""
    binary: str | None = None
    """Folder of the programs that an Android phone runs, for ``way.kind = "adb"``."""
    libraries: str | None = None
    """Folder that ``make browser`` fills, for ``way.kind = "browser"``."""
    page: dict[str, Any] = Field(default_factory=dict, json_schema_extra={OF_STAGE: "deploy.web_page"})
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
        # eval.mobile rejects any other way and lists the known ones.
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


class Exports(Recipe):
    """Which models are exported to which formats, and timed."""

    task: str | tuple[str, ...] | None = None
    """Task, or tasks, of the fine-tuned models to export: those of ``stsb`` and ``squad`` are timed on its texts.
    Without a task, teacher and student are exported with their masked-word heads."""
    models: tuple[str, ...] = (TEACHER, STUDENT)
    """Models to export."""
    formats: tuple[Format, ...] = Field(("onnx", "int8"), min_length=1)
    """The suite also makes the formats that these are made from."""
    values: dict[Format, dict[str, Any]] = Field(default_factory=dict)
    """Format to values of the stage that makes it."""
    tokens: str | None = None
    """Token rows that calibrate formats with fixed ranges; by default those of the pipeline."""
    score_limit: PositiveInt | None = None
    """Examples of the task's development set on which every export and its model are scored; the export stage refuses
    too large a loss. Without it no export is scored."""
    latency: dict[str, Any] = Field(default_factory=dict, json_schema_extra={OF_STAGE: "eval.latency"})
    """Values of ``eval.latency``."""
    mobile: dict[str, PhoneBenchmark] = Field(default_factory=dict)
    """Measurements on phones, by their name in the report."""

    @property
    def tasks(self) -> tuple[str, ...]:
        return (self.task,) if isinstance(self.task, str) else self.task or ()

    def on_phone(self, phone: PhoneBenchmark) -> str:
        """Task of the exports on a phone."""
        return phone.task or (QUESTIONS if QUESTIONS in self.tasks else self.tasks[0])

    @model_validator(mode="after")
    def _has_the_task_it_needs(self) -> Self:
        for key, given in (("score_limit", self.score_limit), ("mobile", self.mobile)):
            if given and not self.tasks:
                raise ValueError(f"exports.{key} needs a fine-tuned model: name its task in exports.task")
        return self

    @model_validator(mode="after")
    def _phones_can_run(self) -> Self:
        for name, phone in self.mobile.items():
            if not re.fullmatch(r"\w[\w.-]*", name):
                raise ValueError(f"exports.mobile.{name}: a folder is called after it: use letters, digits, . and -")
            if phone.task not in (None, *self.tasks):
                raise ValueError(f"exports.mobile.{name} has the task {phone.task}, which is not among exports.task")
            task = TASKS.get(self.on_phone(phone))
            if phone.way == "browser" and (task is None or task.answers is None):
                raise ValueError(
                    f"exports.mobile.{name}: its page asks questions: set task to one of exports.task that does"
                )
        return self


class TaskDistillationJobs(Recipe):
    """Another fine-tuning of the student, with the fine-tuned teacher (paper, section 4: "DistilBERT (D)")."""

    tasks: tuple[str, ...] | None = None
    """All tasks of the suite by default; the paper did SQuAD."""
    loss: dict[str, Any] = Field(default_factory=dict)
    """Values of ``[second_step]`` in ``eval.finetune``, the only difference from the student's own fine-tuning."""


class Baselines(Recipe):
    """Sizes and speeds of published architectures, compared with teacher and student (paper, table 3)."""

    folders: dict[str, str] = Field(default_factory=dict)
    """Architecture to a folder with its tokenizer, and optionally its weights."""
    measure: dict[str, Any] = Field(default_factory=dict, json_schema_extra={OF_STAGE: "eval.latency"})
    """What differs from the values of ``eval.latency`` for table 3."""

    @property
    def values(self) -> dict[str, Any]:
        return recipe.merge(TABLE_3, self.measure)


class Probes(Recipe):
    """Short fine-tunings of a run's checkpoints while it trains: how the scores grow with training."""

    tasks: tuple[str, ...] = Field(min_length=1)
    """Tasks to fine-tune on."""
    finetune: dict[str, Any] = Field(default_factory=dict, json_schema_extra={OF_STAGE: "eval.finetune"})
    """What differs from the suite's fine-tuning: few seeds, few examples."""
    runs: tuple[str, ...] = (STUDENT,)
    """Names of the trainings whose checkpoints are scored."""
    every: PositiveInt = 1
    """At least this many steps between probes; the last checkpoint is always probed."""
    metrics_port: int | None = Field(None, ge=0, le=65535)
    """Port that serves the scores so far to Prometheus."""


class Sweep(Recipe):
    """Ablations: students trained differently, on the same tasks as a reference (paper, section 4.1, table 4)."""

    reference: str = STUDENT
    """The student they are compared with: trained as long, with the whole loss."""
    students: tuple[str, ...] | None = None
    """By default all ablations of the pipeline. They are measured for the sweep only."""
    tasks: tuple[str, ...] | None = None
    """All tasks of the suite by default."""
    finetune: dict[str, Any] = Field(default_factory=dict, json_schema_extra={OF_STAGE: "eval.finetune"})
    """What differs from the suite's fine-tuning, for the reference too."""

    @model_validator(mode="after")
    def _compares_like_with_like(self) -> Self:
        if self.finetune and self.reference == STUDENT:
            raise ValueError(
                f"sweep.finetune would measure the others otherwise than {STUDENT}: leave it out, or train a reference "
                "for the sweep and name it"
            )
        return self


class Suite(Recipe):
    """Models times tasks, exports, speed, one report."""

    tasks: dict[str, dict[str, Any]] = Field(default_factory=dict, json_schema_extra={OF_STAGE: "eval.finetune"})
    """Task to what differs from ``finetune`` for it."""
    data: str | None = None
    """Folder of a task's files, with ``{task}`` where its name goes; those that are made from the corpus need none."""
    folders: dict[str, str] = Field(default_factory=dict)
    """Task to its folder, where that is not the one of ``data``."""
    hub: str | None = None
    """Data set of a task on the hub, ``nyu-mll/glue:{task}``, for tasks that name none."""
    finetune: dict[str, Any] = Field(default_factory=dict, json_schema_extra={OF_STAGE: "eval.finetune"})
    """Values of ``eval.finetune`` for every task."""
    models: dict[str, str] = Field(default_factory=dict)
    """More models to score: name to folder."""
    bag_of_words: Literal["classification", "none"] = "classification"
    """Tasks whose scores stand beside those of a bag of words: all of classes or scores, or none."""
    second_step: TaskDistillationJobs | None = None
    """Fine-tunes the student a second time, with the fine-tuned teacher."""
    sweep: Sweep | None = None
    """Compares the ablations on the tasks."""
    probes: Probes | None = None
    """Scores checkpoints during training."""
    provenance: dict[str, Any] = Field(default_factory=dict, json_schema_extra={OF_STAGE: "eval.provenance"})
    """Values of ``eval.provenance``, which makes a task from the corpus: which source is a passage from?"""
    word_order: dict[str, Any] = Field(default_factory=dict, json_schema_extra={OF_STAGE: "eval.word_order"})
    """Values of ``eval.word_order``, which makes one too: are two words of a sentence swapped?"""
    exports: Exports | None = None
    """Exports the models, or those fine-tuned for a task, and times them."""
    baselines: Baselines | None = None
    """They are timed on the development set of STS-B, which needs a folder."""
    card: CardFacts = CardFacts()
    """For the README.md of every student below ``--out`` and of its fine-tuned models, with the report's scores."""
    job_cpus: PositiveInt = 1
    """CPUs, and threads, of a fine-tuning job."""
    job_gpus: float = Field(0.0, ge=0)
    """GPUs of a fine-tuning job; with a fraction, several share one."""
    priority: int = 0
    """Of the suite's jobs in the queue: higher ones start first."""
    deadline_hours: float | None = Field(None, gt=0)
    """The queue cancels jobs that are not done this long after the suite started."""
