"""What a pipeline is: one recipe for every stage, and the jobs they become.

Stages of ``eval`` and ``deploy`` are named by their modules and meet training only on disk. Their recipes are checked
here, before anything runs, by the stages themselves.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import Field, PositiveInt, model_validator

from cluster import recipe, stage
from cluster.jobs import Job
from cluster.recipe import Recipe
from distill.distillation import Distillation, Training

MAIN = "student"
PROVENANCE = "provenance"


class Scores(Recipe):
    """Which models are fine-tuned on which tasks."""

    tasks: dict[str, dict[str, Any]]
    """Task to what differs from ``finetune`` for it."""
    data: str | None = None
    """Folder of a task's files, with ``{task}`` where its name goes; ``provenance`` needs none."""
    hub: str | None = None
    """Data set of a task on the hub, ``nyu-mll/glue:{task}``, for tasks without ``data`` of their own."""
    finetune: dict[str, Any] = Field(default_factory=dict)
    """Values of ``eval.finetune`` for every task."""
    models: tuple[str, ...] = ("teacher", MAIN)
    provenance: dict[str, Any] = Field(default_factory=dict)
    """Values of ``eval.provenance``, which makes a task out of the corpus."""


class Exports(Recipe):
    """Which fine-tuned models are exported and timed."""

    task: str
    models: tuple[str, ...] = ("teacher", MAIN)
    onnx: dict[str, Any] = Field(default_factory=dict)
    int8: dict[str, Any] = Field(default_factory=dict)
    latency: dict[str, Any] = Field(default_factory=dict)


class Pipeline(Recipe):
    """Text to report. Each table is the recipe of a stage."""

    corpus: dict[str, Any]
    tokens: dict[str, Any]
    teacher: dict[str, Any]
    train: dict[str, Any]
    ablations: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Other students: name to what differs from ``train``."""
    scores: Scores | None = None
    exports: Exports | None = None
    cpus: PositiveInt | None = None
    """CPUs of a cluster started here; all of the machine's by default. A cluster that is there has its own."""
    job_cpus: PositiveInt = 1
    """CPUs, and threads, of a fine-tuning job."""
    job_gpus: float = Field(0.0, ge=0)
    """GPUs, or share of one, of a fine-tuning job."""

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
    def _tasks_have_data(self) -> Self:
        scores = self.scores
        if scores is None:
            return self
        if scores.data and scores.hub:
            raise ValueError("scores has data and hub: write one of them")
        for task, changes in scores.tasks.items():
            values = {**scores.finetune, **changes}
            if not (task == PROVENANCE or scores.data or scores.hub or "data" in values):
                raise ValueError(f'no data for {task}: write scores.data = "folder/{{task}}" or scores.hub')
            if "placement" in values:
                raise ValueError("fine-tuning is placed by job_cpus and job_gpus: write those instead of a placement")
        return self

    @model_validator(mode="after")
    def _stages_accept(self) -> Self:
        for module, values, where in self._tables():
            stage.find(module).recipe.of(values, f"[{where}]")
        return self

    @model_validator(mode="after")
    def _models_exist(self) -> Self:
        known = ("teacher", *self.students())
        asked = [("scores", self.scores.models)] if self.scores else []
        asked += [("exports", self.exports.models)] if self.exports else []
        for where, models in asked:
            if unknown := sorted({*models} - {*known}):
                raise ValueError(f"{where}.models names {unknown[0]}: there is {', '.join(known)}")
        if self.exports and MAIN not in self.exports.models:
            raise ValueError(f"exports.models must have {MAIN} among them: latency compares the others with it")
        if self.exports and (self.scores is None or self.exports.task not in self.scores.tasks):
            raise ValueError(
                f"exports.task {self.exports.task} is not among scores.tasks: exports are fine-tuned models"
            )
        if self.exports and not {*self.exports.models} <= {*self.scores.models}:  # type: ignore[union-attr]
            raise ValueError("exports.models must be among scores.models: exports are fine-tuned models")
        if MAIN in self.ablations or "teacher" in self.ablations:
            raise ValueError(f"an ablation cannot be called {MAIN} or teacher")
        return self

    def _tables(self) -> list[tuple[str, Mapping[str, Any], str]]:
        tables: list[tuple[str, Mapping[str, Any], str]] = [
            ("cluster.corpus", self.corpus, "corpus"),
            ("cluster.tokens", self.token_recipe(), "tokens"),
            ("distill.teacher", self.teacher, "teacher"),
            ("distill.train", self.train, "train"),
        ]
        tables += [
            ("distill.train", recipe.merge(self.train, changes), f"ablations.{name}")
            for name, changes in self.ablations.items()
        ]
        if self.scores:
            tables.append(("eval.provenance", self.scores.provenance, "scores.provenance"))
            tables += [
                ("eval.finetune", {**self.scores.finetune, **changes, "task": task}, f"scores.tasks.{task}")
                for task, changes in self.scores.tasks.items()
            ]
        if self.exports:
            tables.append(("deploy.onnx_export", self.exports.onnx, "exports.onnx"))
            tables.append(("deploy.quantize", self.exports.int8, "exports.int8"))
            tables.append(("eval.latency", self.exports.latency, "exports.latency"))
        return tables


