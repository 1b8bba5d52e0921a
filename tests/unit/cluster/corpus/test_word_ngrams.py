"""Words and n-grams as numbers: equal for equal words, whatever the punctuation between them."""

import random
import re
import string

import numpy as np
import pytest

from cluster.corpus import word_ngrams

I64 = np.int64


def _naive_runs(text: str, length: int) -> list[tuple[str, ...]]:
    words = re.findall(r"[^\W_]+", text.lower())
    return [tuple(words[start : start + length]) for start in range(len(words) - length + 1)]


def _text(num_words: int, seed: int) -> str:
    choice = random.Random(seed)
    letters = string.ascii_letters + "éÄß漢𠮷٣"
    words = ("".join(choice.choices(letters, k=choice.randint(1, 9))) for _ in range(num_words))
    return "".join(word + choice.choice([" ", ", ", "\n", "-", "…", "_", "\u00a0", " — "]) for word in words)


@pytest.mark.parametrize("length", [1, 2, 5, 8, 13])
def test_equal_numbers_are_equal_runs_of_words_and_nothing_else(length: int) -> None:
    text = _text(400, seed=1) + " " + _text(300, seed=1).upper().replace("SS", "ß")
    runs = _naive_runs(text, length)
    numbers = word_ngrams.ngrams(word_ngrams.words(text), length).tolist()
    assert len(numbers) == len(runs)
    assert len(set(runs)) < len(runs), "the text needs a repeated n-gram"
    assert len(set(zip(runs, numbers, strict=True))) == len(set(runs)) == len(set(numbers))


def test_runs_of_other_lengths_or_orders_have_other_numbers() -> None:
    found = word_ngrams.words("a a b b")
    pairs, singles = word_ngrams.ngrams(found, 2).tolist(), word_ngrams.ngrams(found, 1).tolist()
    assert len({*pairs, *singles}) == 5
    assert word_ngrams.ngrams(word_ngrams.words("b a"), 2)[0] != word_ngrams.ngrams(word_ngrams.words("a b"), 2)[0]


@pytest.mark.parametrize("text", ["It's U.S. GDP-growth.", "it 's u.s . gdp - growth", "(IT) S\n«u» s\tGDP… growth"])
def test_case_and_punctuation_do_not_count(text: str) -> None:
    assert word_ngrams.words(text).tolist() == word_ngrams.words("it s u s gdp growth").tolist()


def test_a_text_of_many_parts_has_the_words_of_its_pieces() -> None:
    pieces = [_text(3000, seed) for seed in range(6)]
    together = word_ngrams.words("".join(pieces))
    assert len("".join(pieces)) > 2 * 2**15, "the text needs more than one part"
    apart = np.concatenate([word_ngrams.words(piece) for piece in pieces])
    assert together.tolist() == apart.tolist()
    lines = "one line of words\n" * 4000
    assert len(np.unique(word_ngrams.words(lines))) == 4


@pytest.mark.parametrize(
    ("text", "count"), [("", 0), (" \n…!", 0), ("x" * 100_000, 4), ("a\ud800b 😀", 2), ("हिन्दी में", 2)]
)
def test_texts_at_the_edge(text: str, count: int) -> None:
    found = word_ngrams.words(text)
    assert len(found) == count
    assert len(word_ngrams.ngrams(found, 13)) == 0


def test_runs_at_places_are_those_of_all_runs() -> None:
    found = word_ngrams.words(_text(100, seed=3))
    starts = np.array([0, 7, 50, 87, 88, 99], I64)
    everywhere = word_ngrams.ngrams(found, 13)
    assert word_ngrams.ngrams_at(found, starts, 13).tolist() == everywhere[[0, 7, 50, 87]].tolist()


def test_numbers_never_change() -> None:
    """Interrupted corpora store these numbers: another version of the code must compute the same ones."""
    found = word_ngrams.words("Numbers of words, for ever: ünïcode 漢字 😀")
    assert [f"{int(number):016x}" for number in word_ngrams.ngrams(found, 8)] == ["13b46ba6f4ec6fd7"]
