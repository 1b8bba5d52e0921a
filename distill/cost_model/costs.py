"""Costs of a training step: floating-point operations, bytes of memory, and bytes on the network.

Formulas over model shapes; ``step_prediction`` turns the counts into seconds. A multiply-add is two operations.
"""

from dataclasses import replace

from cluster.models.precision import Precision
from distill.config import BUCKET_VALUES, Loss, Training
from distill.modeling.compared_layers import compared
from distill.modeling.model_shape import ModelShape

VALUE_BYTES: dict[Precision, int] = {"fp32": 4, "bf16": 2, "fp16": 2}

# Bytes per logit of the naive head: logits of both models and a gradient in half precision, fp32 copies,
# log-probabilities and probabilities.
_NAIVE_LOGIT_BYTES = 24
# fp32 temporaries of the fused head, as fused_head.chunk_positions counts them.
_TEMPORARIES = 4
_BACKWARD = 2  # a backward pass has two matrix products for each of the forward pass


def layers_flops(shape: ModelShape, seq_len: int) -> float:
    """Forward operations of all layers per token: projections, feed-forward, and attention over ``seq_len``."""
    projections = 4 * shape.hidden**2 + 2 * shape.hidden * shape.feed_forward
    attention = 2 * seq_len * shape.hidden
    return 2.0 * shape.layers * (projections + attention)


def head_flops(shape: ModelShape) -> float:
    """Forward operations of the masked-word head per position: a dense layer, then the vocabulary."""
    return 2.0 * (shape.hidden**2 + shape.hidden * shape.vocabulary)


def head_share(training: Training, seq_len: int) -> float:
    """Share of positions with logits: the masked words, and the others of the soft loss; none without a head."""
    if not training.loss.needs_head:
        return 0.0
    labels = training.loss.labels(training.masking, seq_len)
    return (labels + training.loss.other_positions(seq_len - labels)) / seq_len


def teacher_flops(teacher: ModelShape, student: ModelShape, seq_len: int, share: float, loss: Loss) -> float:
    """Operations of the teacher per token: forward only, up to the last layer and without a head that no term needs."""
    head = head_flops(teacher) * share if loss.soft > 0 else 0.0
    taps = compared(loss, student, teacher).of_teacher(loss)
    if taps.depth is None:
        return layers_flops(teacher, seq_len) + head
    products = 2.0 * len(taps.products) * teacher.hidden**2 if taps.relation == taps.depth else 0.0
    return layers_flops(replace(teacher, layers=taps.depth), seq_len) + products


def student_flops(student: ModelShape, seq_len: int, share: float) -> float:
    """Operations of the student per token, forward and backward."""
    return (1 + _BACKWARD) * (layers_flops(student, seq_len) + head_flops(student) * share)


def relation_flops(teacher: ModelShape, student: ModelShape, seq_len: int, loss: Loss) -> float:
    """Operations of the relations per token: of the teacher forward, of the student forward and backward."""
    if not loss.relation:
        return 0.0
    return 2.0 * len(loss.relations) * seq_len * (teacher.hidden + (1 + _BACKWARD) * student.hidden)


def step_flops_per_token(training: Training, teacher: ModelShape | None, student: ModelShape, seq_len: int) -> float:
    """Operations of a training step per token, teacher included."""
    share, loss = head_share(training, seq_len), training.loss
    found = student_flops(student, seq_len, share)
    if teacher is not None and loss.needs_teacher:
        found += teacher_flops(teacher, student, seq_len, share, loss) + relation_flops(teacher, student, seq_len, loss)
    return found


def validation_flops_per_token(teacher: ModelShape | None, student: ModelShape, seq_len: int) -> float:
    """Operations of a validation per token: both models forward, with logits at every position."""
    return sum(layers_flops(shape, seq_len) + head_flops(shape) for shape in (teacher, student) if shape)


def layer_loss_bytes_per_token(teacher: ModelShape, student: ModelShape, precision: Precision, loss: Loss) -> float:
    """Bytes per token of the losses between layers: what both models return, and gradients of what the student does."""
    layers = compared(loss, student, teacher)
    of_teacher = len(layers.pairs) + len(layers.of_teacher(loss).products)
    gradients = len(layers.pairs) + sum(1 if left == right else 2 for left, right in layers.relations)
    return float(VALUE_BYTES[precision] * (of_teacher * teacher.hidden + gradients * student.hidden))


