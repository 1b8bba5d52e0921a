"""Standard errors and ranges of scores and of differences, and the word for a difference.

A score has two sources of chance. The examples of the development set are a sample: the error follows from their
number, by the values that each example contributes (:mod:`eval.tasks.per_example`), or for an accuracy without them
from the binomial distribution. Fine-tuning draws seeds: the error follows from their spread. Both add up in squares.
With one seed the second is not known: the error is that of the examples alone, and says so.

Two models on the same examples are compared example by example where both have their values: what is hard for both
cancels ("paired"). Otherwise the errors of both add up in squares, which is too large rather than too small
("unpaired"). A difference counts as if one more example had been won and one lost (Agresti and Caffo 2000, unpaired;
Bonett and Price 2012, paired), so that few examples on which two models agree do not prove them equal.

Ranges hold at 95 %: Wilson's interval for an accuracy, otherwise Student's t, whose degrees of freedom follow from the
numbers of seeds and examples (Welch and Satterthwaite).
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

from eval.results.schema import ScoreResult

Values: TypeAlias = npt.NDArray[np.float64]
Columns: TypeAlias = Mapping[str, Values]
"""What each development example contributes to a metric, in percent: ``score`` is the headline."""
Word: TypeAlias = Literal["better", "worse", "equal", "unclear"]

ALIKE_POINTS = 1.0
"""Points within which the whole range of a difference must lie for two scores to be equal."""
ALIKE_NATS = 0.01
"""The same for losses: 1 % of the perplexity."""
_QUANTILE = 0.975
_NORMAL = 1.959964


@dataclass(frozen=True)
class StandardError:
    """A standard error and its degrees of freedom."""

    size: float
    freedom: float = math.inf

    @property
    def reach(self) -> float:
        """Half of the range at 95 %."""
        return self.size * (_NORMAL if math.isinf(self.freedom) else float(stdtrit(self.freedom, _QUANTILE)))

    def times(self, factor: float) -> "StandardError":
        return StandardError(self.size * factor, self.freedom)


def together(errors: Iterable[StandardError]) -> StandardError:
    """The error of a sum of independent values."""
    known = [error for error in errors if error.size > 0]
    size = math.hypot(*(error.size for error in known))
    # Relative to the whole: squares of squares of small errors are 0.
    doubt = sum((error.size / size) ** 4 / error.freedom for error in known)
    return StandardError(size, 1 / doubt if doubt else math.inf)


@dataclass(frozen=True)
class Measured:
    """A score with the values of its examples; None without them."""

    score: ScoreResult
    examples: Columns | None

    def value(self, metric: str | None) -> float:
        return self.score.score if metric is None else self.score.metrics[metric].median

    def of_examples(self, metric: str | None) -> Values | None:
        return None if self.examples is None else self.examples.get(metric or "score")

    def is_share(self, metric: str | None) -> bool:
        """Whether the metric is a share of the examples."""
        return (metric or self.score.metric) in ("accuracy", "exact")

    def example_error(self, metric: str | None = None) -> StandardError | None:
        """Error of the score over samples of examples, in points; None where it is not known."""
        if (values := self.of_examples(metric)) is not None:
            return standard_error(values)
        if not self.is_share(metric):
            return None
        share = self.value(metric) / 100.0
        return StandardError(100.0 * math.sqrt(share * (1.0 - share) / self.score.dev_examples))

    def difference_error(self, metric: str | None) -> StandardError | None:
        """This score's part in the error of an unpaired difference: with one more example won, and one lost."""
        if (values := self.of_examples(metric)) is not None:
            return standard_error(np.append(values, [0.0, 100.0]))
        if not self.is_share(metric):
            return None
        count = self.score.dev_examples + 2
        share = (self.value(metric) / 100.0 * self.score.dev_examples + 1) / count
        return StandardError(100.0 * math.sqrt(share * (1.0 - share) / count))

    def seed_error(self, metric: str | None = None) -> StandardError | None:
        """Error of the median over seeds; None with one seed."""
        size = self.score.error(metric)
        return None if size is None else StandardError(size, len(self.score.seeds) - 1)

    def errors(self, metric: str | None = None) -> dict[str, Any]:
        """``error`` in points with its parts, the range at 95 %, and whether there is one seed."""
        of_examples, of_seeds = self.example_error(metric), self.seed_error(metric)
        error = _both(of_examples, of_seeds)
        low, high = self._range(metric, of_examples, of_seeds)
        return {
            "error": error and error.size,
            "error_examples": of_examples and of_examples.size,
            "error_seeds": of_seeds and of_seeds.size,
            "range_low": low,
            "range_high": high,
            "one_seed": len(self.score.seeds) == 1,
        }

    def _range(
        self, metric: str | None, of_examples: StandardError | None, of_seeds: StandardError | None
    ) -> tuple[float | None, float | None]:
        """The ranges of examples and seeds together: their distances from the score add up in squares."""
        value, around = self.value(metric), 0.0 if of_seeds is None else of_seeds.reach
        if self.is_share(metric):
            low, high = wilson(value, self.score.dev_examples)
        elif of_examples is not None:
            low, high = value - of_examples.reach, value + of_examples.reach
        else:
            return None, None
        low, high = value - math.hypot(value - low, around), value + math.hypot(high - value, around)
        return max(low, 0.0) if self.is_share(metric) else low, min(high, 100.0)


