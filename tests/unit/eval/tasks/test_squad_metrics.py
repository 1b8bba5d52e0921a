"""SQuAD's scores against worked examples, and against a copy of the official program."""

import random
import re
import string
from collections import Counter

import pytest

from eval.tasks.squad_metrics import AnswerPrediction, exact, f1, normalized, scores_always, scores_sometimes


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("The  Quick, brown fox!", "quick brown fox"),
        ("an apple a day", "apple day"),
        ("Theatre", "theatre"),
        ("24–10", "24–10"),
        ("U.S.", "us"),
        (".", ""),
    ],
)
def test_normalization_by_hand(text: str, said: str) -> None:
    assert normalized(text) == said


def test_exact_and_f1_by_hand() -> None:
    assert exact("the Broncos.", "Broncos") == 1.0
    assert exact("Denver Broncos", "Broncos") == 0.0
    # precision 1/2, recall 1
    assert f1("Denver Broncos", "the Broncos") == pytest.approx(2 / 3)
    assert f1("to be or not to be", "to to be") == pytest.approx(2 * 3 / (6 + 3))
    assert f1("", "Broncos") == f1(".", ".") == 0.0


def test_the_best_given_answer_counts() -> None:
    found = scores_always(
        [AnswerPrediction("gold", 0.0, ("old gold", "gold", "bread")), AnswerPrediction("river", 0.0, ("the spring",))]
    )
    assert found == {"exact": 50.0, "f1": 50.0}


def answered(count: int, seed: int) -> list[AnswerPrediction]:
    chance = random.Random(seed)
    words = ["gold", "the", "river", "a", "old", ".", "mill"]
    found = []
    for _ in range(count):
        gold = tuple(" ".join(chance.choices(words, k=2)) for _ in range(chance.choice([0, 1, 3])))
        best = gold[0] if gold and chance.random() < 0.4 else " ".join(chance.choices(words, k=2))
        found.append(AnswerPrediction(best, round(chance.gauss(0.0, 3.0), 3), gold))
    return found


def test_no_answer_is_judged_as_the_official_program_does() -> None:
    """After evaluate-v2.0.py (Rajpurkar et al. 2018), with its own names."""

    def normalize_answer(s: str) -> str:
        s = "".join(ch for ch in s.lower() if ch not in set(string.punctuation))
        return " ".join(re.sub(re.compile(r"\b(a|an|the)\b", re.UNICODE), " ", s).split())

    def compute_f1(a_gold: str, a_pred: str) -> float:
        gold_toks, pred_toks = normalize_answer(a_gold).split(), normalize_answer(a_pred).split()
        num_same = sum((Counter(gold_toks) & Counter(pred_toks)).values())
        if len(gold_toks) == 0 or len(pred_toks) == 0:
            return float(gold_toks == pred_toks)
        if num_same == 0:
            return 0.0
        precision, recall = num_same / len(pred_toks), num_same / len(gold_toks)
        return (2 * precision * recall) / (precision + recall)

    for seed in range(20):
        asked = answered(60, seed)
        scores = {"exact": [], "f1": []}  # type: ignore[var-annotated]
        for each in asked:
            gold = [text for text in each.gold if normalize_answer(text)] or [""]
            scores["exact"].append(max(float(normalize_answer(g) == normalize_answer(each.best)) for g in gold))
            scores["f1"].append(max(compute_f1(g, each.best) for g in gold))
        found = scores_sometimes(asked)
        for name, raw in scores.items():
            final = [s if e.null_difference <= 0.0 else float(not e.gold) for s, e in zip(raw, asked, strict=True)]
            assert found[name] == pytest.approx(100.0 * sum(final) / len(final))
            for part, chosen in (("answerable", True), ("unanswerable", False)):
                of_part = [s for s, e in zip(final, asked, strict=True) if bool(e.gold) is chosen]
                assert found[f"{part}_{name}"] == pytest.approx(100.0 * sum(of_part) / len(of_part))
            # The best threshold, found by trying all.
            tried = [
                sum(s if e.null_difference <= t else float(not e.gold) for s, e in zip(raw, asked, strict=True))
                for t in [-1e9, *(e.null_difference for e in asked)]
            ]
            assert found[f"best_{name}"] == pytest.approx(100.0 * max(tried) / len(asked))


def test_the_best_threshold_gives_the_best_score() -> None:
    asked = answered(200, seed=99)
    found = scores_sometimes(asked)
    for name in ("exact", "f1"):
        assert found[f"best_{name}"] >= found[name]
        again = scores_sometimes(asked, threshold=found[f"best_{name}_threshold"])
        assert again[name] == pytest.approx(found[f"best_{name}"])


def test_silence_is_best_where_no_answer_is_right() -> None:
    found = scores_sometimes([AnswerPrediction("gold", -1.0, ()), AnswerPrediction("gold", -2.0, ("river",))])
    assert (found["exact"], found["best_exact"], found["best_exact_threshold"]) == (0.0, 50.0, 0.0)
