"""The jobs of a suite, as a pure function of its recipe and of the models that are there."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cluster.jobs import Job
from eval.suite_recipe import PAIRS, PROVENANCE, STUDENT, TEACHER, Suite

SECOND_STEP = "student-second-step"


@dataclass(frozen=True)
class Plan:
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
        found: list[Job] = []
        inputs: dict[str, Path] = {}
        for model in exports.models:
            tuned, folder = self._tuned(model, exports.task), self.out / "exports" / model
            after = [f"finetune/{model}/{exports.task}"]
            onnx = self._job(f"exports/{model}/onnx", "deploy.onnx_export", exports.onnx, {"model": tuned}, after=after)
            both = {"export": onnx.out, "model": tuned}
            int8 = self._job(f"exports/{model}/int8", "deploy.quantize", exports.int8, both, after=[onnx.name])
            found += [onnx, int8]
            prefix = "" if model == STUDENT else f"{model}_"
            inputs |= {model: tuned, f"{prefix}onnx": folder / "onnx", f"{prefix}int8": folder / "int8"}
        names = [job.name for job in found]
        timed = self._job("latency", "eval.latency", exports.latency, inputs, after=names)
        return [*found, replace(timed, alone=True)]

    def _baselines(self) -> Iterator[Job]:
        baselines = self.suite.baselines
        pairs = None if baselines is None else self.suite.folder(PAIRS)
        if baselines is None or pairs is None:
            return
        known = [name for name in (TEACHER, STUDENT) if name in self.models]
        inputs = {"pairs": pairs, **{name: self._tuned(name, PAIRS) for name in known}}
        inputs |= {name: Path(place).absolute() for name, place in baselines.folders.items()}
        after = [f"finetune/{name}/{PAIRS}" for name in known]
        timed = self._job("baselines", "eval.baselines", baselines.measure, inputs, after=after)
        yield replace(timed, alone=True)

    def _tuned(self, model: str, task: str) -> Path:
        return self.out / "finetune" / model / task

    def _job(
        self,
        name: str,
        module: str,
        values: Mapping[str, Any],
        inputs: Mapping[str, Path],
        out: Path | None = None,
        after: list[str] | None = None,
    ) -> Job:
        hours = self.suite.deadline_hours
        return Job(
            name=name,
            module=module,
            recipe=values,
            inputs=inputs,
            out=out or self.out / name,
            after=tuple(after or ()),
            priority=self.suite.priority,
            deadline=None if hours is None else 3600 * hours,
        )
