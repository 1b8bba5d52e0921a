"""Which layers of student and teacher a loss compares, and what each model therefore computes.

Layers count from 0.
"""

from dataclasses import dataclass

from cluster.models import encoder_parts
from distill.config import Loss
from distill.modeling.masked_lm import ModelError, Taps
from distill.modeling.model_shape import ModelShape

_PRODUCTS = {"queries": ("queries",), "keys": ("keys",), "values": ("values",), "attention": ("queries", "keys")}


@dataclass(frozen=True)
class ComparedLayers:
    """The pairs of layers of the hidden loss, and the layers and heads of the relation loss."""

    pairs: tuple[tuple[int, int], ...]
    """Layers of student and teacher whose hidden states the hidden loss compares."""
    relations: tuple[tuple[str, str], ...]
    """Products whose relation to each other the relation loss compares: ``("keys", "keys")``."""
    student_layer: int
    teacher_layer: int
    heads: int

    def of_student(self, head: bool) -> Taps:
        """What the student returns. It runs every layer, as its users will."""
        layers = tuple(student for student, _ in self.pairs)
        return Taps(layers, self.student_layer if self.relations else None, self._products, None, head)

    def of_teacher(self, loss: Loss) -> Taps:
        """What the teacher returns for these terms: no layer runs above the last one that a term needs."""
        layers = tuple(teacher for _, teacher in self.pairs)
        depth = None if loss.soft or loss.cosine else max((layer + 1 for layer in layers), default=0)
        relation = self.teacher_layer if self.relations else None
        if depth is not None and relation is not None:
            depth = max(depth, relation)
        return Taps(layers, relation, self._products, depth, loss.soft > 0)

    @property
    def terms(self) -> list[str]:
        """The terms of the loss that compare layers."""
        return [*(["hidden"] if self.pairs else []), *(["relation"] if self.relations else [])]

    @property
    def _products(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(product for pair in self.relations for product in pair))


def compared(loss: Loss, student: ModelShape, teacher: ModelShape) -> ComparedLayers:
    """The layers that ``loss`` compares; terms without weight compare none.

    Raises:
        ModelError: a layer that a model does not have, unlike widths, or heads that do not divide a width.
    """
    pairs = _pairs(loss, student, teacher) if loss.hidden else ()
    layer = teacher.layers - 1 if loss.relation_layer is None else loss.relation_layer
    heads = loss.relation_heads or teacher.heads
    relations: tuple[tuple[str, str], ...] = ()
    if loss.relation:
        relations = tuple((_PRODUCTS[kind][0], _PRODUCTS[kind][-1]) for kind in loss.relations)
        if layer >= teacher.layers:
            raise ModelError(
                f"loss.relation_layer {layer} does not fit a teacher of {teacher.layers} layers: write 0 to "
                f"{teacher.layers - 1}"
            )
        for model, width in (("teacher", teacher.hidden), ("student", student.hidden)):
            if width % heads:
                raise ModelError(
                    f"loss.relation_heads {heads} does not divide the {model}'s width of {width}: write "
                    f"{_nearest_divisor(heads, teacher.hidden, student.hidden)}"
                )
    return ComparedLayers(pairs, relations, student.layers - 1, layer, heads)


def _pairs(loss: Loss, student: ModelShape, teacher: ModelShape) -> tuple[tuple[int, int], ...]:
    if student.hidden != teacher.hidden:
        raise ModelError(
            f"loss.hidden compares hidden states of one width, and the student has {student.hidden}, the teacher "
            f"{teacher.hidden}: write loss.hidden = 0 and give loss.relation a weight, which compares any widths"
        )
    if loss.hidden_layers == "uniform":
        return encoder_parts.uniform_pairs(student.layers, teacher.layers)
    for pair in loss.hidden_layers:
        for model, layer, layers in zip(("student", "teacher"), pair, (student.layers, teacher.layers), strict=True):
            if layer >= layers:
                example = [list(found) for found in encoder_parts.uniform_pairs(student.layers, teacher.layers)]
                raise ModelError(
                    f"loss.hidden_layers has the pair {list(pair)}, and the {model}'s layers are 0 to {layers - 1}: "
                    f"write [student, teacher] pairs, for example {example}"
                )
    return loss.hidden_layers


def _nearest_divisor(heads: int, *widths: int) -> int:
    shared = [count for count in range(1, min(widths) + 1) if not any(width % count for width in widths)]
    return min(shared, key=lambda count: abs(count - heads))
