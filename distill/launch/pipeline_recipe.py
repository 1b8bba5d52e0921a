"""The recipe of a pipeline, one table for every stage, and the jobs it becomes.

The stages of ``eval`` are reached by name: their own hooks validate their tables, check what they need before anything
runs, and name the jobs that accompany a training run (:class:`cluster.artifacts.stage.Stage`).
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from cluster.artifacts import commit, recipe, registry
from cluster.artifacts.recipe import Recipe, RecipeError
from cluster.artifacts.recipe_errors import EXAMPLE, OF_STAGE
from cluster.artifacts.stage import StageContext, TrainingRun
from cluster.jobs import client
from cluster.jobs.job import Job
from cluster.tokens.stage import Tokens
from distill.config import Distillation, Training
from distill.follow import trackers
from distill.launch import model_source

MAIN = "student"
UNTRAINED: Literal["untrained"] = "untrained"
SUITE = "eval.suite"
_LENGTHS = ("steps", "epochs", "phases")
"""Values of a training of which exactly one says how long it is."""


class Pipeline(Recipe):
    """Text to report. Each table is the recipe of a stage."""

    corpus: dict[str, Any] = Field(
        json_schema_extra={
            EXAMPLE: '[corpus] with sources = [{ kind = "text", path = "text/*.txt" }]',
            OF_STAGE: "cluster.corpus",
        }
    )
    """The text: where it comes from and how it is cleaned, as in ``stillhouse corpus``."""
    tokens: dict[str, Any] = Field(default_factory=dict, json_schema_extra={OF_STAGE: "cluster.tokens"})
    """How documents become rows, as in ``stillhouse tokens``."""
    teacher: dict[str, Any] = Field(
        json_schema_extra={
            EXAMPLE: '[teacher] with source = "google-bert/bert-base-uncased", or the folder of a BERT',
            OF_STAGE: "distill.teacher",
        }
    )
    """The model that the student learns from, as in ``stillhouse teacher``."""
    train: dict[str, Any] = Field(
        json_schema_extra={EXAMPLE: "[train] with epochs = 1 and rows_per_step = 32", OF_STAGE: "distill.train"}
    )
    """How the student is trained, as in ``stillhouse train``."""
    ablations: dict[str, dict[str, Any]] = Field(default_factory=dict, json_schema_extra={OF_STAGE: "distill.train"})
    """Other students: name to what differs from ``train``. ``steps``, ``epochs`` or ``phases`` of an ablation replaces
    the one of ``train``."""
    added_ablations: tuple[Literal["untrained"], ...] = (UNTRAINED,)
    """Ablations that a pipeline has without naming them: ``untrained`` is the student as it starts, of 0 steps. It
    costs a validation, an export, and its scores where a sweep measures all ablations; ``[]`` leaves it out."""
    suite: dict[str, Any] = Field(default_factory=dict, json_schema_extra={OF_STAGE: SUITE})
    """Everything that is measured, during training and after it."""
    cpus: PositiveInt | None = None
    """CPUs of a cluster started here, by default all of the machine's; a running cluster keeps its own."""

    def token_values(self) -> dict[str, Any]:
        """``tokens``, with the tokenizer of the teacher's source where none is named."""
        source = self.teacher.get("source")
        if source is None or "tokenizer" in self.tokens:
            return self.tokens
        return {**self.tokens, "tokenizer": {"kind": "pretrained", "name": source}}

    def token_recipe(self) -> Tokens:
        return Tokens.of(self.token_values(), "[tokens]")

    def teacher_training(self) -> Training | None:
        values = self.teacher.get("train")
        return None if values is None else Training.of(values, "[teacher.train]")

    def all_ablations(self) -> dict[str, dict[str, Any]]:
        """The ablations, with those that are added; another of 0 steps takes the place of ``untrained``."""
        added = (
            {} if any(changes.get("steps") == 0 for changes in self.ablations.values()) else {UNTRAINED: {"steps": 0}}
        )
        return {**{name: added[name] for name in self.added_ablations if name in added}, **self.ablations}

    def students(self) -> tuple[str, ...]:
        """The main student first, then the ablations."""
        return (MAIN, *self.all_ablations())

    def training_values(self, name: str) -> dict[str, Any]:
        """Values of ``distill.train`` for a student."""
        changes = self.all_ablations().get(name, {})
        length = [key for key in _LENGTHS if key in changes]
        kept = {key: value for key, value in self.train.items() if not length or key not in _LENGTHS}
        return recipe.merge(kept, changes)

    @model_validator(mode="after")
    def _stages_accept(self) -> Self:
        self.tables()
        for name in self.all_ablations():
            Distillation.of(self.training_values(name), f"[ablations.{name}]")
        return self

    @model_validator(mode="after")
    def _names_are_free(self) -> Self:
        if MAIN in self.ablations or "teacher" in self.ablations:
            raise ValueError(f"an ablation cannot be called {MAIN} or teacher")
        if odd := next((name for name in self.ablations if not re.fullmatch(r"\w[\w.-]*", name)), None):
            raise ValueError(f"ablations.{odd}: a folder is called after it: use letters, digits, . and -")
        return self

    def tables(self) -> dict[str, Recipe]:
        """The recipe of every stage, by table."""
        tables = {
            "corpus": ("cluster.corpus", self.corpus),
            "tokens": ("cluster.tokens", self.token_values()),
            "teacher": ("distill.teacher", self.teacher),
            "train": ("distill.train", self.train),
            "suite": (SUITE, self.suite),
        }
        return {table: registry.find(stage).read(values, f"[{table}]") for table, (stage, values) in tables.items()}


