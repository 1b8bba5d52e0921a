"""What a pipeline is: one recipe for every stage, and the jobs they become.

Stages of ``eval`` and ``deploy`` are named by their modules and meet training only on disk. Their recipes are checked
here, before anything runs, by the stages themselves.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import Field, PositiveInt, model_validator

from cluster.artifacts import recipe, registry
from cluster.artifacts.recipe import Recipe
from cluster.jobs import client
from cluster.jobs.job import Job
from distill.config import Distillation, Training

MAIN = "student"
PROVENANCE = "provenance"
SUITE = "eval.suite"


class Pipeline(Recipe):
    """Text to report. Each table is the recipe of a stage."""

    corpus: dict[str, Any]
    tokens: dict[str, Any]
    teacher: dict[str, Any]
    train: dict[str, Any]
    ablations: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Other students: name to what differs from ``train``."""
    suite: dict[str, Any] = Field(default_factory=dict)
    """What is measured afterwards, and probed meanwhile."""
    cpus: PositiveInt | None = None
    """CPUs of a cluster started here; all of the machine's by default. A cluster that is there has its own."""

    def token_recipe(self) -> dict[str, Any]:
        """``tokens``, with the tokenizer of the teacher's source where none is named."""
        source = self.teacher.get("source")
        if source is None or "tokenizer" in self.tokens:
            return self.tokens
        return {**self.tokens, "tokenizer": {"kind": "pretrained", "name": source}}

    def students(self) -> tuple[str, ...]:
        """The main student first, then the ablations."""
        return (MAIN, *self.ablations)

    @model_validator(mode="after")
    def _stages_accept(self) -> Self:
        self.tables()
        for name, changes in self.ablations.items():
            Distillation.of(recipe.merge(self.train, changes), f"[ablations.{name}]")
        return self

    @model_validator(mode="after")
    def _names_are_free(self) -> Self:
        if MAIN in self.ablations or "teacher" in self.ablations:
            raise ValueError(f"an ablation cannot be called {MAIN} or teacher")
        return self

    def tables(self) -> dict[str, Recipe]:
        """The recipe of every stage, by table."""
        tables = {
            "corpus": ("cluster.corpus", self.corpus),
            "tokens": ("cluster.tokens", self.token_recipe()),
            "teacher": ("distill.teacher", self.teacher),
            "train": ("distill.train", self.train),
            "suite": (SUITE, self.suite),
        }
        return {
            table: registry.find(stage).recipe.of(values, f"[{table}]") for table, (stage, values) in tables.items()
        }


@dataclass(frozen=True)
class PipelinePlan:
    """The jobs of a pipeline whose results lie below ``out``; pure."""

    pipeline: Pipeline
    out: Path

    @property
    def ledger(self) -> Path:
        """Folder of the job queue's ledger, where no queue runs on the cluster yet: of ``STILLHOUSE_JOBS``, or here."""
        return Path(os.environ.get(client.LEDGER) or self.out / "queue")

    def text(self) -> list[Job]:
        """Corpus and tokens; rows of other lengths for the phases that read them."""
        # Corpus and tokens hold no CPU themselves: their actors do.
        corpus = Job("corpus", "cluster.corpus", self.pipeline.corpus, {}, self.out / "corpus", cpus=0)
        inputs = {"corpus": corpus.out}
        tokens = Job(
            "tokens", "cluster.tokens", self.pipeline.token_recipe(), inputs, self.out / "tokens", ("corpus",), cpus=0
        )
        teacher = registry.find("distill.teacher").recipe.of(self.pipeline.teacher, "[teacher]").train
        trainings = [*map(self.distillation, self.pipeline.students()), *([teacher] if teacher else [])]
        lengths = sorted({phase.seq_len for training in trainings for phase in training.phases} - {self._seq_len})
        return [corpus, tokens, *(self._other_rows(tokens, length) for length in lengths), *self._probed_data()]

    def _probed_data(self) -> list[Job]:
        """The task that is made of the corpus, where checkpoints are fine-tuned on it."""
        suite = self.suite
        if suite.probes is None or PROVENANCE not in suite.probes.tasks:
            return []
        name = f"datasets/{PROVENANCE}"
        inputs = {"corpus": self.out / "corpus"}
        return [Job(name, "eval.provenance", suite.provenance, inputs, self.out / name, ("corpus",))]

    def _other_rows(self, tokens: Job, seq_len: int) -> Job:
        """The same text in rows of another length, in the words of the first: a vocabulary is learned only once."""
        recipe = {key: value for key, value in tokens.recipe.items() if key != "tokenizer"} | {"seq_len": seq_len}
        inputs = {**tokens.inputs, "tokenizer": tokens.out}
        out = self._rows(seq_len)
        return Job(out.name, tokens.stage, recipe, inputs, out, (*tokens.after, tokens.name), cpus=0)

    def rows_of(self, training: Training) -> dict[str, Path]:
        """Inputs of a training: the tokens of every length it reads."""
        lengths = sorted({phase.seq_len for phase in training.phases} or {self._seq_len})
        if len(lengths) == 1:
            return {"tokens": self._rows(lengths[0])}
        return {f"tokens-{length}": self._rows(length) for length in lengths}

    def _rows(self, seq_len: int) -> Path:
        return self.out / ("tokens" if seq_len == self._seq_len else f"tokens-{seq_len}")

    @property
    def _seq_len(self) -> int:
        found: int = registry.find("cluster.tokens").recipe.of(self.pipeline.token_recipe(), "[tokens]").seq_len
        return found

    def distillation(self, name: str) -> Distillation:
        """The training recipe of a student."""
        return Distillation.of(recipe.merge(self.pipeline.train, self.pipeline.ablations.get(name, {})), name)

    @property
    def suite(self) -> Any:
        """The recipe of everything that is measured."""
        return registry.find(SUITE).recipe.of(self.pipeline.suite, "[suite]")

    def check(self) -> None:
        """Find out now, not after hours of training, that a task's folder or a model that is compared is not there.

        Raises:
            StageError: names the first that is missing.
        """
        self.suite.check(("teacher", *self.pipeline.students()))

    def probes(self, name: str, steps: int) -> Job | None:
        """The job that fine-tunes the checkpoints of a student's run while it trains."""
        values = self.suite.probing(name, steps, self.out / "datasets")
        if values is None:
            return None
        run = self.out / "runs" / name
        return Job(f"probes/{name}", "eval.probes", values, {"run": run}, self.out / "probes" / name, cpus=0)
