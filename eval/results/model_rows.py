"""What a student is compared for, known by how it was trained: its start, its losses and its steps.

Names are for people; a row has one meaning whatever its student is called.
"""

from collections.abc import Mapping
from typing import Any

from eval.results.schema import TEACHER

DISTILLED, UNTRAINED, MASKED_ONLY = "distilled", "untrained", "masked-only"
RANDOM_START, NO_TEACHER, RANDOM_UNTRAINED = "random-start", "no-teacher", "random-untrained"
REPRESENTATION = "representation"
NO_SOFT, NO_COSINE, NO_MASKED = "no-soft", "no-cosine", "no-masked"

TITLES: Mapping[str, str] = {
    TEACHER: "teacher",
    DISTILLED: "distilled",
    REPRESENTATION: "distilled by hidden states and relations",
    UNTRAINED: "the teacher's layers, untrained",
    MASKED_ONLY: "the teacher's layers, masked words only",
    RANDOM_START: "random start",
    NO_TEACHER: "random start, no teacher",
    RANDOM_UNTRAINED: "random weights, untrained",
    NO_SOFT: "without soft targets",
    NO_COSINE: "without cosine loss",
    NO_MASKED: "without masked-word loss",
}
"""Kind of a row to its label."""
WITHOUT_DISTILLATION = (UNTRAINED, MASKED_ONLY, NO_TEACHER, RANDOM_UNTRAINED)
"""Rows that a student must beat to show that its teacher taught it something."""


def kind(name: str, facts: Mapping[str, Any]) -> str | None:
    """The kind of a row, a key of :data:`TITLES`; None where how it was trained is not known or has no label."""
    if name == TEACHER:
        return TEACHER
    start, loss, steps = facts.get("start"), facts.get("loss"), facts.get("steps")
    if start is None or loss is None or steps is None:
        return None
    taken = start == "teacher"
    if steps == 0:
        return UNTRAINED if taken else RANDOM_UNTRAINED
    if loss["hidden"] or loss["relation"]:
        return REPRESENTATION if taken and not loss["soft"] else None
    absent = tuple(term for term in ("soft", "masked", "cosine") if not loss[term])
    if absent == ("soft", "cosine"):
        return MASKED_ONLY if taken else NO_TEACHER
    if not taken:
        return RANDOM_START if not absent else None
    return {(): DISTILLED, ("soft",): NO_SOFT, ("cosine",): NO_COSINE, ("masked",): NO_MASKED}.get(absent)


def title(name: str, found: str | None) -> str:
    """Label of a row; its name where its kind is not known."""
    return name if found is None else TITLES[found]
