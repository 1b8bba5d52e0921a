"""The word-order task made from a corpus: half swapped, split by document, no sentence twice, beyond word counts."""

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from cluster.artifacts import artifact, errors, stage
from eval.tasks.definitions import TASKS
from eval.tasks.examples import from_folder
from eval.tasks.word_order import LABELS, STAGE, WordOrder, sentences, swappable

WORDS = ("amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heath", "inlet", "jetty", "knoll", "ledge")


def corpus(folder: Path, documents: Sequence[str]) -> Path:
    """A corpus artifact of one shard."""
    with artifact.create(folder, kind="corpus", inputs={}, recipe={}) as draft:
        columns = {
            "source": pa.array(["docs"] * len(documents)).dictionary_encode(),
            "text": pa.array(documents, pa.large_string()),
        }
        pq.write_table(pa.table(columns), draft.path / "documents-00000.parquet")
    return folder


def drawn(count: int) -> list[str]:
    """Documents of four sentences; the second word of each names the document."""
    chance = random.Random(1)
    found = []
    for number in range(count):
        name = "".join("qxzjk"[int(digit) % 5] + "aeiou"[int(digit) // 5] for digit in str(number))
        body = [" ".join(chance.choices(WORDS, k=chance.randint(7, 12))) for _ in range(4)]
        found.append(" ".join(f"The {name} {text} ends." for text in body))
    return found


def make(documents: Sequence[str], folder: Path, **values: Any) -> Path:
    made = corpus(folder / "corpus", documents)
    recipe = WordOrder.of({"train_examples": 120, "dev_examples": 40, **values})
    stage.execute(STAGE, recipe, {"corpus": made}, folder / "out")
    return folder / "out"


def rows(folder: Path, split: str) -> list[dict[str, Any]]:
    return list(pq.read_table(folder / f"{split}.parquet").to_pylist())


def test_half_of_each_file_is_swapped_and_the_rest_stands_in_the_corpus(tmp_path: Path) -> None:
    documents = drawn(100)
    made = make(documents, tmp_path)
    for split, count in (("train", 120), ("dev", 40)):
        found = rows(made, split)
        assert Counter(row["label"] for row in found) == {0: count // 2, 1: count // 2}
        for row in found:
            assert any(row["sentence"] in text for text in documents) == (row["label"] == 0)
    assert from_folder(TASKS["word_order"], made).task.label_names == LABELS


def test_a_swapped_sentence_differs_in_two_neighbours(tmp_path: Path) -> None:
    documents = drawn(100)
    originals = {
        tuple(sorted(text.split())): text.split() for text in (s for d in documents for s in sentences(d, 8, 24))
    }
    swapped = [row["sentence"].split() for row in rows(make(documents, tmp_path), "dev") if row["label"]]
    for words in swapped:
        original = originals[tuple(sorted(words))]
        places = [place for place, word in enumerate(words) if word != original[place]]
        assert len(places) == 2
        assert places[1] == places[0] + 1
        assert 0 < places[0] < len(words) - 2


def test_no_document_has_sentences_in_both_files_and_none_occurs_twice(tmp_path: Path) -> None:
    twice = drawn(80)
    made = make([*twice, *twice], tmp_path)  # as a corpus never is
    names = {split: Counter(row["sentence"].split()[1] for row in rows(made, split)) for split in ("train", "dev")}
    found = [tuple(sorted(row["sentence"].split())) for split in ("train", "dev") for row in rows(made, split)]
    assert len(found) == len(set(found)) == 160
    # A swap may move the name of a document; the others tell.
    both = {name for name in names["train"] & names["dev"] if name not in WORDS}
    assert not both


def test_a_bag_of_words_is_at_chance(tmp_path: Path) -> None:
    made = make(drawn(400), tmp_path, train_examples=800, dev_examples=400)
    train, dev = rows(made, "train"), rows(made, "dev")
    bag = TfidfVectorizer().fit([row["sentence"] for row in train])
    model = LogisticRegression(max_iter=1000).fit(
        bag.transform([row["sentence"] for row in train]), [row["label"] for row in train]
    )
    right = model.predict(bag.transform([row["sentence"] for row in dev])) == np.array([row["label"] for row in dev])
    assert 0.4 < right.mean() < 0.6


def test_the_same_corpus_gives_the_same_files_and_another_seed_others(tmp_path: Path) -> None:
    documents = drawn(100)
    first, again = make(documents, tmp_path / "first"), make(documents, tmp_path / "again")
    other = make(documents, tmp_path / "other", seed=2)
    assert rows(first, "train") == rows(again, "train")
    assert rows(first, "dev") == rows(again, "dev")
    assert {row["sentence"] for row in rows(first, "dev")} != {row["sentence"] for row in rows(other, "dev")}


def test_only_plain_whole_sentences_count() -> None:
    text = (
        "Return the new array of the given shape, filled with ones. x = np.ones(3) is the call that makes one of them! "
        "It's a well-known way to make such arrays quickly. no capital begins this sentence of nine words here. "
        "Too short to count.\n\nA heading without a mark at its end has many words"
    )
    assert list(sentences(text, 8, 24)) == [
        "Return the new array of the given shape, filled with ones.",
        "It's a well-known way to make such arrays quickly.",
    ]
    first = ["Return", "the", "new", "array", "of", "the", "given", "shape,", "filled", "with", "ones."]
    assert swappable(first) == [1, 2, 3, 4, 5, 8]
    assert swappable(["The", "the", "the", "NumPy", "an", "of,", "it", "ends."]) == []


def test_a_corpus_with_too_few_sentences_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        errors.StageError, match=r"has 40 sentences of 8 to 24 words, too few for dev_examples = 40 and"
    ):
        make(drawn(10), tmp_path)
    with pytest.raises(ValueError, match=r"shortest = 9 is above longest = 8: lower it"):
        WordOrder(shortest=9, longest=8)