def activation_bytes_per_token(student: ModelShape, precision: Precision) -> float:
    """Bytes per token that the forward pass keeps for the backward pass.

    A layer keeps its input, queries, keys, values, the inputs of attention and both LayerNorms (8 x hidden), and the
    feed-forward values before and after the activation (2 x feed_forward). Outside the layers there are the embedding
    sum, the last hidden states of student and teacher, and three values of the head's dense layer (6 x hidden).
    """
    layer = 8 * student.hidden + 2 * student.feed_forward
    return float(VALUE_BYTES[precision] * (student.layers * layer + 6 * student.hidden))


def teacher_activation_bytes_per_token(teacher: ModelShape, precision: Precision) -> float:
    """Bytes per token of one teacher layer: its input, and feed-forward values before and after the activation."""
    return float(VALUE_BYTES[precision] * (teacher.hidden + 2 * teacher.feed_forward))


def head_bytes(training: Training, student: ModelShape, positions: int, chunk: int, kind: str) -> int:
    """Logits and their temporaries: of all positions (naive), or of a chunk, with the weight's gradient (fused).

    On a CPU (``kind``) the fused head has temporaries for a few positions only, which stay in the cache. A loss without
    a head takes none.
    """
    if positions == 0:
        return 0
    if training.placement.head == "naive":
        return positions * student.vocabulary * _NAIVE_LOGIT_BYTES
    temporaries = 0 if kind == "cpu" else _TEMPORARIES * VALUE_BYTES["fp32"]
    per_position = student.vocabulary * (2 * VALUE_BYTES[training.precision] + temporaries)
    # The fp32 gradient of the projection: the sum, and the part of a chunk.
    gradient = 2 * VALUE_BYTES["fp32"] * student.vocabulary * student.hidden
    return min(positions, chunk) * per_position + gradient


def projection_bytes(shape: ModelShape, precision: Precision) -> int:
    """The vocabulary projection, of which a worker has a replica even for a sharded teacher."""
    return VALUE_BYTES[precision] * shape.vocabulary * (shape.hidden + 1)


def weight_bytes(shape: ModelShape, precision: Precision, sharded_over: int = 1) -> int:
    return VALUE_BYTES[precision] * shape.parameters // sharded_over


def gradient_bytes(student: ModelShape, precision: Precision, zero_stage: int, workers: int, micros: int) -> int:
    """Gradients of a backward pass, their fp32 sum over half-precision micro-batches, and the reduced partition.

    The first two are whole under every stage, because gradients are reduced once a step.
    """
    summed = 4 if VALUE_BYTES[precision] < 4 and micros > 1 else 0
    reduced = 4 * student.parameters // workers if zero_stage >= 1 else 0
    return (VALUE_BYTES[precision] + summed) * student.parameters + reduced


def accumulation_bytes(student: ModelShape, precision: Precision, micros: int) -> float:
    """Bytes that a step reads and writes to sum the gradients of micro-batches in fp32."""
    return float(micros * (VALUE_BYTES[precision] + 8) * student.parameters) if micros > 1 else 0.0


def optimizer_bytes(student: ModelShape, precision: Precision, zero_stage: int, workers: int) -> int:
    """Two moments, and fp32 weights where the model's own are in half precision or DeepSpeed partitions them."""
    copies = 2 if precision == "fp32" and zero_stage == 0 else 3
    return copies * 4 * student.parameters // (workers if zero_stage >= 1 else 1)


def bucket_bytes(student: ModelShape, precision: Precision, workers: int) -> int:
    """Buffers for reducing gradients and gathering weights."""
    if workers == 1:
        return 0
    return 2 * VALUE_BYTES[precision] * min(BUCKET_VALUES, student.parameters)


def checkpoint_bytes(student: ModelShape) -> int:
    """Whole fp32 weights and two moments."""
    return 3 * 4 * student.parameters


def tokens_bytes(rows: int, seq_len: int, vocabulary: int) -> int:
    return rows * seq_len * (2 if vocabulary <= 2**16 else 4)


def network_bytes(student: ModelShape, precision: Precision, zero_stage: int, workers: int, micros: int) -> float:
    """Bytes that one worker sends in an optimizer step, with ring algorithms (Patarasuk and Yuan 2009).

    A step reduces gradients once: (n-1)/n of them to scatter the sums, and as much again to gather the sums (stage 0)
    or the new weights (1, 2). Stage 3 gathers weights in every forward and backward pass instead.
    """
    gradients = weights = float(VALUE_BYTES[precision] * student.parameters)
    gathers = 2 * micros if zero_stage == 3 else 1
    return (workers - 1) / workers * (gradients + gathers * weights)
