"""Exact match and F1 of answers, as SQuAD's two official evaluation programs define them.

Version 1.1: the best over the given answers of every question. Version 2.0: a question without an answer is answered
rightly by saying nothing, and nothing is said where the model finds no answer more likely than its best one by more
than a threshold: 0 here, and beside it the threshold that would have been best on this very set.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class Answered:
    """What a model says to one question."""

    best: str
    """Its best answer that is not nothing; empty where it has none."""
    null_difference: float
    """By how much nothing is more likely than ``best``, in logits."""
    gold: tuple[str, ...]
    """The given answers; empty where the question has none."""


def normalised(text: str) -> str:
    """Lower case, without punctuation and articles, single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact(prediction: str, gold: str) -> float:
    return float(normalised(prediction) == normalised(gold))


def f1(prediction: str, gold: str) -> float:
    """Of the words both have: 0 where either has none left, as in version 1.1."""
    ours, theirs = normalised(prediction).split(), normalised(gold).split()
    shared = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * shared / (len(ours) + len(theirs)) if shared else 0.0


def scores_always(answered: Sequence[Answered]) -> dict[str, float]:
    """``exact`` and ``f1`` in percent where every question has an answer (version 1.1)."""
    found = {
        "exact": [max(exact(each.best, gold) for gold in each.gold) for each in answered],
        "f1": [max(f1(each.best, gold) for gold in each.gold) for each in answered],
    }
    return {name: 100.0 * float(np.mean(values)) for name, values in found.items()}


def scores_sometimes(answered: Sequence[Answered], threshold: float = 0.0) -> dict[str, float]:
    """All numbers of version 2.0, in percent; the thresholds that would have been best are in logits."""
    differences = np.array([each.null_difference for each in answered])
    has_answer = np.array([bool(each.gold) for each in answered])
    found: dict[str, float] = {}
    for name, measure in (("exact", exact), ("f1", f1)):
        right = np.array([_right(each, measure) for each in answered])
        # Saying nothing is right where there is nothing to say.
        values = np.where(differences <= threshold, right, ~has_answer)
        found[name] = 100.0 * float(values.mean())
        for part, chosen in (("answerable", has_answer), ("unanswerable", ~has_answer)):
            if chosen.any():
                found[f"{part}_{name}"] = 100.0 * float(values[chosen].mean())
        found[f"best_{name}"], found[f"best_{name}_threshold"] = _best(right, has_answer, differences)
    return found


def _right(each: Answered, measure: Callable[[str, str], float]) -> float:
    """What the best answer is worth. Given answers of which nothing is left do not count, as in version 2.0."""
    gold = [text for text in each.gold if normalised(text)]
    return max(measure(each.best, text) for text in gold) if gold else float(not normalised(each.best))


def _best(
    right: npt.NDArray[np.float64], has_answer: npt.NDArray[np.bool_], differences: npt.NDArray[np.float64]
) -> tuple[float, float]:
    """Highest score, in percent, that a threshold can give, and the threshold; 0.0 where saying nothing is best."""
    order = np.argsort(differences, kind="stable")
    # From nothing said at all, answer after answer is let through, the surest first.
    sums = np.cumsum(right[order] - ~has_answer[order]) + (~has_answer).sum()
    best = int(np.argmax(sums))
    if sums[best] <= (~has_answer).sum():
        return 100.0 * float((~has_answer).mean()), 0.0
    return 100.0 * float(sums[best]) / len(right), float(differences[order[best]])
