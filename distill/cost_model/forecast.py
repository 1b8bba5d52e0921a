"""Forecasts a training run on given machines: hours, disk, refusals and warnings."""

from dataclasses import dataclass, replace

import torch

from cluster.telemetry.formatting import memory_size
from distill.config import Training, WorkerRange
from distill.cost_model import costs, step_prediction
from distill.cost_model.hardware import Cluster
from distill.cost_model.step_prediction import Prediction
from distill.modeling.model_shape import ModelShape

CARDS_ARE_BUILT_FOR = "https://download.pytorch.org/whl/cu126"
"""Index of the torch builds with kernels for V100s."""


@dataclass(frozen=True)
class PlannedRun:
    """A training run to plan, of a student or a teacher."""

    name: str
    training: Training
    teacher: ModelShape | None
    student: ModelShape
    seq_len: int
    train_rows: int | None = None
    prefix: str = ""
    """Prefix of ``placement`` in ``--set``: ``train.`` in a pipeline."""
    later: tuple["PlannedRun", ...] = ()
    """Later phases; this object is the first phase then."""

    @property
    def phases(self) -> "tuple[PlannedRun, ...]":
        return (self, *self.later)

    @property
    def all_steps(self) -> int:
        return sum(phase.steps for phase in self.phases)

    @property
    def steps(self) -> int:
        if self.training.steps is not None:
            return self.training.steps
        assert self.train_rows is not None
        return self.training.total_steps(self.train_rows)

    def predict(self, cluster: Cluster, layout: step_prediction.Layout | None = None) -> Prediction:
        return step_prediction.predict(self.training, self.teacher, self.student, self.seq_len, cluster, layout)

    def follow(self, step: Prediction, cluster: Cluster) -> list[Prediction]:
        """A step of every phase, given that of the first."""
        return [step, *(phase.predict(cluster, phase.like(step.layout, self.seq_len)) for phase in self.later)]

    def like(self, layout: step_prediction.Layout, seq_len: int) -> step_prediction.Layout:
        """Adapt the layout of a phase with rows of ``seq_len`` to this one: micro-batches with no more tokens."""
        rows = max(1, round(self.training.rows_per_step / layout.workers))
        most = max(1, layout.micro_rows * seq_len // self.seq_len)
        return replace(layout, micro_rows=max(size for size in step_prediction.divisors(rows) if size <= most))

    def best(self, cluster: Cluster) -> Prediction:
        return step_prediction.best(self.training, self.teacher, self.student, self.seq_len, cluster)


@dataclass(frozen=True)
class Forecast:
    """Forecast of a run on a cluster."""

    planned: PlannedRun
    cluster: Cluster
    written: Prediction
    """A step with the recipe's placement."""
    best: Prediction
    validation_seconds: float
    refusals: tuple[str, ...]
    """Reasons to refuse the run, each with what to write instead."""
    warnings: tuple[str, ...]

    @property
    def chosen(self) -> Prediction:
        """The step that ``hours`` assumes: with the recipe's placement, or with the best one if that does not fit."""
        return self.written if self.written.fits else self.best

    def hours_of(self, step: Prediction) -> float:
        """Hours of the whole run, validations included, given a step of the first phase."""
        phases = zip(self.planned.phases, self.planned.follow(step, self.cluster), strict=True)
        return (sum(phase.steps * found.step_seconds for phase, found in phases) + self.validation_seconds) / 3600

    @property
    def hours(self) -> float:
        return self.hours_of(self.chosen)

    @property
    def best_hours(self) -> float:
        return self.hours_of(self.best)

    @property
    def device_hours(self) -> float:
        return self.hours * self.chosen.layout.workers

    @property
    def disk(self) -> dict[str, int]:
        """Bytes on disk by use; without tokens if their number is not known."""
        planned = self.planned
        found = {
            "checkpoints": checkpoints_kept(planned.training, planned.all_steps)
            * costs.checkpoint_bytes(planned.student)
        }
        shapes = [shape for shape in (planned.teacher, planned.student) if shape]
        found["models"] = sum(4 * shape.parameters for shape in shapes)
        rows = {phase.seq_len: phase.train_rows for phase in planned.phases}
        known = [
            costs.tokens_bytes(count, length, planned.student.vocabulary) for length, count in rows.items() if count
        ]
        return found | ({"tokens": sum(known)} if known else {})


def forecast(planned: PlannedRun, cluster: Cluster) -> Forecast:
    """Forecast a run on a cluster."""
    written, best = planned.predict(cluster), planned.best(cluster)
    return Forecast(
        planned=planned,
        cluster=cluster,
        written=written,
        best=best,
        validation_seconds=sum(_validation_seconds(phase, cluster, written) for phase in planned.phases),
        refusals=tuple(_refusals(planned, cluster, written, best)),
        warnings=tuple(_warnings(planned, cluster, written)),
    )


def checkpoints_kept(training: Training, steps: int) -> int:
    """Most checkpoints on disk at once: the newest, the permanent ones, and the one being written."""
    placement = training.placement
    saved = -(-steps // placement.save_every)
    permanent = steps // placement.keep_every if placement.keep_every else 0
    return min(saved, placement.keep_checkpoints + permanent) + 1


def lacks_kernels(capability: tuple[int, int]) -> str | None:
    """Why the installed torch cannot use a GPU of this compute capability, or None."""
    built = torch.cuda.get_arch_list()
    if runs_on(capability, built):
        return None
    major, minor = capability
    has = f"it was built for {', '.join(built)}" if built else "it is built without CUDA"
    wanted = f"torch=={torch.__version__.partition('+')[0]}"
    where = f'"{wanted}+cu126" from {CARDS_ARE_BUILT_FOR}' if capability < (7, 5) else f"a CUDA build of {wanted}"
    return f"this torch ({torch.__version__}) has no kernels for sm_{major}{minor}: {has}; workers need {where}"


def runs_on(capability: tuple[int, int], built: list[str]) -> bool:
    """Whether code built for these architectures runs on a GPU of this capability.

    Machine code (``sm_80``) runs on the same major version from that minor version on; the driver compiles PTX
    (``compute_80``) for newer GPUs.
    """
    for name in built:
        kind, _, number = name.partition("_")
        digits = "".join(filter(str.isdigit, number))
        have = (int(digits[:-1]), int(digits[-1]))
        exact = not number.isdigit()  # sm_90a runs only on 9.0
        if kind == "sm" and (have == capability if exact else have[0] == capability[0] and have <= capability):
            return True
        if kind == "compute" and have <= capability:
            return True
    return False


def _validation_seconds(planned: PlannedRun, cluster: Cluster, step: Prediction) -> float:
    training = step_prediction.adapted(planned.training, cluster.device)
    teacher = planned.teacher if training.loss.needs_teacher else None
    operations = costs.validation_flops_per_token(teacher, planned.student, planned.seq_len)
    rate = step.layout.workers * step_prediction.flops_per_second(training, training.precision, cluster.device)
    times = max(1, -(-planned.steps // training.placement.validate_every))
    return times * training.validation_rows * planned.seq_len * operations / rate


def _refusals(planned: PlannedRun, cluster: Cluster, written: Prediction, best: Prediction) -> list[str]:
    training, device = planned.training, cluster.device
    table = f"{planned.prefix}placement"
    found = []
    if written.precision != training.precision:
        found.append(
            f'{device.name} has no {training.precision}: write {planned.prefix}precision = "{written.precision}" '
            "(planned with it)"
        )
    # Phases may have the same refusal; memory is checked once, because later micro-batches have no more tokens.
    refused = (text for phase in planned.phases for text in _refused_rows(phase, written.layout.workers))
    found += dict.fromkeys(refused)
    workers = training.placement.workers
    least = workers.min if isinstance(workers, WorkerRange) else 0 if workers == "auto" else workers
    if least > cluster.workers:
        found.append(f'{table}.workers asks for {least}, there are {cluster.workers}: write "auto" or fewer')
    if not written.fits:
        found.append(_does_not_fit(table, written, best))
    return found


def _refused_rows(phase: PlannedRun, workers: int) -> list[str]:
    """Refusals of a phase because of its rows."""
    training, student, found = phase.training, phase.student, []
    if training.rows_per_step % workers:
        near = max(1, round(training.rows_per_step / workers)) * workers
        found.append(
            f"rows_per_step {training.rows_per_step} does not divide by {workers} workers: write "
            f"{phase.prefix}rows_per_step = {near} (planned with it)"
        )
    if phase.seq_len > student.longest_row:
        found.append(
            f"rows of {phase.seq_len:,} tokens, but the model reads {student.longest_row}: write a shorter seq_len"
        )
    return found


def _does_not_fit(table: str, written: Prediction, best: Prediction) -> str:
    needs = f"does not fit: needs {memory_size(written.used_bytes)} of {memory_size(written.memory_bytes)}"
    if not best.fits:
        return (
            f"{needs}, and in the best layout {memory_size(best.used_bytes)}: take devices with more memory, or "
            "more of them, or a shorter seq_len"
        )
    layout = best.layout
    writes = [f"{table}.rows_per_device = {layout.micro_rows}"]
    if written.layout.zero_stage != layout.zero_stage:
        writes.append(f"{table}.zero_stage = {layout.zero_stage}")
    if written.layout.teacher != layout.teacher:
        writes.append(f'{table}.teacher = "{layout.teacher}"')
    return f"{needs}: write {', '.join(writes)} (planned with it)"


def _warnings(planned: PlannedRun, cluster: Cluster, written: Prediction) -> list[str]:
    training, device = planned.training, cluster.device
    found = []
    if device.kind == "gpu" and training.placement.device == "cpu":
        found.append(f'{planned.prefix}placement.device = "cpu" leaves the GPUs idle: write "auto"')
    if (idle := cluster.workers - written.layout.workers) > 0:
        found.append(f'{planned.prefix}placement.workers leaves {idle} of {cluster.workers} idle: write "auto"')
    if device.capability is not None and (lacking := lacks_kernels(device.capability)):
        found.append(lacking)
    half = next((name for name in ("bf16", "fp16") if name in device.peak_tflops), None)
    if written.precision == "fp32" and half and device.kind == "gpu":
        times = device.peak_tflops[half] / device.peak_tflops["fp32"]
        writes = f'{planned.prefix}precision = "{half}"'
        found.append(f"fp32 leaves most of a {device.name} unused: {writes} has {times:.0f}x the peak")
    if written.network_seconds > written.compute_seconds:
        found.append(
            f"network-bound: {written.network_seconds:.2f} s of every step go to the network, "
            f"{written.compute_seconds:.2f} s to computing; a faster network, fewer workers or more rows_per_step help"
        )
    elif device.kind == "gpu":
        bound = step_prediction.network_bound_above(
            training, planned.teacher, planned.student, planned.seq_len, cluster
        )
        if bound is not None:
            found.append(f"network-bound above {bound} {cluster.unit}s on {cluster.network}")
    return found


def scaled(planned: PlannedRun, cluster: Cluster, workers: int) -> Prediction:
    """The best step of the same run on another number of such devices, all of them used."""
    placement = planned.training.placement.model_copy(update={"workers": "auto"})
    training = planned.training.model_copy(update={"placement": placement})
    return replace(planned, training=training).best(cluster.of_workers(workers))
