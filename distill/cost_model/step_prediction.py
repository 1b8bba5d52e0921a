"""Predicts the seconds and memory of a training step on given machines, and the best layout.

A step on n workers, each with m micro-batches::

    step = operations / (n * peak * share) + m * overhead + update + network

    network = bytes a worker sends, by ring, / the slowest link of the ring
    update  = bytes a worker reads and writes, to add up gradients and to move weights, / its memory bandwidth

Counts come from ``distill.cost_model.costs``, speeds from ``distill.cost_model.hardware``.
"""

from dataclasses import dataclass, replace

from cluster.models.precision import Precision
from distill.config import Training, WorkerRange
from distill.cost_model import costs
from distill.cost_model.hardware import Cluster, Device, HardwareError
from distill.modeling.fused_head import chunk_positions
from distill.modeling.model_shape import ModelShape

TEACHERS = ("replica", "sharded", "offloaded")
WORTHWHILE = 0.02
"""A larger micro-batch or a higher stage must save this share of a step to be preferred."""

_ROOM = 0.94
"""Usable share of the memory; fragmentation takes the rest."""
_FALLBACKS: dict[Precision, tuple[Precision, ...]] = {
    "bf16": ("bf16", "fp16", "fp32"),
    "fp16": ("fp16", "bf16", "fp32"),
    "fp32": ("fp32",),
}
_MOST_WORKERS = 4096


@dataclass(frozen=True)
class Layout:
    """The part of a placement that changes time and memory."""

    workers: int
    micro_rows: int
    zero_stage: int
    teacher: str = "replica"


@dataclass(frozen=True)
class Prediction:
    """Prediction of an optimizer step: seconds of the whole step, bytes of one worker."""

    layout: Layout
    precision: Precision
    tokens: int
    """Tokens of a step, over all workers."""
    micros: int
    """Micro-batches of a worker in a step."""
    flops: float
    """Operations of a step, over all workers."""
    compute_seconds: float
    overhead_seconds: float
    update_seconds: float
    network_seconds: float
    network_bytes: float
    """Bytes that one worker sends in a step."""
    memory: dict[str, int]
    """Bytes on the device, by use."""
    memory_bytes: int
    """Memory of the device."""

    @property
    def step_seconds(self) -> float:
        return self.compute_seconds + self.overhead_seconds + self.update_seconds + self.network_seconds

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.step_seconds

    @property
    def used_bytes(self) -> int:
        return sum(self.memory.values())

    @property
    def fits(self) -> bool:
        return self.used_bytes <= _ROOM * self.memory_bytes


def predict(
    training: Training,
    teacher: ModelShape | None,
    student: ModelShape,
    seq_len: int,
    cluster: Cluster,
    layout: Layout | None = None,
) -> Prediction:
    """Predict a step on ``cluster``, with the recipe's placement or in another ``layout``.

    ``teacher`` is None for a run without one. The nearest precision that the device has replaces one that it lacks; the
    result names it.
    """
    training = adapted(training, cluster.device)
    if layout is None:
        layout = as_written(training, teacher, student, seq_len, cluster)
    device, precision = cluster.device, training.precision
    used = teacher if training.loss.needs_teacher else None
    micros = _micros(training, layout)
    tokens = layout.workers * micros * layout.micro_rows * seq_len
    flops = tokens * costs.step_flops_per_token(training, used, student, seq_len)
    sent = _network_bytes(used, student, precision, layout, micros)
    offloaded = used is not None and layout.teacher == "offloaded"
    copied = micros * costs.weight_bytes(used, precision, layout.workers) if used and offloaded else 0
    moved = _update_bytes(student, precision, layout) + costs.accumulation_bytes(student, precision, micros)
    return Prediction(
        layout=layout,
        precision=precision,
        tokens=tokens,
        micros=micros,
        flops=flops,
        compute_seconds=flops / layout.workers / flops_per_second(training, precision, device),
        overhead_seconds=micros * device.overhead_seconds + copied / (device.host_gb_per_second * 1e9),
        update_seconds=moved / (device.memory_gb_per_second * 1e9),
        network_seconds=sent / (cluster.gb_per_second * 1e9),
        network_bytes=sent,
        memory=_memory(training, used, student, layout, seq_len, device),
        memory_bytes=device.memory_bytes,
    )