Pairs: TypeAlias = Sequence[tuple[Measured, Measured]]
"""A model and another one on every task."""


@dataclass(frozen=True)
class Difference:
    """One score minus another, in points, on the same examples; its range at 95 % from ``low`` to ``high``."""

    difference: float
    error: float | None
    low: float | None
    high: float | None
    pairing: Literal["paired", "unpaired"]
    one_seed: bool
    """Whether a model has one seed, whose spread is not in the error."""
    word: Word

    def resolved(self) -> dict[str, Any]:
        return asdict(self)


def standard_error(values: Values) -> StandardError | None:
    """Error of a mean; None of a single value."""
    count = len(values)
    return StandardError(float(values.std(ddof=1) / math.sqrt(count)), count - 1) if count > 1 else None


def wilson(percent: float, count: int) -> tuple[float, float]:
    """Wilson's interval of a share of ``count`` examples, in percent."""
    share, square = percent / 100.0, _NORMAL**2 / count
    middle = (share + square / 2) / (1 + square)
    half = math.sqrt(square * (share * (1 - share) + square / 4)) / (1 + square)
    # At 0 and 1 rounding would leave the interval beside the share.
    return min(100.0 * (middle - half), percent), max(100.0 * (middle + half), percent)


def judged(
    difference: float, error: StandardError | None, lower_is_better: bool = False, alike: float = ALIKE_POINTS
) -> dict[str, Any]:
    """``difference``, ``error``, the range from ``low`` to ``high``, and the ``word`` for it.

    ``better`` and ``worse`` if the range excludes 0, ``equal`` if it lies within ``alike`` of 0, else ``unclear``.
    """
    if error is None:
        return {"difference": difference, "error": None, "low": None, "high": None, "word": "unclear"}
    low, high = difference - error.reach, difference + error.reach
    word: Word = "unclear"
    if low > 0 or high < 0:
        word = "worse" if (low > 0) == lower_is_better else "better"
    elif max(-low, high) <= alike:
        word = "equal"
    return {"difference": difference, "error": error.size, "low": low, "high": high, "word": word}


def contrast(
    one: Measured, other: Measured, metric: str | None = None, share: float = 1.0
) -> tuple[float, StandardError | None, bool]:
    """``one`` minus a share of ``other`` on the same examples, its error, and whether examples are paired."""
    first, second = one.of_examples(metric), other.of_examples(metric)
    difference = one.value(metric) - share * other.value(metric)
    of_examples: StandardError | None
    if first is not None and second is not None and len(first) == len(second):
        paired, of_examples = True, standard_error(np.append(first - share * second, [100.0, -100.0]))
    else:
        paired = False
        errors = one.difference_error(metric), other.difference_error(metric)
        of_examples = None if errors[0] is None or errors[1] is None else together((errors[0], errors[1].times(share)))
    own, others = one.seed_error(metric), other.seed_error(metric)
    seeds = [error for error in (own, others and others.times(share)) if error is not None]
    return difference, _both(of_examples, together(seeds) if seeds else None), paired


def versus(one: Measured, other: Measured, metric: str | None = None) -> Difference:
    """``one`` minus ``other``, which must be on the same examples."""
    return mean_versus([(one, other)], metric)


def mean_versus(pairs: Pairs, metric: str | None = None, share: float = 1.0) -> Difference:
    """The mean over tasks of one model minus a share of that of another; each pair is on the same examples."""
    found = [contrast(one, other, metric, share) for one, other in pairs]
    errors = [error for _, error, _ in found if error is not None]
    error = together(errors).times(1 / len(found)) if len(errors) == len(found) else None
    judgement = judged(statistics.fmean(difference for difference, _, _ in found), error)
    if error is not None:
        judgement |= {"low": max(judgement["low"], -100.0), "high": min(judgement["high"], 100.0)}
    return Difference(
        pairing="paired" if all(paired for _, _, paired in found) else "unpaired",
        one_seed=any(1 in (len(one.score.seeds), len(other.score.seeds)) for one, other in pairs),
        **judgement,
    )


def share_range(pairs: Pairs, metric: str | None = None) -> tuple[float | None, float | None]:
    """Range at 95 % of the percentage that the first model of the pairs keeps of the other's mean score."""
    of = sum(other.value(metric) for _, other in pairs)
    kept = sum(one.value(metric) for one, _ in pairs) / of
    errors = [contrast(one, other, metric, kept)[1] for one, other in pairs]
    known = [error for error in errors if error is not None]
    if len(known) < len(errors):
        return None, None
    reach = 100 * together(known).reach / of
    return 100 * kept - reach, 100 * kept + reach


def _both(examples: StandardError | None, seeds: StandardError | None) -> StandardError | None:
    """Without the error over examples nothing is known; the error over seeds may be missing."""
    return examples if examples is None or seeds is None else together((examples, seeds))
