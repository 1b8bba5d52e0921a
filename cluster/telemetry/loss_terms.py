"""Names of the terms of a training loss, in recipes, metrics and reports."""

LOSS_TERMS = ("soft", "masked", "cosine", "hidden", "relation")
"""The weights of :class:`distill.config.Loss`."""
