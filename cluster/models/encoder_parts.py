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
