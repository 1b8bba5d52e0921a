"""Students compared on the same held-out rows: the difference of loss and accuracy on hidden words, paired by row.

The error is that of the rows, taken as independent. It does not know how another training of the student would end.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from eval.results import model_rows
from eval.results.schema import STUDENT
from eval.results.uncertainty import ALIKE_NATS, StandardError, Values, judged

UNTRAINED = (model_rows.UNTRAINED, model_rows.RANDOM_UNTRAINED)


@dataclass(frozen=True)
class HeldOutRows:
    """A student's last validation, row by row; ``identity`` is that of the rows and masks."""

    identity: str
    hidden: Values
    """Hidden words of each row."""
    hits: Values
    """Those that the student guesses."""
    nats: Values
    """Sum of their losses."""


def heldout(models: Mapping[str, Any], reference: str | None = None) -> dict[str, Any]:
    """The main student minus every other one, on the same held-out rows; then so the ``reference`` of a sweep.

    ``models`` are those of the results.
    """
    own = models[STUDENT].heldout if STUDENT in models else None
    named = dict.fromkeys((STUDENT, reference or STUDENT))
    names = [name for name in named if name in models and models[name].heldout is not None]
    comparisons = [
        _compared(name, models[name], other, model)
        for name in names
        for other, model in models.items()
        if other not in names and model.heldout is not None
    ]
    return {
        "student": None if own is None else STUDENT,
        "rows": None if own is None else len(own.hidden),
        "words": None if own is None else int(own.hidden.sum()),
        "comparisons": comparisons,
    }


def _compared(student: str, of: Any, name: str, model: Any) -> dict[str, Any]:
    found = model_rows.kind(name, model.facts)
    own, other = of.heldout, model.heldout
    row = {
        "student": student,
        "model": name,
        "kind": found,
        "title": model_rows.title(name, found),
        # A difference of two trainings is only that of their recipes where both saw as many tokens.
        "same_tokens": None if found in UNTRAINED else of.facts.get("tokens") == model.facts.get("tokens"),
        "loss": None,
        "accuracy": None,
        "reason": None,
    }
    if not own.hidden.sum():
        return {**row, "reason": "no hidden words"}
    if own.identity != other.identity:
        reason = "validated on other rows or masks: train both with the same tokens, seed, masking and validation_rows"
        return {**row, "reason": reason}
    differences = own.nats - other.nats
    loss = judged(
        _mean(differences, own.hidden), _error(differences, own.hidden), lower_is_better=True, alike=ALIKE_NATS
    )
    won = 100.0 * (own.hits - other.hits)
    # As if one more word had been won and one lost: few words on which both are right do not prove them equal.
    words, more = np.append(own.hidden, [1.0, 1.0]), np.append(won, [100.0, -100.0])
    return {**row, "loss": loss, "accuracy": judged(_mean(won, own.hidden), _error(more, words))}


def _mean(differences: Values, words: Values) -> float:
    """Difference per hidden word."""
    return float(differences.sum()) / float(words.sum())


def _error(differences: Values, words: Values) -> StandardError | None:
    """Error of the difference per hidden word over rows: that of a ratio of two sums. None of a single row."""
    count, total = len(words), float(words.sum())
    if count < 2:
        return None
    rest = differences - _mean(differences, words) * words
    return StandardError(math.sqrt(count / (count - 1) * float(np.square(rest).sum())) / total, count - 1)
