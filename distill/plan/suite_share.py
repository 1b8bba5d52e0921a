"""The share of a pipeline's suite in its hours: the fine-tunings, from the numbers that the suite's stage gives."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.artifacts import registry
from cluster.artifacts.errors import StageError
from cluster.artifacts.stage import StageContext, Workload
from distill.config import Training
from distill.cost_model import costs, step_prediction
from distill.cost_model.hardware import Cluster
from distill.launch.pipeline_recipe import MAIN, SUITE, Pipeline
from distill.modeling.model_shape import ModelShape

_TRAINED = 3
"""A forward and a backward pass cost three forward passes."""


@dataclass(frozen=True)
class SuiteWork:
    """The fine-tunings of a pipeline, or why they are not known."""

    work: tuple[Workload, ...] = ()
    unknown: str = ""

    @property
    def trainings(self) -> int:
        return sum(each.trainings for each in self.work)

    def hours(self, shapes: Mapping[str, ModelShape], training: Training, cluster: Cluster) -> float | None:
        """Hours on all devices at the share of the peak that training reaches in this precision; None if not known.

        Models without a shape of their own are as large as the student.
        """
        on_gpus = cluster.device.kind == "gpu"
        if self.unknown or any(each.gpu != on_gpus for each in self.work):
            return None
        seconds = 0.0
        for each in self.work:
            forward = _forward(shapes.get(each.model, shapes[MAIN]), each.tokens)
            taught = _forward(shapes["teacher"], each.tokens) if each.taught else 0.0
            planned = step_prediction.adapted(training.model_copy(update={"precision": each.precision}), cluster.device)
            rate = step_prediction.flops_per_second(planned, planned.precision, cluster.device)
            seconds += each.examples * each.tokens * (_TRAINED * forward + taught) / rate
        return seconds / cluster.workers / 3600

    def note(self, cluster: Cluster) -> str:
        """What the plan takes for granted about the suite, or why its hours are not in the plan."""
        if self.unknown:
            return f"the suite is not in these hours: {self.unknown}"
        if not self.work:
            return ""
        if any(each.gpu for each in self.work) != (cluster.device.kind == "gpu"):
            return (
                f"the suite's {self.trainings:,} fine-tunings run on CPUs and are not in these hours: "
                "suite.job_gpus = 0.25 puts them on the GPUs"
                if cluster.device.kind == "gpu"
                else f"the suite's {self.trainings:,} fine-tunings run on GPUs and are not in these hours"
            )
        return (
            "the suite: published sizes of the tasks, the training's share of the peak; exports and timing come on top"
        )


def _forward(shape: ModelShape, tokens: float) -> float:
    return costs.layers_flops(shape, round(tokens))


def of_pipeline(pipeline: Pipeline, names: Sequence[str]) -> SuiteWork:
    """The fine-tunings of a pipeline with these models."""
    stage = registry.find(SUITE)
    suite = stage.read(pipeline.suite, "[suite]")
    try:
        return SuiteWork(tuple(stage.workload(suite, StageContext(Path("out"), models=tuple(names)))))
    except StageError as error:
        return SuiteWork(unknown=str(error))
