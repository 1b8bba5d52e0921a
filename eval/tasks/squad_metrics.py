"""Exact match and F1 of answers, as SQuAD's two official evaluation programs define them.

Version 1.1 takes the best over the reference answers of a question. In version 2.0 the right prediction for a question
without an answer is none; the model predicts none where its logit exceeds that of the best span by more than a
threshold: 0 here, and additionally the best threshold for this development set.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class AnswerPrediction:
    """A model's answer to one question."""

    best: str
    """Text of the best span; empty without one."""
    null_difference: float
    """Logit of no answer minus that of ``best``."""
    gold: tuple[str, ...]
    """Reference answers; empty for a question without an answer."""


def normalized(text: str) -> str:
    """Lower case, no punctuation, no articles, single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact(prediction: str, gold: str) -> float:
    return float(normalized(prediction) == normalized(gold))


def f1(prediction: str, gold: str) -> float:
    """F1 of the common words; 0 where either has no words, as in version 1.1."""
    ours, theirs = normalized(prediction).split(), normalized(gold).split()
    shared = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * shared / (len(ours) + len(theirs)) if shared else 0.0


MEASURES = (("exact", exact), ("f1", f1))
Floats: TypeAlias = npt.NDArray[np.float64]


def scores_always(predictions: Sequence[AnswerPrediction]) -> dict[str, float]:
    """``exact`` and ``f1`` in percent where every question has an answer (version 1.1)."""
    return {name: float(np.mean(values)) for name, values in values_always(predictions).items()}


def values_always(predictions: Sequence[AnswerPrediction]) -> dict[str, Floats]:
    """``exact`` and ``f1`` of every question, in percent (version 1.1)."""
    return {
        name: 100.0 * np.array([max(measure(each.best, gold) for gold in each.gold) for each in predictions])
        for name, measure in MEASURES
    }


def scores_sometimes(predictions: Sequence[AnswerPrediction], threshold: float = 0.0) -> dict[str, float]:
    """All metrics of version 2.0 in percent; best thresholds in logits."""
    differences = np.array([each.null_difference for each in predictions])
    has_answer = np.array([bool(each.gold) for each in predictions])
    found: dict[str, float] = {}
    for name, measure in MEASURES:
        right = np.array([_right(each, measure) for each in predictions])
        values = np.where(differences <= threshold, right, ~has_answer)
        found[name] = 100.0 * float(values.mean())
        for part, chosen in (("answerable", has_answer), ("unanswerable", ~has_answer)):
            if chosen.any():
                found[f"{part}_{name}"] = 100.0 * float(values[chosen].mean())
        found[f"best_{name}"], found[f"best_{name}_threshold"] = _best(right, has_answer, differences)
    return found


def values_sometimes(predictions: Sequence[AnswerPrediction], threshold: float = 0.0) -> dict[str, Floats]:
    """``exact`` and ``f1`` of every question, in percent (version 2.0)."""
    answers = np.array([each.null_difference <= threshold for each in predictions])
    none = np.array([not each.gold for each in predictions])
    right = {name: np.array([_right(each, measure) for each in predictions]) for name, measure in MEASURES}
    return {name: 100.0 * np.where(answers, values, none) for name, values in right.items()}


def _right(each: AnswerPrediction, measure: Callable[[str, str], float]) -> float:
    """Score of the best answer; reference answers without words do not count, as in version 2.0."""
    gold = [text for text in each.gold if normalized(text)]
    return max(measure(each.best, text) for text in gold) if gold else float(not normalized(each.best))


def _best(
    right: npt.NDArray[np.float64], has_answer: npt.NDArray[np.bool_], differences: npt.NDArray[np.float64]
) -> tuple[float, float]:
    """Highest score in percent over all thresholds, and its threshold; 0.0 where no answer at all is best."""
    order = np.argsort(differences, kind="stable")
    # Start with no answers, then admit them one by one, the most certain first.
    sums = np.cumsum(right[order] - ~has_answer[order]) + (~has_answer).sum()
    best = int(np.argmax(sums))
    if sums[best] <= (~has_answer).sum():
        return 100.0 * float((~has_answer).mean()), 0.0
    return 100.0 * float(sums[best]) / len(right), float(differences[order[best]])
