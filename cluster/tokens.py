"""A corpus to token rows in Arrow, by a pool of Ray actors.

::

    python -m cluster.tokens RECIPE --corpus DIR [--tokenizer DIR] --out DIR

    train-00000.arrow  heldout-00000.arrow    rows of the first shard of the corpus (see cluster.rows)
    counts.npy                                int64 [vocab_size], occurrences in the training rows
    tokenizer.json  tokenizer_config.json     loadable with AutoTokenizer

A shard of the corpus is the unit of work: its rows depend on nothing but itself and the tokenizer, so they are the
same whatever the number of actors, and an interrupted attempt goes on with the shards that are not yet there. Actors
on other machines read the corpus and write the rows at the same paths: both lie on shared storage then.
"""

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
from pydantic import Field, PositiveInt

from cluster import artifact, corpus, rows, stage, telemetry, vocabulary, wordpiece
from cluster.packing import Packing
from cluster.recipe import Recipe
from cluster.tokenizing import Shard, is_heldout, read_texts, tokenize_all

WORK = "shards"
"""Folder of what is known of finished shards, in the artifact while it is being made."""


class Pretrained(Recipe):
    """The tokenizer of an existing model."""

    kind: Literal["pretrained"]
    name: str  # a folder, or a model of the Hugging Face Hub


class TrainedWordPiece(Recipe):
    """A vocabulary learned from the corpus, in BERT's form."""

    kind: Literal["wordpiece"]
    vocab_size: PositiveInt = 30_522
    lowercase: bool = True
    min_frequency: PositiveInt = 2


AnyTokenizer: TypeAlias = Annotated[Pretrained | TrainedWordPiece, Field(discriminator="kind")]


class Placement(Recipe):
    """Where the work is done; the rows are the same everywhere."""

    actors: PositiveInt | Literal["auto"] = "auto"  # auto: one for each CPU of the cluster


class Tokens(Recipe):
    """How documents become rows."""

    seq_len: Annotated[int, Field(ge=8)] = 128
    heldout: Annotated[float, Field(gt=0, lt=1)] = 0.01  # share of documents kept from training, chosen by their text
    tokenizer: AnyTokenizer | None = None  # or --tokenizer DIR
    placement: Placement = Placement()


def run(recipe: Tokens, inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
    """Tokenise every shard of the corpus that an interrupted attempt has not left here already.

    Raises:
        StageError: no tokenizer or two, one without the special tokens, or too little text for a row of each part.
    """
    sources = sorted(inputs["corpus"].glob(corpus.SHARDS))
    tokenizer = _tokenizer(recipe, sources, inputs.get("tokenizer"), out)
    special, vocab_size = vocabulary.special_ids(tokenizer), vocabulary.vocab_size(tokenizer)
    packing = Packing(recipe.seq_len, vocab_size, special.cls, special.sep, special.all)
    shards = [Shard(source, number, out, out / WORK, packing, recipe.heldout) for number, source in enumerate(sources)]
    if left := [shard for shard in shards if not shard.done.exists()]:
        tokenize_all(left, out / "tokenizer.json", recipe.placement.actors, done=len(shards) - len(left))
    totals = Counter[str]()
    for shard in shards:
        totals.update(json.loads(shard.done.read_text(encoding="utf-8")))
    _check(totals, recipe)
    np.save(out / rows.COUNTS, sum((np.load(shard.counts) for shard in shards), np.zeros(vocab_size, dtype=np.int64)))
    shutil.rmtree(out / WORK)
    return {
        "seq_len": recipe.seq_len,
        "train_rows": totals["train_rows"],
        "heldout_rows": totals["heldout_rows"],
        "tokens": (totals["train_rows"] + totals["heldout_rows"]) * recipe.seq_len,
        "documents": totals["train_documents"] + totals["heldout_documents"],
        "heldout_documents": totals["heldout_documents"],
        "dropped": {key: totals[key] for key in ("tail_tokens", "special_rows")},
        "vocab_size": vocab_size,
        "vocabulary": vocabulary.vocabulary_digest(tokenizer),
        "special_ids": list(special.all),
        **{f"{role}_id": number for role, number in asdict(special).items() if role != "all"},
    }


def _tokenizer(recipe: Tokens, sources: Sequence[Path], given: Path | None, out: Path) -> Any:
    """The tokenizer, saved in ``out``; or the one that an interrupted attempt has saved there."""
    ready = out / WORK / "vocabulary.json"
    if ready.exists():
        return vocabulary.load(out)
    wanted = recipe.tokenizer
    if given is not None and wanted is not None:
        raise stage.StageError("two tokenizers: leave out either --tokenizer or the table [tokenizer] of the recipe")
    if isinstance(wanted, TrainedWordPiece):
        tokenizer = _train(wanted, recipe.heldout, sources)
    elif name := wanted.name if wanted else given:
        tokenizer = vocabulary.load(name)
    else:
        raise stage.StageError("no tokenizer: give --tokenizer DIR, or a table [tokenizer] in the recipe")
    vocabulary.special_ids(tokenizer)  # refuses before anything is written
    tokenizer.save_pretrained(out)
    ready.parent.mkdir(exist_ok=True)
    artifact.write_json(ready, vocabulary.vocabulary_digest(tokenizer))
    return tokenizer


def _train(recipe: TrainedWordPiece, share: float, sources: Sequence[Path]) -> Any:
    """A vocabulary of the documents that are not held out."""

    def training_texts() -> Iterator[list[str]]:
        for source in telemetry.progress(sources, "vocabulary", len(sources), "shards"):
            for texts in read_texts(source):
                yield [text for text in texts if not is_heldout(text, share)]

    return wordpiece.train(
        training_texts,
        vocab_size=recipe.vocab_size,
        lowercase=recipe.lowercase,
        min_frequency=recipe.min_frequency,
    )


def _check(totals: Mapping[str, int], recipe: Tokens) -> None:
    """Training needs at least one row of each part."""
    for part, remedy in ((rows.TRAIN, "lower"), (rows.HELDOUT, "raise")):
        if not totals[f"{part}_rows"]:
            raise stage.StageError(
                f"the {totals[f'{part}_documents']} {part} documents fill no row of {recipe.seq_len} tokens "
                f"({totals['special_rows']} rows dropped for special tokens): give more text, lower seq_len, "
                f"or {remedy} heldout = {recipe.heldout}"
            )


STAGE = stage.Stage(
    run=run,
    recipe=Tokens,
    inputs={"corpus": stage.Role(("corpus",)), "tokenizer": stage.Role((stage.FOLDER,), optional=True)},
    produces="tokens",
)

if __name__ == "__main__":
    stage.main(STAGE)
