"""Standard errors of scores and of differences, and what may be said about a difference.

A score has two sources of chance. The examples of the development set are a sample: the error follows from their
number, by the values that each example contributes (:mod:`eval.tasks.per_example`), or for an accuracy without them
from the binomial distribution. Fine-tuning draws seeds: the error follows from their spread. Both add up in squares.
With one seed the second is not known: the error is that of the examples alone, and says so.

Two models on the same examples are compared example by example where both have their values: what is hard for both
cancels ("paired"). Otherwise the errors of both add up in squares, which is too large rather than too small
("unpaired").
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from eval.results.schema import ScoreResult

Values: TypeAlias = npt.NDArray[np.float64]
Columns: TypeAlias = Mapping[str, Values]
"""What each development example contributes to a metric, in percent: ``score`` is the headline."""
Word: TypeAlias = Literal["better", "worse", "equal"]

SURE = 2.0
"""Standard errors beyond which a difference is no chance (about 95 %)."""


@dataclass(frozen=True)
class Measured:
    """A score with the values of its examples; None without them."""

    score: ScoreResult
    examples: Columns | None

    def value(self, metric: str | None) -> float:
        return self.score.score if metric is None else self.score.metrics[metric].median

    def of_examples(self, metric: str | None) -> Values | None:
        return None if self.examples is None else self.examples.get(metric or "score")

    def example_error(self, metric: str | None = None) -> float | None:
        """Standard error of the score over samples of examples, in points; None where it is not known."""
        if (values := self.of_examples(metric)) is not None:
            return standard_error(values)
        if (metric or self.score.metric) not in ("accuracy", "exact"):
            return None
        share = self.value(metric) / 100.0
        return 100.0 * math.sqrt(share * (1.0 - share) / self.score.dev_examples)

    def errors(self, metric: str | None = None) -> dict[str, Any]:
        """``error`` in points, its parts ``error_examples`` and ``error_seeds``, and whether there is one seed."""
        parts = self.example_error(metric), self.score.error(metric)
        return {
            "error": _together(parts[0], parts[1]),
            "error_examples": parts[0],
            "error_seeds": parts[1],
            "one_seed": len(self.score.seeds) == 1,
        }


@dataclass(frozen=True)
class Difference:
    """One score minus another, in points, on the same examples."""

    difference: float
    error: float | None
    pairing: Literal["paired", "unpaired"]
    one_seed: bool
    """Whether a model has one seed, whose spread is not in the error."""
    word: Word | None

    def resolved(self) -> dict[str, Any]:
        return asdict(self)


def standard_error(values: Values) -> float | None:
    """Standard error of a mean; None of a single value."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None


def judged(difference: float, error: float | None, lower_is_better: bool = False) -> Word | None:
    """``equal`` within twice the standard error; None where that is not known."""
    if error is None:
        return None
    if abs(difference) <= SURE * error:
        return "equal"
    return "worse" if (difference > 0) == lower_is_better else "better"


def versus(one: Measured, other: Measured, metric: str | None = None) -> Difference:
    """``one`` minus ``other``, which must be on the same examples."""
    first, second = one.of_examples(metric), other.of_examples(metric)
    paired = first is not None and second is not None and len(first) == len(second)
    if paired:
        assert first is not None
        assert second is not None
        examples = standard_error(first - second)
    else:
        errors = one.example_error(metric), other.example_error(metric)
        examples = None if None in errors else math.hypot(*(error or 0.0 for error in errors))
    seeds = [error for error in (one.score.error(metric), other.score.error(metric)) if error is not None]
    error = _together(examples, math.hypot(*seeds) if seeds else None)
    difference = one.value(metric) - other.value(metric)
    one_seed = 1 in (len(one.score.seeds), len(other.score.seeds))
    return Difference(difference, error, "paired" if paired else "unpaired", one_seed, judged(difference, error))


def _together(examples: float | None, seeds: float | None) -> float | None:
    """Without the error over examples nothing is known; the error over seeds may be missing."""
    return None if examples is None else math.hypot(examples, seeds or 0.0)