def as_written(
    training: Training, teacher: ModelShape | None, student: ModelShape, seq_len: int, cluster: Cluster
) -> Layout:
    """The layout of the recipe's placement on this cluster, with the best size for ``rows_per_device = "auto"``."""
    training = adapted(training, cluster.device)
    placement = training.placement
    workers = planned_workers(training, cluster)
    rows = max(1, round(training.rows_per_step / workers))
    stage = placement.zero_stage
    if placement.rows_per_device == "auto":
        given = Layout(workers, 1, stage, placement.teacher)
        sizes = [replace(given, micro_rows=size) for size in divisors(rows)]
        return _preferred([predict(training, teacher, student, seq_len, cluster, size) for size in sizes]).layout
    micro_rows = max(size for size in divisors(rows) if size <= max(1, placement.rows_per_device))
    return Layout(workers, micro_rows, stage, placement.teacher)


def best(
    training: Training, teacher: ModelShape | None, student: ModelShape, seq_len: int, cluster: Cluster
) -> Prediction:
    """The prediction with the best layout: the simplest among the fastest that fit.

    The teacher is a replica if that fits, else sharded, else offloaded. The recipe's own layout wins unless another is
    faster by more than ``WORTHWHILE``. If nothing fits, the layout that needs the least memory.
    """
    training = adapted(training, cluster.device)
    workers = planned_workers(training, cluster)
    sizes = divisors(max(1, round(training.rows_per_step / workers)))
    tried: list[Prediction] = []
    for placed in TEACHERS:
        layouts = [Layout(workers, size, stage, placed) for stage in stages(training.precision) for size in sizes]
        found = [predict(training, teacher, student, seq_len, cluster, layout) for layout in layouts]
        if any(prediction.fits for prediction in found):
            chosen = _preferred(found)
            written = predict(training, teacher, student, seq_len, cluster)
            good = written.fits and written.step_seconds <= (1 + WORTHWHILE) * chosen.step_seconds
            return written if good else chosen
        tried += found
    return _preferred(tried)


def _preferred(found: list[Prediction]) -> Prediction:
    fitting = [prediction for prediction in found if prediction.fits]
    if not fitting:
        return min(found, key=lambda prediction: prediction.used_bytes)
    limit = (1 + WORTHWHILE) * min(prediction.step_seconds for prediction in fitting)
    fast = [prediction for prediction in fitting if prediction.step_seconds <= limit]
    # ZeRO-1 sends as much as plain averaging and saves memory; higher stages only where they are needed.
    return min(fast, key=lambda prediction: (abs(prediction.layout.zero_stage - 1), prediction.layout.micro_rows))


def stages(precision: Precision) -> tuple[int, ...]:
    """ZeRO stages that train in this precision."""
    return (0, 1, 2, 3) if precision == "fp32" else (1, 2, 3)


def divisors(rows: int) -> list[int]:
    """Possible rows of a micro-batch, rising: divisors of a worker's rows of a step."""
    return [size for size in range(1, rows + 1) if rows % size == 0]


def planned_workers(training: Training, cluster: Cluster) -> int:
    """Workers that the recipe's placement uses on this cluster."""
    workers = training.placement.workers
    if isinstance(workers, WorkerRange):
        counts = training.worker_counts()
        return max((count for count in counts if count <= cluster.workers), default=counts[0])
    return cluster.workers if workers == "auto" else min(workers, cluster.workers)


def adapted(training: Training, device: Device) -> Training:
    """The same run in a precision that the device has: the recipe's, or the nearest.

    Raises:
        HardwareError: the device's description has no suitable precision.
    """
    for precision in _FALLBACKS[training.precision]:
        if precision in device.peak_tflops and precision in device.efficiency:
            return training if precision == training.precision else training.model_copy(update={"precision": precision})
    raise HardwareError(f"the description of {device.name} gives no peak and share for {training.precision}: add them")


def flops_per_second(training: Training, precision: Precision, device: Device) -> float:
    """Operations per second of one worker in training."""
    cores = training.placement.threads if device.kind == "cpu" else 1
    return cores * device.peak_tflops[precision] * 1e12 * device.efficiency[precision]


