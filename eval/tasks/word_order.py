"""Makes a classification task out of a corpus: are two neighboring words of this sentence swapped?

The bigram shift of SentEval (Conneau et al. 2018, arXiv 1805.01070, section 2). It asks for knowledge of the language
and not of topics: a swapped sentence has the words of the original, so that a bag of words cannot do better than
chance. Like ``provenance`` it needs no download and is of the student's own domain::

    word_order/
      train.parquet  dev.parquet        sentence: string, label: int64
      labels.json                       "in order", "swapped"

No document has sentences in both files, and no sentence occurs twice, neither in both orders. Half of the sentences of
each file are swapped.
"""

import heapq
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from cluster.artifacts import errors, stage
from cluster.artifacts.recipe import Recipe
from eval.tasks import corpus_task
from eval.tasks.corpus_task import rank

LABELS = ("in order", "swapped")

_ENDS = re.compile(r"(?<=[.!?])\s+|\n{2,}")
_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*[,;:]?")
"""A word, perhaps with the mark behind it; code, numbers and markup are none."""
_PLAIN_MARKS = ",;:"


class WordOrder(Recipe):
    """How many sentences become examples. The same corpus and recipe give the same files."""

    train_examples: Annotated[int, Field(ge=2)] = 3000
    """Examples of the training set."""
    dev_examples: Annotated[int, Field(ge=2)] = 1000
    """Examples of the development set."""
    shortest: Annotated[int, Field(ge=5)] = 8
    """Words of the shortest sentence."""
    longest: PositiveInt = 24
    """Words of the longest sentence."""
    sentences_per_document: PositiveInt = 8
    """Most sentences of one document, so that long documents do not dominate."""
    seed: NonNegativeInt = 1
    """Seed of the choice of sentences and of the swapped words."""

    @model_validator(mode="after")
    def _range(self) -> Self:
        if self.shortest > self.longest:
            raise ValueError(f"shortest = {self.shortest} is above longest = {self.longest}: lower it")
        return self


def run(recipe: WordOrder, inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
    """Choose sentences, divide them by document, and swap two words in every other one.

    Raises:
        StageError: the corpus has too few sentences.
    """
    wanted = recipe.dev_examples + recipe.train_examples
    documents = _chosen(recipe, corpus_task.shards(inputs["corpus"]), wanted)
    dev: list[str] = []
    train: list[str] = []
    for sentences in documents:
        (dev if len(dev) < recipe.dev_examples else train).extend(sentences)
    if len(dev) < recipe.dev_examples or len(train) < recipe.train_examples:
        raise errors.StageError(
            f"the corpus has {len(dev) + len(train)} sentences of {recipe.shortest} to {recipe.longest} words, too few "
            f"for dev_examples = {recipe.dev_examples} and train_examples = {recipe.train_examples}: lower these, or "
            "raise sentences_per_document"
        )
    for_train, for_dev = (
        [_example(recipe.seed, sentence, number % 2) for number, sentence in enumerate(part)]
        for part in (train[: recipe.train_examples], dev[: recipe.dev_examples])
    )
    corpus_task.write(out, for_train, for_dev, LABELS, recipe.seed)
    return {"labels": list(LABELS), "train_examples": len(for_train), "dev_examples": len(for_dev)}


def _chosen(recipe: WordOrder, shards: Sequence[Path], wanted: int) -> list[list[str]]:
    """Sentences of the documents with the lowest hashes, by document, in that order; no sentence occurs twice.

    Memory is bounded for a corpus of any size: as many documents are kept as there are examples.
    """
    kept: list[tuple[int, list[str]]] = []
    for _, text in corpus_task.documents(shards, "sentences"):
        found = dict.fromkeys(sentences(text, recipe.shortest, recipe.longest))
        best = heapq.nsmallest(recipe.sentences_per_document, found, key=lambda sentence: rank(recipe.seed, sentence))
        if best:
            # heappushpop drops the smallest entry: with negated ranks, the highest hash.
            entry = (-int.from_bytes(rank(recipe.seed, best[0]), "big"), best)
            push = heapq.heappush if len(kept) < wanted else heapq.heappushpop
            push(kept, entry)
    seen: set[str] = set()
    documents = []
    for _, found_here in sorted(kept, reverse=True):
        # Words in any order and case: of two sentences that differ in nothing else, one would tell the other's label.
        new = {" ".join(sorted(sentence.lower().split())): sentence for sentence in found_here}
        documents.append([sentence for words, sentence in new.items() if words not in seen])
        seen |= new.keys()
    return documents


def sentences(text: str, shortest: int, longest: int) -> Iterator[str]:
    """Whole sentences of plain words, which begin with a capital letter and have two words that can be swapped."""
    for part in _ENDS.split(text):
        words = part.split()
        if not shortest <= len(words) <= longest or not words[0][:1].isupper() or words[-1][-1:] not in (".", "!", "?"):
            continue
        if all(_WORD.fullmatch(word) for word in (*words[:-1], words[-1][:-1])) and swappable(words):
            yield " ".join(words)


def swappable(words: Sequence[str]) -> list[int]:
    """Places of a word that can be swapped with the next: not the first or last, no marks, no capitals, not the same.

    A capital or a mark in an odd place would give the swap away without a look at the words.
    """
    plain = [word.islower() and word[-1] not in _PLAIN_MARKS for word in words]
    return [
        place
        for place in range(1, len(words) - 2)
        if plain[place] and plain[place + 1] and words[place] != words[place + 1]
    ]


def _example(seed: int, sentence: str, label: int) -> tuple[str, int]:
    """The sentence, with two neighbors swapped where the label says so."""
    if not label:
        return sentence, 0
    words = sentence.split(" ")
    places = swappable(words)
    place = places[int.from_bytes(rank(seed, sentence), "big") % len(places)]
    words[place], words[place + 1] = words[place + 1], words[place]
    return " ".join(words), 1


STAGE = stage.Stage(
    name="eval.word_order", run=run, recipe=WordOrder, inputs={"corpus": stage.Role(("corpus",))}, produces="dataset"
)
