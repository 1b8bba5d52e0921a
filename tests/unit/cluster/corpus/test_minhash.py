"""Near-duplicates: datasketch's signatures, pairs found as often as the formula predicts, and exact groups."""

import random
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import paths
import pyarrow.parquet as pq
import pytest
from datasketch import MinHash

from cluster.artifacts.recipe import RecipeError
from cluster.corpus import word_ngrams
from cluster.corpus.minhash import NearDuplicates, bands, minhash, near_duplicates, signature

DATA = paths.DATA
U64 = npt.NDArray[np.uint64]
RECIPE = NearDuplicates()


def _columns(texts: list[str], recipe: NearDuplicates = RECIPE) -> U64:
    """``[bands, documents]``"""
    return np.stack([signature(text, recipe) for text in texts], axis=1)


def _shingles(text: str, length: int = 5) -> set[tuple[str, ...]]:
    words = text.split()
    return {tuple(words[start : start + length]) for start in range(len(words) - length + 1)}


def _similarity(one: str, other: str) -> float:
    first, second = _shingles(one), _shingles(other)
    return len(first & second) / len(first | second)


def _pairs(count: int, share: float, choice: random.Random) -> Iterator[tuple[str, str]]:
    """Texts of random words, and copies with other tails that share about this fraction of n-grams."""
    for _ in range(count):
        words = [f"w{choice.randrange(50_000)}" for _ in range(300)]
        kept = round(296 * 2 * share / (1 + share)) + 4
        tail = [f"w{choice.randrange(50_000)}" for _ in range(300 - kept)]
        yield " ".join(words), " ".join([*words[:kept], *tail])


def test_sketches_are_those_of_the_library() -> None:
    recipe = NearDuplicates(permutations=1000, seed=4)
    text = " ".join(f"word{number * number % 977}" for number in range(530))
    num_bands, num_rows = bands(recipe)
    reference = MinHash(num_perm=num_bands * num_rows, seed=4, hashfunc=int, scheme="affine32")
    for run in word_ngrams.ngrams(word_ngrams.words(text), recipe.words):
        reference.update(int(run) & 0xFFFFFFFF)
    assert minhash(text, recipe).tolist() == reference.hashvalues.tolist()


@pytest.mark.parametrize("similarity", [0.5, 0.7, 0.8, 0.9])
def test_pairs_are_found_as_often_as_the_formula_says(similarity: float) -> None:
    pairs = list(_pairs(250, similarity, random.Random(7)))
    num_bands, num_rows = bands(RECIPE)
    expected = [1 - (1 - _similarity(*pair) ** num_rows) ** num_bands for pair in pairs]
    found = [bool((signature(one, RECIPE) == signature(other, RECIPE)).any()) for one, other in pairs]
    spread = np.sqrt(sum(chance * (1 - chance) for chance in expected))
    assert abs(sum(found) - sum(expected)) <= 4 * spread + 1


def test_of_documents_around_the_threshold_the_near_ones_go_and_the_others_stay() -> None:
    choice = random.Random(3)
    near, far = list(_pairs(150, 0.95, choice)), list(_pairs(150, 0.55, choice))
    texts = [text for pair in near + far for text in pair]
    similar = np.array([_similarity(*pair) >= RECIPE.threshold for pair in near + far])
    marked = near_duplicates(_columns(texts), np.ones(len(texts), np.bool_))
    assert not marked[::2].any(), "the first of a pair must stay"
    found = marked[1::2]
    assert similar.sum() == 150
    assert (found & similar).sum() / similar.sum() >= 0.98
    assert (found & similar).sum() / found.sum() >= 0.97


def test_other_punctuation_case_and_line_breaks_make_no_other_document() -> None:
    texts = [
        "The still is charged, heated and run: slowly.",
        "the STILL is charged heated\nand run — slowly",
        "another text altogether",
    ]
    assert near_duplicates(_columns(texts), np.ones(3, np.bool_)).tolist() == [False, True, False]