def network_bound_above(
    training: Training, teacher: ModelShape | None, student: ModelShape, seq_len: int, cluster: Cluster
) -> int | None:
    """Number of workers above which the network takes longer than computing; None if a step has too few rows for it.

    It comes from the formula, for nodes like this cluster's.
    """
    given = predict(training, teacher, student, seq_len, cluster)
    computing = given.compute_seconds * given.layout.workers
    # Only full nodes: with several, the network between them is the slowest link.
    per_node = cluster.of_workers(_MOST_WORKERS).devices_per_node
    for workers in range(per_node * 2, min(_MOST_WORKERS, training.rows_per_step) + 1, per_node):
        layout = replace(given.layout, workers=workers, micro_rows=1)
        micros = max(1, training.rows_per_step // workers // given.layout.micro_rows)
        used = teacher if training.loss.needs_teacher else None
        sent = _network_bytes(used, student, given.precision, layout, micros)
        if sent / (cluster.of_workers(workers).gb_per_second * 1e9) > computing / workers:
            return workers - per_node
    return None


def _micros(training: Training, layout: Layout) -> int:
    """Micro-batches of a worker in a step; the rows of the step are rounded to divide by the workers."""
    return -(-max(1, round(training.rows_per_step / layout.workers)) // layout.micro_rows)


def _network_bytes(
    teacher: ModelShape | None, student: ModelShape, precision: Precision, layout: Layout, micros: int
) -> float:
    workers = layout.workers
    sent = costs.network_bytes(student, precision, layout.zero_stage, workers, micros)
    if teacher is not None and layout.teacher != "replica":
        sent += micros * (workers - 1) / workers * costs.weight_bytes(teacher, precision)
    return sent


def _update_bytes(student: ModelShape, precision: Precision, layout: Layout) -> float:
    """Bytes of an AdamW step: fp32 weights and moments both ways, gradients and the model's weights once."""
    shared = layout.workers if layout.zero_stage >= 1 else 1
    state = costs.optimizer_bytes(student, precision, layout.zero_stage, layout.workers)
    return 2.0 * state + (4 + costs.VALUE_BYTES[precision]) * student.parameters / shared


def _memory(
    training: Training, teacher: ModelShape | None, student: ModelShape, layout: Layout, seq_len: int, device: Device
) -> dict[str, int]:
    workers, stage, precision = layout.workers, layout.zero_stage, training.precision
    micros = _micros(training, layout)
    tokens = layout.micro_rows * seq_len
    positions = round(tokens * costs.head_share(training, seq_len))
    activations = tokens * costs.activation_bytes_per_token(student, precision)
    held = 0
    if teacher is not None:
        held = _teacher_bytes(teacher, precision, layout)
        activations += tokens * costs.teacher_activation_bytes_per_token(teacher, precision)
        activations += tokens * costs.layer_loss_bytes_per_token(teacher, student, precision, training.loss)
    kind = "cuda" if device.kind == "gpu" else "cpu"
    chunk = chunk_positions(student.vocabulary, costs.VALUE_BYTES[precision], device.memory_bytes, kind)
    return {
        "weights": costs.weight_bytes(student, precision, workers if stage == 3 else 1),
        "gradients": costs.gradient_bytes(student, precision, stage, workers, micros),
        "optimizer state": costs.optimizer_bytes(student, precision, stage, workers),
        "teacher": held,
        "activations": round(activations),
        "vocabulary head": costs.head_bytes(training, student, positions, chunk, device.kind),
        "buckets and reserve": costs.bucket_bytes(student, precision, workers) + int(device.reserved_gib * 2**30),
    }


def _teacher_bytes(teacher: ModelShape, precision: Precision, layout: Layout) -> int:
    """Bytes on the device: a whole replica, or else the worker's partition, one gathered layer and the projection."""
    whole = costs.weight_bytes(teacher, precision)
    if layout.teacher == "replica":
        return whole
    held = whole // layout.workers if layout.teacher == "sharded" else 0
    return held + whole // teacher.layers + costs.projection_bytes(teacher, precision)