def is_pipeline(values: Mapping[str, Any]) -> bool:
    """Whether plain values are meant as a pipeline, not as the recipe of one stage."""
    return "corpus" in values and "train" in values


def load(reference: str, settings: Sequence[str] = ()) -> Pipeline:
    """A pipeline.

    Raises:
        RecipeError: as :func:`cluster.artifacts.recipe.load`; also the recipe of one stage, or one table of a pipeline.
    """
    file, table = recipe.split(reference)
    values = recipe.read_values(reference, settings)
    if reference != "default" and not {"corpus", "teacher", "train"} & values.keys():
        instead = f"write {file}" if table else "stillhouse recipes lists pipelines, with the word launch"
        raise RecipeError(f"{reference} is no pipeline, it has no [corpus], [teacher] or [train]: {instead}")
    return Pipeline.of(values, file)


@dataclass(frozen=True)
class PipelinePlan:
    """The jobs of a pipeline, with their results below the folder ``out``; pure."""

    pipeline: Pipeline
    out: Path

    @property
    def ledger(self) -> Path:
        """Folder of the ledger of a queue that starts here: ``STILLHOUSE_JOBS``, or ``queue`` in ``out``."""
        return Path(os.environ.get(client.LEDGER) or self.out / "queue")

    def text(self) -> list[Job]:
        """Corpus, tokens, rows of other lengths for the phases that read them, and the side jobs without a training."""
        corpus = Job("corpus", "cluster.corpus", self.pipeline.corpus, {}, self.out / "corpus")
        inputs = {"corpus": corpus.out}
        values = self.pipeline.token_values()
        tokens = Job("tokens", "cluster.tokens", values, inputs, self.out / "tokens", ("corpus",))
        teacher = self.pipeline.teacher_training()
        trainings = [*map(self.distillation, self.pipeline.students()), *([teacher] if teacher else [])]
        lengths = sorted({phase.seq_len for training in trainings for phase in training.phases} - {self._seq_len})
        return [corpus, tokens, *(self._other_rows(tokens, length) for length in lengths), *self.side_jobs()]

    def _other_rows(self, tokens: Job, seq_len: int) -> Job:
        """The same text in rows of another length, with the tokenizer of the first: the vocabulary is learned once."""
        recipe = {key: value for key, value in tokens.recipe.items() if key != "tokenizer"} | {"seq_len": seq_len}
        inputs = {**tokens.inputs, "tokenizer": tokens.out}
        out = self._rows(seq_len)
        return Job(out.name, tokens.stage, recipe, inputs, out, (*tokens.after, tokens.name))

    def rows_of(self, training: Training) -> dict[str, Path]:
        """Inputs of a training: the tokens of every length it reads."""
        lengths = sorted({phase.seq_len for phase in training.phases} or {self._single_length(training)})
        if len(lengths) == 1:
            return {"tokens": self._rows(lengths[0])}
        return {f"tokens-{length}": self._rows(length) for length in lengths}

    def _single_length(self, training: Training) -> int:
        """Row length of a training without phases; one of 0 steps is validated on the last ones of the student."""
        phases = self.distillation(MAIN).phases if training.steps == 0 else ()
        return phases[-1].seq_len if phases else self._seq_len

    def _rows(self, seq_len: int) -> Path:
        return self.out / ("tokens" if seq_len == self._seq_len else f"tokens-{seq_len}")

    @property
    def _seq_len(self) -> int:
        return self.pipeline.token_recipe().seq_len

    def distillation(self, name: str) -> Distillation:
        """The training recipe of a student."""
        return Distillation.of(self.pipeline.training_values(name), name)

    def check(self) -> None:
        """Find out now, not after hours, that a folder, model or library of the suite or a tracker is not there.

        Raises:
            StageError: names the first that is missing.
        """
        teacher = self.pipeline.teacher_training()
        for training in (*([teacher] if teacher else []), *map(self.distillation, self.pipeline.students())):
            trackers.check(training.placement.follow)
        suite = registry.find(SUITE)
        suite.check(suite.read(self.pipeline.suite, "[suite]"), self._context())

    def check_sources(self) -> None:
        """Find out now, not after minutes of attempts, that teacher or tokenizer are nowhere; made ones need no source.

        Raises:
            StageError: as :func:`distill.launch.model_source.check`.
        """
        tokenizer = self.pipeline.token_values().get("tokenizer") or {}
        for made, source in (("teacher", self.pipeline.teacher.get("source")), ("tokens", tokenizer.get("name"))):
            if source and not (self.out / made / commit.MANIFEST).is_file():
                model_source.check(source)

    def side_jobs(self, training: TrainingRun | None = None) -> list[Job]:
        """The suite's jobs that accompany a training run; without one, those that prepare data for them."""
        suite = registry.find(SUITE)
        found = suite.side_jobs(suite.read(self.pipeline.suite, "[suite]"), self._context(training))
        return [Job(job.name, job.stage, job.recipe, job.inputs, job.out, job.after) for job in found]

    def _context(self, training: TrainingRun | None = None) -> StageContext:
        return StageContext(self.out, models=("teacher", *self.pipeline.students()), training=training)
