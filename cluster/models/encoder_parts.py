"""Where the parts of an encoder are: its layers, and what a layer computes its queries, keys and values with."""

from collections.abc import Sequence
from typing import Any

PRODUCTS = ("queries", "keys", "values")


def layers(base: Any) -> Sequence[Any]:
    """The transformer layers of a base model, first to last."""
    found: Sequence[Any] = base.transformer.layer if hasattr(base, "transformer") else base.encoder.layer
    return found


def products(layer: Any) -> dict[str, Any]:
    """The modules of a layer that compute queries, keys and values, all heads side by side."""
    attention = layer.attention
    if hasattr(attention, "q_lin"):
        return dict(zip(PRODUCTS, (attention.q_lin, attention.k_lin, attention.v_lin), strict=True))
    return dict(zip(PRODUCTS, (attention.self.query, attention.self.key, attention.self.value), strict=True))


def uniform_pairs(student: int, teacher: int) -> tuple[tuple[int, int], ...]:
    """Pairs of layers, counted from 0, that spread the student's over the teacher's and pair the last ones.

    TinyBERT's map (Jiao et al. 2019, arXiv 1909.10351, section 4.2): (0, 1), (1, 3), (2, 5) for three of six.
    """
    return tuple((layer, max(0, round((layer + 1) * teacher / student) - 1)) for layer in range(student))
