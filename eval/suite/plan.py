"""The jobs of a suite, as a pure function of its recipe and of the models that are there."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cluster.artifacts.errors import StageError
from cluster.jobs.job import Job
from eval.results.export_formats import FORMATS, Format
from eval.suite.recipe import PAIRS, PROVENANCE, QUESTIONS, STUDENT, TEACHER, Exports, Suite

SECOND_STEP = "student-second-step"


@dataclass(frozen=True)
class SuitePlan:
    """The jobs of a suite whose results lie below ``out``; ``models`` are folders by name."""

    suite: Suite
    models: Mapping[str, Path]
    out: Path

    def jobs(self) -> list[Job]:
        """Data made here, fine-tuning, exports, speed: each after what it needs; the measurements of time alone.

        Raises:
            StageError: a model or folder that the recipe needs is not there.
        """
        self.suite.check(self.models)
        return [*self._data(), *self.scores(), *self._exports(), *self._baselines()]

    def described(self) -> dict[str, Any]:
        """What a report must know to tell the models apart: the contents of ``suite.json``."""
        sweep = self.suite.sweep
        places = {
            name: str(place.relative_to(self.out) if place.is_relative_to(self.out) else place)
            for name, place in self.models.items()
        }
        return {
            "models": places,
            "ablations": sweep and {"reference": sweep.reference, "students": list(self.others())},
            "second_step": SECOND_STEP if self.suite.second_step else None,
        }

    def others(self) -> tuple[str, ...]:
        """The students of the sweep, without its reference."""
        return self.suite.varied(self.models)

    def scores(self) -> list[Job]:
        """Fine-tuning: teacher and student, the student once more, then the sweep and whatever else was named."""
        suite = self.suite
        swept = {*self.others(), suite.sweep.reference} - {TEACHER, STUDENT} if suite.sweep else set()
        named = dict.fromkeys(name for name in (TEACHER, STUDENT, *suite.models) if name not in swept)
        found = [self._finetune(name, name, task) for task in suite.tasks for name in named if name in self.models]
        if suite.second_step:
            change = suite.second_step.change
            found += [self._finetune(SECOND_STEP, STUDENT, task, change, taught=True) for task in suite.taught()]
        if suite.sweep:
            # The student's own scores are there already where it is the reference.
            names = [name for name in (suite.sweep.reference, *self.others()) if name != STUDENT]
            change = suite.sweep.finetune
            found += [self._finetune(name, name, task, change) for task in suite.swept() for name in names]
        return found

    def _data(self) -> Iterator[Job]:
        if PROVENANCE in self.suite.tasks:
            inputs = {"corpus": self.out / "corpus"}
            out = self.out / "datasets" / PROVENANCE
            yield self._job(f"datasets/{PROVENANCE}", "eval.provenance", self.suite.provenance, inputs, out)

    def _finetune(
        self, name: str, model: str, task: str, change: Mapping[str, Any] | None = None, taught: bool = False
    ) -> Job:
        suite = self.suite
        values = {**suite.tuning(task, change or {}), "placement": {"threads": suite.job_cpus}}
        inputs = {"model": self.models[model]}
        after = [f"datasets/{task}"] if task == PROVENANCE else []
        if (folder := self._folder(task)) is not None:
            inputs["data"] = folder
        elif suite.hub is not None and "data" not in values:
            values["data"] = suite.hub.format(task=task)
        if taught:
            inputs["teacher"] = self.out / "finetune" / TEACHER / task
            after.append(f"finetune/{TEACHER}/{task}")
        job = self._job(f"finetune/{name}/{task}", "eval.finetune", values, inputs, after=after)
        return replace(job, cpus=suite.job_cpus, gpus=suite.job_gpus)

    def _folder(self, task: str) -> Path | None:
        return self.out / "datasets" / task if task == PROVENANCE else self.suite.folder(task)

    def _exports(self) -> list[Job]:
        exports = self.suite.exports
        if exports is None:
            return []
        made: dict[tuple[str, str, Format], Job] = {}
        inputs: dict[str, Path] = {}
        for model in exports.models:
            for task in exports.tasks:
                made |= {
                    (model, task, name): self._export(exports, model, task, name) for name in self.suite.exported()
                }
                # One alone has its role's own name, as on the command line.
                inputs[model if len(exports.tasks) == 1 else f"{model}-{task}"] = self._tuned(model, task)
                inputs |= {f"export-{model}-{task}-{name}": made[model, task, name].out for name in exports.formats}
        inputs |= self._texts(exports.tasks) | self._architectures(exports.latency)
        names = [job.name for job in made.values()]
        timed = self._job("latency", "eval.latency", exports.latency, inputs, after=names)
        return [*made.values(), replace(timed, alone=True), *self._phones(exports, made)]

    def _phones(self, exports: Exports, made: Mapping[tuple[str, str, Format], Job]) -> Iterator[Job]:
        """What is measured on phones; a page is made before its phone is asked for."""
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

    def _export(self, exports: Exports, model: str, task: str, name: Format) -> Job:
        """One export; those of the first task are called after their format alone."""
        making, tuned = FORMATS[name], self._tuned(model, task)

        def called(form: Format) -> str:
            return f"exports/{model}/{form if task == exports.tasks[0] else f'{task}-{form}'}"

        inputs, after = {"model": tuned}, f"finetune/{model}/{task}"
        if making.of is not None:
            inputs["export"], after = self.out / called(making.of), called(making.of)
        if making.calibrated:
            inputs["tokens"] = self._rows(exports, name)
        data = self._folder(task)
        if exports.score_limit is not None and data is not None:
            inputs["data"] = data
        return self._job(called(name), making.module, exports.making(name), inputs, after=[after])

    def _rows(self, exports: Exports, name: Format) -> Path:
        """Token rows to calibrate with: those named, else the pipeline's shortest."""
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
        """Folders of the texts that models tuned for these tasks are timed on."""
        roles = (("pairs", PAIRS), ("questions", QUESTIONS))
        found = {role: self.suite.folder(task) for role, task in roles if task in tasks}
        return {role: folder for role, folder in found.items() if folder is not None}

    def _architectures(self, latency: Mapping[str, Any]) -> dict[str, Path]:
        folders = {} if self.suite.baselines is None else self.suite.baselines.folders
        return {name: Path(folders[name]).absolute() for name in latency.get("models", ()) if name in folders}

    def _baselines(self) -> Iterator[Job]:
        baselines = self.suite.baselines
        pairs = None if baselines is None else self.suite.folder(PAIRS)
        if baselines is None or pairs is None:
            return
        known = [name for name in (TEACHER, STUDENT) if name in self.models]
        inputs = {"pairs": pairs, **{name: self._tuned(name, PAIRS) for name in known}}
        inputs |= self._architectures(baselines.values)
        after = [f"finetune/{name}/{PAIRS}" for name in known]
        timed = self._job("baselines", "eval.latency", baselines.values, inputs, after=after)
        yield replace(timed, alone=True)

    def _tuned(self, model: str, task: str) -> Path:
        return self.out / "finetune" / model / task

    def _job(
        self,
        name: str,
        stage: str,
        values: Mapping[str, Any],
        inputs: Mapping[str, Path],
        out: Path | None = None,
        after: list[str] | None = None,
    ) -> Job:
        hours = self.suite.deadline_hours
        return Job(
            name=name,
            stage=stage,
            recipe=values,
            inputs=inputs,
            out=out or self.out / name,
            after=tuple(after or ()),
            priority=self.suite.priority,
            deadline=None if hours is None else 3600 * hours,
        )
