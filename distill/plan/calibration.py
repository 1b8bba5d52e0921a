"""Measures this machine as a device for plans: its peak in matrix products, and the share a training step reaches.

It takes some seconds: it times two layers of each model with the real losses, and extrapolates to all layers.
"""

import time
from collections.abc import Callable
from dataclasses import replace

import torch
from transformers import BertConfig, BertForMaskedLM, RobertaConfig, RobertaForMaskedLM

from cluster.models.precision import Precision, dtype_of
from cluster.telemetry import host_memory
from cluster.telemetry.progress import say
from distill.config import Loss, Student, Training
from distill.cost_model import costs
from distill.cost_model.hardware import Device
from distill.data.batches import Batch
from distill.engine.deepspeed_engine import compile_layers
from distill.engine.process_group import check_device, gpu_memory
from distill.modeling import student
from distill.modeling.compared_layers import compared
from distill.modeling.fused_head import chunk_positions
from distill.modeling.masked_lm import MaskedLM, Outputs, Taps, choose_attention
from distill.modeling.model_shape import ModelShape
from distill.train.student_objective import HeadSettings, StudentObjective

_LAYERS = 2
_REPEATS = 5
_TOKENS = {"cpu": 1024, "cuda": 16_384}
"""Most tokens of the timed micro-batch."""
_SIDE = {"cpu": 2048, "cuda": 8192}
"""Side of the square matrices whose product gives the peak."""
_ADAM_VALUES = {"cpu": 8_000_000, "cuda": 100_000_000}
_LINK_GB_PER_SECOND = {"cpu": 1.0, "cuda": 100.0}


def measure(
    training: Training, teacher: ModelShape | None, model: ModelShape, seq_len: int, workers: int = 1
) -> Device:
    """The device of one worker, when ``workers`` share this machine. Its efficiency is that of this training.

    Raises:
        PrecisionError: this device lacks the recipe's precision.
    """
    device = torch.device("cuda" if torch.cuda.is_available() and training.placement.device == "auto" else "cpu")
    check_device(training.precision, device)
    torch.set_num_threads(training.placement.threads)
    cores = training.placement.threads if device.type == "cpu" else 1
    say("1 of 3: matrix products")
    peak = _peak(training.precision, device)
    say("2 of 3: a training step")
    sample = _Sample(training, teacher, model, seq_len, device)
    # The overhead is the time of a micro-batch with next to nothing to compute.
    overhead = sample.seconds(rows=1, seq_len=16) if device.type == "cuda" else 0.0
    share = sample.flops / (sample.seconds(sample.rows, seq_len) - overhead) / peak
    memory, reserved = _memory(device)
    say("3 of 3: the bandwidth of memory")
    return Device(
        name="here",
        kind="gpu" if device.type == "cuda" else "cpu",
        memory_gib=memory / (1 if device.type == "cuda" else workers) / 2**30,
        capability=torch.cuda.get_device_capability(device) if device.type == "cuda" else None,
        peak_tflops={training.precision: peak / cores / 1e12},
        efficiency={training.precision: share},
        efficiency_source=f"measured here, {training.precision}, {sample.tokens:,} tokens",
        memory_gb_per_second=_adam_bytes_per_second(device) / 1e9,
        link_gb_per_second=_LINK_GB_PER_SECOND[device.type],
        overhead_seconds=overhead,
        reserved_gib=reserved / 2**30,
    )


