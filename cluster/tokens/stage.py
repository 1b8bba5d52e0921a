"""A corpus to token rows in Arrow, by a pool of Ray actors.

::

    python -m cluster.tokens RECIPE --corpus DIR [--tokenizer DIR] --out DIR

    train-00000.arrow  heldout-00000.arrow    rows of the first shard of the corpus (see cluster.rows)
    counts.npy                                int64 [vocab_size], occurrences in the training rows
    tokenizer.json  tokenizer_config.json     loadable with AutoTokenizer

A shard of the corpus is the unit of work: its rows depend on nothing but itself and the tokenizer, so they are the
same whatever the number of actors, and an interrupted attempt goes on with the shards that are not yet there. Actors
on other machines read the corpus and write the rows at the same places: both lie on shared storage then, folders or
``s3://``. A document on which the tokenizer fails, or dies, is counted and left out.
"""

import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
from pydantic import Field, PositiveInt

from cluster.actors import actor_pool
from cluster.artifacts import artifact, errors, stage
from cluster.artifacts.recipe import Recipe
from cluster.corpus import shard_writer
from cluster.readers import bad_documents
from cluster.storage import filesystem
from cluster.storage.filesystem import Location
from cluster.telemetry import metrics, progress
from cluster.tokens import rows
from cluster.tokens.packing import Packing
from cluster.tokens.shard_tokenizer import ShardTask, ShardTokenizer, is_heldout, read_texts, save_array
from cluster.tokens.tokenizer import load_tokenizer, special_ids, train_wordpiece, vocabulary_digest, vocabulary_size

WORK = "shards"
"""Folder of what is known of finished shards, in the artifact while it is being made."""

_TOKENIZER_FILES = (".json", ".txt", ".model")
"""What a tokenizer may be made of; the weights beside it are not fetched."""


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


class Tokens(Recipe):
    """How documents become rows."""

    seq_len: Annotated[int, Field(ge=8)] = 128
    heldout: Annotated[float, Field(gt=0, lt=1)] = 0.01  # share of documents kept from training, chosen by their text
    tokenizer: AnyTokenizer | None = None  # or --tokenizer DIR
    max_bad_share: Annotated[float, Field(ge=0, le=1)] = (
        0.01  # of documents on which the tokenizer fails; more end the run
    )
    placement: actor_pool.Placement = actor_pool.Placement()


def run(recipe: Tokens, inputs: Mapping[str, Location], out: Location) -> dict[str, Any]:
    """Tokenise every shard of the corpus that an interrupted attempt has not left here already.

    Raises:
        StageError: no tokenizer or two, one without the special tokens, one that fails on too many documents, or too
            little text for a row of each part.
    """
    texts = artifact.read(inputs["corpus"], "corpus")
    sources = [found.location for found in filesystem.files(texts.location / shard_writer.SHARDS)]
    tokenizer = _tokenizer(recipe, sources, inputs.get("tokenizer"), out)
    special, vocab_size = special_ids(tokenizer), vocabulary_size(tokenizer)
    packing = Packing(recipe.seq_len, vocab_size, special.cls, special.sep, special.all)
    shards = [
        ShardTask(source, number, out, out / WORK, packing, recipe.heldout) for number, source in enumerate(sources)
    ]
    totals = _Totals(int(texts.facts["documents"]), recipe.max_bad_share)
    _tokenize_all(shards, totals, recipe.placement, partial(ShardTokenizer, out / "tokenizer.json", vocab_size))
    found = totals.numbers
    _check(found, recipe)
    save_array(out / rows.COUNTS, sum(map(_counts, shards), np.zeros(vocab_size, dtype=np.int64)))
    filesystem.remove_tree(out / WORK)
    return {
        "seq_len": recipe.seq_len,
        "train_rows": found["train_rows"],
        "heldout_rows": found["heldout_rows"],
        "tokens": (found["train_rows"] + found["heldout_rows"]) * recipe.seq_len,
        "documents": found["train_documents"] + found["heldout_documents"],
        "heldout_documents": found["heldout_documents"],
        "bytes": found["bytes"],
        "dropped": {"failed_documents": totals.failed.total()}
        | {key: found[key] for key in ("tail_tokens", "special_rows")},
        "failed": {"reasons": dict(sorted(totals.failed.items())), "examples": totals.examples},
        "vocab_size": vocab_size,
        "vocabulary": vocabulary_digest(tokenizer),
        "special_ids": list(special.all),
        **{f"{role}_id": number for role, number in asdict(special).items() if role != "all"},
    }


class _Totals:
    """Numbers of all shards finished so far; refuses when too many documents have failed."""

    def __init__(self, documents: int, max_bad_share: float) -> None:
        self.numbers, self.failed = Counter[str](), Counter[str]()
        self._found: dict[str, list[dict[str, str]]] = {}
        self._documents, self._max_bad_share = documents, max_bad_share

    def add(self, facts: Mapping[str, Any]) -> None:
        self.numbers.update({key: value for key, value in facts.items() if isinstance(value, int)})
        self.failed.update(facts["failed"])
        for example in facts["examples"]:
            self._found.setdefault(example["file"], []).append(example)
        if (failed := self.failed.total()) > max(bad_documents.ALWAYS_TOLERATED, self._max_bad_share * self._documents):
            examples = "; ".join(f"{one['file']}: {one['text']!r}" for one in self.examples)
            raise errors.StageError(
                f"the tokenizer fails on {failed:,} of {self._documents:,} documents so far, more than max_bad_share "
                f"= {self._max_bad_share}: look at them, or raise it; they begin {examples}"
            )

    @property
    def examples(self) -> list[dict[str, str]]:
        """The first documents that failed, in the order of the corpus."""
        return [example for name in sorted(self._found) for example in self._found[name]][: bad_documents.EXAMPLES]


