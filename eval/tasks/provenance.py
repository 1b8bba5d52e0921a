"""Makes a classification task out of a corpus: from which of N sources does this passage come?

Every corpus with several sources (packages, books, sites) is a labelled set. The task needs no download, is of the
student's own domain, and is harder the more alike the sources are::

    provenance/
      train.parquet  dev.parquet        sentence: string, label: int64
      labels.json                       source names, in the order of their labels

A passage is ``words`` consecutive words of one document. No document has passages in both files, no passage occurs
twice, and every label has the same number of passages. "it" replaces the names of the sources in every passage: "numpy"
would give the label away.
"""

import heapq
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import pyarrow.parquet as pq
from pydantic import Field, NonNegativeInt, PositiveInt

from cluster.artifacts import errors, stage
from cluster.artifacts.recipe import Recipe
from eval.tasks import corpus_task
from eval.tasks.corpus_task import rank

MASK = "it"

# A name of this length is masked inside words too (torch in PyTorch); a shorter one only as a word: "array" has "ray".
SHORTEST_INNER_NAME = 5
SHORTEST_PART = 3
DOCUMENTS_PER_PASSAGE = 4
"""Documents kept of a source per passage: passages that several documents share are dropped."""


class Provenance(Recipe):
    """How many passages of which sources become examples. The same corpus and recipe give the same files."""

    labels: Annotated[int, Field(ge=2)] = 8
    """Number of classes: the sources with the most documents, ties by name."""
    passages_per_label: Annotated[int, Field(ge=2)] = 250
    """Passages of each source, training and development set together."""
    passages_per_document: PositiveInt = 4
    """Most passages of one document, so that long documents do not dominate their source."""
    words: Annotated[int, Field(ge=5)] = 40
    """Words of a passage."""
    dev_share: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.2
    """Share of the passages in the development set."""
    seed: NonNegativeInt = 1
    """Seed of the choice and order of the passages."""


def run(recipe: Provenance, inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
    """Choose the sources, split their documents into passages, and divide these by document.

    Raises:
        StageError: the corpus has too few sources, or a source too few passages.
    """
    shards = corpus_task.shards(inputs["corpus"])
    sources = _largest_sources(shards, recipe.labels)
    documents = _passages(recipe, shards, sources)
    train, dev = [], []
    for label, source in enumerate(sources):
        for_train, for_dev = _split(recipe, source, documents[source])
        train += [(passage, label) for passage in for_train]
        dev += [(passage, label) for passage in for_dev]
    corpus_task.write(out, train, dev, sources, recipe.seed)
    return {"labels": sources, "train_examples": len(train), "dev_examples": len(dev), "words": recipe.words}


def _largest_sources(shards: Sequence[Path], labels: int) -> list[str]:
    counts: Counter[str] = Counter()
    for shard in shards:
        for entry in pq.read_table(shard, columns=["source"]).column("source").value_counts().to_pylist():
            counts[entry["values"]] += entry["counts"]
    if len(counts) < labels:
        instead = f"set labels = {len(counts)}" if len(counts) > 1 else "give the corpus more sources"
        raise errors.StageError(
            f"the corpus has {len(counts)} sources ({', '.join(sorted(counts))}), labels = {labels}: {instead}"
        )
    return sorted(counts, key=lambda source: (-counts[source], source))[:labels]


def _passages(recipe: Provenance, shards: Sequence[Path], sources: Sequence[str]) -> dict[str, list[list[str]]]:
    """For each source the chosen passages of its documents, without passages that several documents share.

    Shared passages (licenses, notices, headers) do not tell a source, and would be in both files. Memory is bounded for
    a corpus of any size: each source keeps only the documents with the lowest hashes.
    """
    names = name_pattern(sources)
    limit = DOCUMENTS_PER_PASSAGE * recipe.passages_per_label
    kept: dict[str, list[tuple[int, list[str]]]] = {source: [] for source in sources}
    for source, text in corpus_task.documents(shards, "passages"):
        chosen = _choose(recipe, names.sub(MASK, text).split()) if source in kept else []
        if chosen:
            # heappushpop drops the smallest entry: with negated ranks, the highest hash.
            entry = (-int.from_bytes(rank(recipe.seed, chosen[0]), "big"), chosen)
            push = heapq.heappush if len(kept[source]) < limit else heapq.heappushpop
            push(kept[source], entry)
    seen = Counter(passage for found in kept.values() for _, chosen in found for passage in chosen)
    unique = {
        source: [[passage for passage in chosen if seen[passage] == 1] for _, chosen in found]
        for source, found in kept.items()
    }
    return {source: [chosen for chosen in found if chosen] for source, found in unique.items()}


def _choose(recipe: Provenance, words: Sequence[str]) -> list[str]:
    """The passages of a document with the lowest hashes, so that every document chooses an equal passage alike."""
    starts = range(0, len(words) - recipe.words + 1, recipe.words)
    passages = dict.fromkeys(" ".join(words[start : start + recipe.words]) for start in starts)
    return heapq.nsmallest(recipe.passages_per_document, passages, key=lambda passage: rank(recipe.seed, passage))


def _split(recipe: Provenance, source: str, documents: Sequence[Sequence[str]]) -> tuple[list[str], list[str]]:
    """Training and dev passages of one source; each document goes to one side.

    Raises:
        StageError: the documents do not hold enough passages.
    """
    dev_wanted = max(1, round(recipe.dev_share * recipe.passages_per_label))
    wanted = {"dev": dev_wanted, "train": max(1, recipe.passages_per_label - dev_wanted)}
    parts: dict[str, list[str]] = {"dev": [], "train": []}
    for passages in sorted(documents, key=lambda passages: rank(recipe.seed, passages[0])):
        side = "dev" if len(parts["dev"]) < wanted["dev"] else "train"
        parts[side] += passages
    if len(parts["train"]) < wanted["train"] or len(parts["dev"]) < wanted["dev"]:
        total = len(parts["train"]) + len(parts["dev"])
        raise errors.StageError(
            f"source {source} has {total} passages of {recipe.words} words in {len(documents)} documents, too few for "
            f"passages_per_label = {recipe.passages_per_label}: lower it, words or labels, or raise "
            "passages_per_document"
        )
    return parts["train"][: wanted["train"]], parts["dev"][: wanted["dev"]]


def name_pattern(sources: Sequence[str]) -> re.Pattern[str]:
    """Matches the spellings of these names: for ``scikit-learn`` also scikit_learn, ScikitLearn, scikit, learn."""
    names = [tuple(re.findall(r"[^\W_]+", source)) for source in sources]
    parts = {(part,) for name in names for part in name if len(part) >= SHORTEST_PART}
    letter = r"[^\W_]"
    forms = []
    # Longest first: the pattern replaces the first form that matches.
    for name in sorted({*names, *parts} - {()}, key=lambda name: (-len("".join(name)), name)):
        inner = f"{letter}*" if len("".join(name)) >= SHORTEST_INNER_NAME else ""
        forms.append(inner + r"[-_.\s]?".join(map(re.escape, name)) + inner)
    return re.compile(rf"(?<!{letter})(?:{'|'.join(forms)})(?!{letter})", re.IGNORECASE)


STAGE = stage.Stage(
    name="eval.provenance",
    run=run,
    recipe=Provenance,
    inputs={"corpus": stage.Role(("corpus",))},
    produces="dataset",
    example="provenance",
)