class _Sample:
    """A few layers of teacher and student with the whole head, and a micro-batch of random words."""

    def __init__(
        self, training: Training, teacher: ModelShape | None, model: ModelShape, seq_len: int, device: torch.device
    ) -> None:
        self._training, self._device, self._seq_len = training, device, seq_len
        self._teacher_shape = teacher if training.loss.needs_teacher else None
        self._shape = model
        # The few layers are other ones than the recipe may name.
        self._loss = training.loss.model_copy(update={"hidden_layers": "uniform", "relation_layer": None})
        most = training.placement.rows_per_device
        rows = max(1, _TOKENS[device.type] // seq_len)
        self.rows = rows if most == "auto" else min(rows, most)
        self.tokens = self.rows * seq_len
        self._taps = Taps()
        self._objective, self._teacher = self._models()

    @property
    def flops(self) -> float:
        """Operations of a micro-batch, all layers."""
        training = self._training
        return self.tokens * costs.step_flops_per_token(training, self._teacher_shape, self._shape, self._seq_len)

    def seconds(self, rows: int, seq_len: int) -> float:
        """Seconds of a micro-batch, with the time of the few layers extrapolated to all, which are alike."""
        batch = self._batch(rows, seq_len)
        teacher_seconds, targets = 0.0, None
        if (teacher := self._teacher) is not None and self._teacher_shape is not None:
            with torch.no_grad():
                targets = teacher(batch.input_ids, batch.positions, self._taps)
                teacher_seconds = _seconds(lambda: teacher(batch.input_ids, batch.positions, self._taps), self._device)
            teacher_seconds *= self._teacher_flops(self._teacher_shape, self._shape, self._training.loss)
            teacher_seconds /= self._teacher_flops(_few(self._teacher_shape), _few(self._shape), self._loss)
        student_seconds = _seconds(lambda: self._train(batch, targets), self._device)
        layers = min(student_seconds, _seconds(lambda: self._train_layers(batch), self._device))
        return teacher_seconds + layers * self._shape.layers / _few(self._shape).layers + student_seconds - layers

    def _teacher_flops(self, teacher: ModelShape, student: ModelShape, loss: Loss) -> float:
        """Operations of the teacher's layers per token."""
        return costs.teacher_flops(teacher, student, self._seq_len, 0.0, loss)

    def _train(self, batch: Batch, targets: Outputs | None) -> None:
        projection = self._teacher.projection if self._teacher else None
        self._objective(batch, targets, projection).losses.total.backward()

    def _train_layers(self, batch: Batch) -> None:
        """Train without the losses."""
        taps = Taps(head=self._loss.needs_head)
        outputs = MaskedLM.forward(self._objective, batch.input_ids, batch.positions, taps)
        (outputs.hidden.sum() + outputs.features.sum()).backward()

    def _models(self) -> tuple[StudentObjective, MaskedLM | None]:
        training, device, few = self._training, self._device, _few(self._shape)
        trained = _model(few)
        teacher = layers = None
        if self._teacher_shape is not None:
            source = _model(_few(self._teacher_shape))
            taken = Student(start="random", layers="first", depth=few.layers)
            trained = student.make(source, taken, seed=0)
            teacher = MaskedLM(source).eval().requires_grad_(False).to(device, dtype_of(training.precision))
            layers = compared(self._loss, few, _few(self._teacher_shape))
            self._taps = layers.of_teacher(self._loss)
            if layers.relations:
                teacher.watch(layers.teacher_layer)
        for model in (trained, *([teacher.model] if teacher else [])):
            choose_attention(model, device.type, self._seq_len)
        compiled = training.placement.compiles(device.type)
        bytes_per_logit = costs.VALUE_BYTES[training.precision]
        chunk = chunk_positions(few.vocabulary, bytes_per_logit, _memory(device)[0], device.type)
        settings = HeadSettings(training.placement.head, chunk, compiled)
        objective = StudentObjective(trained, self._loss, settings, layers).eval()
        if layers is not None and layers.relations:
            objective.watch(layers.student_layer)
        objective.to(device, dtype_of(training.precision))
        if compiled:
            compile_layers(objective)
            if teacher is not None:
                compile_layers(teacher)
        return objective, teacher

    def _batch(self, rows: int, seq_len: int) -> Batch:
        count = self._training.loss.labels(self._training.masking, seq_len)
        others = self._training.loss.other_positions(seq_len - count)
        words = torch.randint(self._shape.vocabulary, (rows, seq_len), device=self._device)
        starts = torch.arange(rows, device=self._device)[:, None] * seq_len
        labelled = (starts + torch.arange(count, device=self._device)).reshape(-1)
        rest = (starts + torch.arange(count, count + others, device=self._device)).reshape(-1)
        return Batch(words, torch.cat([labelled, rest]), words.reshape(-1)[labelled])


def _few(shape: ModelShape) -> ModelShape:
    return replace(shape, layers=min(_LAYERS, shape.layers))


def _model(shape: ModelShape) -> BertForMaskedLM | RobertaForMaskedLM:
    """A model of this shape with random weights."""
    kind, config = (RobertaForMaskedLM, RobertaConfig) if shape.family == "roberta" else (BertForMaskedLM, BertConfig)
    return kind(
        config(
            vocab_size=shape.vocabulary,
            hidden_size=shape.hidden,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            intermediate_size=shape.feed_forward,
            max_position_embeddings=shape.positions,
        )
    )


def _peak(precision: Precision, device: torch.device) -> float:
    """Operations per second of large matrix products, the best of several."""
    side = _SIDE[device.type]
    left, right = (torch.randn(side, side, device=device).to(dtype_of(precision)) for _ in range(2))
    return 2 * side**3 / _seconds(lambda: left @ right, device)


def _adam_bytes_per_second(device: torch.device) -> float:
    """Bandwidth of an AdamW step: weights, two moments and gradients, 28 bytes a value."""
    weights = torch.zeros(_ADAM_VALUES[device.type], device=device, requires_grad=True)
    weights.grad = torch.ones_like(weights)
    optimizer = torch.optim.AdamW([weights], fused=True)
    return 28 * weights.numel() / _seconds(optimizer.step, device)


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of a call: the fastest of several after a warm-up, because other load only slows a call."""
    taken = []
    for _ in range(1 + _REPEATS):
        _wait(device)
        started = time.perf_counter()
        work()
        _wait(device)
        taken.append(time.perf_counter() - started)
    return min(taken[1:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _memory(device: torch.device) -> tuple[int, int]:
    """Memory of the device in bytes, and the part in use before training."""
    if device.type == "cuda":
        return gpu_memory(device)
    return host_memory.total(), host_memory.resident()