def _tokenize_all(shards: Sequence[ShardTask], totals: _Totals, placement: actor_pool.Placement, worker: Any) -> None:
    """Tokenise what is not done yet, on the pool."""
    known = {found.location.name for found in filesystem.files(shards[0].work, (".json",))} if shards else set()
    done = [shard for shard in shards if shard.done.name in known]
    for shard in done:
        totals.add(filesystem.read_json(shard.done))
    left = [shard for shard in shards if shard.done.name not in known]
    units = [actor_pool.Unit(shard.source.name, shard, shard.source.stat().st_size) for shard in left]
    with progress.Progress("tokens", len(shards), "shards", len(done)) as shown:
        rate = progress.Rates()
        for _, facts in actor_pool.map_unordered("tokens", worker, units, placement):
            totals.add(facts)
            tokens = (facts["train_rows"] + facts["heldout_rows"]) * shards[0].packing.seq_len
            _export(facts, tokens)
            shown.advance(note=rate.add(tokens=tokens, bytes=facts["bytes"]))


def _export(facts: Mapping[str, Any], tokens: int) -> None:
    metrics.TOKENS_MADE.inc(tokens)
    for outcome, count in (
        ("train", facts["train_documents"]),
        ("heldout", facts["heldout_documents"]),
        ("failed", sum(facts["failed"].values())),
    ):
        metrics.DOCUMENTS.labels("tokens", outcome).inc(count)


def _counts(shard: ShardTask) -> Any:
    with filesystem.local(shard.counts) as path:
        return np.load(path, allow_pickle=False)


def _tokenizer(recipe: Tokens, sources: Sequence[Location], given: Location | None, out: Location) -> Any:
    """The tokenizer, saved in ``out``; or the one that an interrupted attempt has saved there."""
    ready = out / WORK / "vocabulary.ready"
    if filesystem.exists(ready):
        return _load(out)
    wanted = recipe.tokenizer
    if given is not None and wanted is not None:
        raise errors.StageError("two tokenizers: leave out either --tokenizer or the table [tokenizer] of the recipe")
    if isinstance(wanted, TrainedWordPiece):
        tokenizer = _train(wanted, recipe.heldout, sources)
    elif given is not None:
        tokenizer = _load(given)
    elif wanted is not None:
        tokenizer = _load(filesystem.location(wanted.name)) if "://" in wanted.name else load_tokenizer(wanted.name)
    else:
        raise errors.StageError("no tokenizer: give --tokenizer DIR, or a table [tokenizer] in the recipe")
    special_ids(tokenizer)  # refuses before anything is written
    _save(tokenizer, out)
    filesystem.write_json(ready, vocabulary_digest(tokenizer))
    return tokenizer


def _load(folder: Location) -> Any:
    if isinstance(folder, Path):
        return load_tokenizer(folder)
    with tempfile.TemporaryDirectory(prefix="stillhouse-") as copy:
        for found in filesystem.files(folder, _TOKENIZER_FILES):
            with filesystem.local(found.location) as path:
                shutil.copy(path, copy)
        return load_tokenizer(copy)


def _save(tokenizer: Any, out: Location) -> None:
    with tempfile.TemporaryDirectory(prefix="stillhouse-") as folder:
        tokenizer.save_pretrained(folder)
        for path in sorted(Path(folder).iterdir()):
            with filesystem.writing(out / path.name) as temporary:
                temporary.write_bytes(path.read_bytes())


def _train(recipe: TrainedWordPiece, share: float, sources: Sequence[Location]) -> Any:
    """A vocabulary of the documents that are not held out."""

    def training_texts() -> Iterator[list[str]]:
        for source in progress.progress(sources, "vocabulary", len(sources), "shards"):
            for texts in read_texts(source):
                yield [text for text in texts if not is_heldout(text, share)]

    return train_wordpiece(
        training_texts,
        vocab_size=recipe.vocab_size,
        lowercase=recipe.lowercase,
        min_frequency=recipe.min_frequency,
    )


def _check(totals: Mapping[str, int], recipe: Tokens) -> None:
    """Training needs at least one row of each part."""
    for part, remedy in ((rows.TRAIN, "lower"), (rows.HELDOUT, "raise")):
        if not totals[f"{part}_rows"]:
            raise errors.StageError(
                f"the {totals[f'{part}_documents']} {part} documents fill no row of {recipe.seq_len} tokens "
                f"({totals['special_rows']} rows dropped for special tokens): give more text, lower seq_len, "
                f"or {remedy} heldout = {recipe.heldout}"
            )


STAGE = stage.Stage(
    name="cluster.tokens",
    run=run,
    recipe=Tokens,
    inputs={"corpus": stage.Role(("corpus",)), "tokenizer": stage.Role((stage.FOLDER,), optional=True)},
    produces="tokens",
    remote=True,
)