@dataclass(frozen=True)
class Plan:
    """The jobs of a pipeline whose results lie below ``out``; pure."""

    pipeline: Pipeline
    out: Path

    def text(self) -> list[Job]:
        """Corpus and tokens; rows of other lengths for the phases that read them."""
        # Corpus and tokens hold no CPU themselves: their actors do.
        corpus = Job("corpus", "cluster.corpus", self.pipeline.corpus, {}, self.out / "corpus", cpus=0)
        inputs = {"corpus": corpus.out}
        tokens = Job(
            "tokens", "cluster.tokens", self.pipeline.token_recipe(), inputs, self.out / "tokens", ("corpus",), cpus=0
        )
        teacher = stage.find("distill.teacher").recipe.of(self.pipeline.teacher, "[teacher]").train
        trainings = [*map(self.distillation, self.pipeline.students()), *([teacher] if teacher else [])]
        lengths = sorted({phase.seq_len for training in trainings for phase in training.phases} - {self._seq_len})
        return [corpus, tokens, *(self._other_rows(tokens, length) for length in lengths)]

    def _other_rows(self, tokens: Job, seq_len: int) -> Job:
        """The same text in rows of another length, in the words of the first: a vocabulary is learned only once."""
        recipe = {key: value for key, value in tokens.recipe.items() if key != "tokenizer"} | {"seq_len": seq_len}
        inputs = {**tokens.inputs, "tokenizer": tokens.out}
        out = self._rows(seq_len)
        return Job(out.name, tokens.module, recipe, inputs, out, (*tokens.after, tokens.name), cpus=0)

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
        found: int = stage.find("cluster.tokens").recipe.of(self.pipeline.token_recipe(), "[tokens]").seq_len
        return found

    def distillation(self, name: str) -> Distillation:
        """The training recipe of a student."""
        return Distillation.of(recipe.merge(self.pipeline.train, self.pipeline.ablations.get(name, {})), name)

    def measurements(self) -> list[Job]:
        """Fine-tuning, exports and latency."""
        return [*self._scores(), *self._exports()]

    def check_data(self) -> None:
        """Find out now, not after hours of training, that a task's folder is not there.

        Raises:
            StageError: names the first missing folder.
        """
        for job in self._scores():
            data = job.inputs.get("data")
            if data is not None and not data.is_relative_to(self.out) and not data.exists():
                raise stage.StageError(
                    f"{job.name}: no folder {data}: point scores.data at the tasks, or leave the task out"
                )

    def _model(self, name: str) -> Path:
        return self.out / "teacher" if name == "teacher" else self.out / "students" / name

    def _scores(self) -> list[Job]:
        scores = self.pipeline.scores
        if scores is None:
            return []
        found = []
        if PROVENANCE in scores.tasks:
            inputs = {"corpus": self.out / "corpus"}
            out = self.out / "datasets" / "provenance"
            found.append(Job("datasets/provenance", "eval.provenance", scores.provenance, inputs, out))
        for task, changes in scores.tasks.items():
            found += [self._finetune(scores, model, task, changes) for model in scores.models]
        return found

    def _finetune(self, scores: Scores, model: str, task: str, changes: Mapping[str, Any]) -> Job:
        inputs = {"model": self._model(model)}
        values = {**scores.finetune, **changes, "task": task, "placement": {"threads": self.pipeline.job_cpus}}
        made_here = task == PROVENANCE
        if made_here:
            inputs["data"] = self.out / "datasets" / task
        elif scores.data is not None and "data" not in values:
            inputs["data"] = Path(scores.data.format(task=task))
        elif scores.hub is not None and "data" not in values:
            values["data"] = scores.hub.format(task=task)
        return Job(
            name=f"finetune/{model}/{task}",
            module="eval.finetune",
            recipe=values,
            inputs=inputs,
            out=self.out / "finetune" / model / task,
            after=("datasets/provenance",) if made_here else (),
            cpus=self.pipeline.job_cpus,
            gpus=self.pipeline.job_gpus,
        )

    def _exports(self) -> list[Job]:
        exports = self.pipeline.exports
        if exports is None:
            return []
        found = []
        inputs: dict[str, Path] = {}
        for model in exports.models:
            tuned = self.out / "finetune" / model / exports.task
            found += self._export(exports, model, tuned)
            inputs |= self._timed(model, tuned)
        names = tuple(job.name for job in found)
        timed = Job("latency", "eval.latency", exports.latency, inputs, self.out / "latency", names, alone=True)
        return [*found, timed]

    def _export(self, exports: Exports, model: str, tuned: Path) -> list[Job]:
        onnx, int8 = (self.out / "exports" / model / form for form in ("onnx", "int8"))
        trained = f"finetune/{model}/{exports.task}"
        first = Job(f"exports/{model}/onnx", "deploy.onnx_export", exports.onnx, {"model": tuned}, onnx, (trained,))
        both = {"export": onnx, "model": tuned}
        return [first, Job(f"exports/{model}/int8", "deploy.quantize", exports.int8, both, int8, (first.name,))]

    def _timed(self, model: str, tuned: Path) -> dict[str, Path]:
        folder = self.out / "exports" / model
        if model == "teacher":
            return {"teacher": tuned, "teacher_onnx": folder / "onnx", "teacher_int8": folder / "int8"}
        if model == MAIN:
            return {"student": tuned, "onnx": folder / "onnx", "int8": folder / "int8"}
        return {}