def test_texts_without_words_are_like_their_equals_only() -> None:
    texts = ["...", "!!!", "", "...", "one two", "one two three"]
    marked = near_duplicates(_columns(texts), np.ones(len(texts), np.bool_))
    assert marked.tolist() == [False, False, False, True, False, False]


def _naive(columns: U64, eligible: npt.NDArray[np.bool_]) -> list[bool]:
    """Groups by searching from every document, then all but the first of each."""
    seen: set[int] = set()
    marked = [False] * len(eligible)
    for start in np.flatnonzero(eligible).tolist():
        waiting = [start]
        while waiting:
            here = waiting.pop()
            if here in seen:
                continue
            seen.add(here)
            marked[here] = here != start
            waiting += np.flatnonzero((columns == columns[:, here, None]).any(axis=0) & eligible).tolist()
    return marked


@pytest.mark.parametrize("seed", range(8))
def test_groups_are_those_of_a_search_whatever_the_order_of_bands(seed: int) -> None:
    choice = np.random.default_rng(seed)
    few = choice.integers(0, 2**64, 150, dtype=np.uint64)
    columns = choice.choice(few, (3, 200))
    eligible = choice.random(200) < 0.8
    expected = _naive(columns, eligible)
    assert 0 < sum(expected) < eligible.sum() - 1, "the test needs more than one group"
    assert near_duplicates(columns, eligible).tolist() == expected
    assert near_duplicates(reversed(columns), eligible).tolist() == expected


def test_a_chain_is_one_group_however_long() -> None:
    """Links 0-1, 2-3, … in one band and 1-2, 3-4, … in the other: a path as long as the corpus."""
    length = 1_000_000
    columns = [(np.arange(length, dtype=np.uint64) + np.uint64(shift)) // np.uint64(2) for shift in (0, 1)]
    marked = near_duplicates(columns, np.ones(length, np.bool_))
    assert not marked[0]
    assert marked[1:].all()


def test_documents_that_are_out_connect_nothing() -> None:
    columns = [np.array([1, 1, 2], np.uint64), np.array([3, 4, 4], np.uint64)]
    assert near_duplicates(columns, np.array([True, True, True])).tolist() == [False, True, True]
    assert near_duplicates(columns, np.array([True, False, True])).tolist() == [False, False, False]
    assert near_duplicates(columns, np.zeros(3, np.bool_)).tolist() == [False, False, False]
    assert near_duplicates([np.empty(0, np.uint64)], np.empty(0, np.bool_)).tolist() == []


def test_signatures_are_the_same_in_every_process_and_version() -> None:
    found = signature("What a piece of an interrupted corpus says must still be true after it.", RECIPE)
    assert bands(RECIPE) == (9, 13)
    assert [f"{int(number):016x}" for number in found[:2]] == ["ca34d35f877c2c23", "e55f88057d6c5677"]
    assert (found != signature("What a piece of an interrupted corpus says", RECIPE)).all()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"permutations": 4, "threshold": 0.99}, "4 permutations are too few for two bands"),
        ({"threshold": 1.0}, "threshold"),
        ({"shingle": 5}, "unknown key shingle"),
    ],
)
def test_impossible_recipes_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        NearDuplicates.of(values)


@pytest.mark.real_data
@pytest.mark.skipif(not DATA.is_dir(), reason="no ../shared/data next to the checkout")
def test_edited_articles_go_and_all_others_stay() -> None:
    table = pq.read_table(DATA / "corpus" / "wikipedia_en-00000-of-00008.parquet", columns=["text"])
    articles = table.column("text").to_pylist()[:200]
    choice = random.Random(5)
    edited = [" ".join(word for word in article.split() if choice.random() > 0.005) for article in articles[:60]]
    texts = [*articles, *edited]
    marked = near_duplicates(_columns(texts), np.ones(len(texts), np.bool_))
    assert not marked[:200].any()
    assert marked[200:].mean() >= 0.95
