"""Tokenizes a corpus to full rows in Arrow files, on a pool of Ray actors.

::

    stillhouse tokens RECIPE --corpus DIR [--tokenizer DIR] --out DIR

    train-00000.arrow  heldout-00000.arrow    rows of the first shard of the corpus (see rows.py)
    counts.npy                                int64 [vocab_size], occurrences in the training rows
    tokenizer.json  tokenizer_config.json     loadable with AutoTokenizer

The unit of work is a shard of the corpus. Its rows depend only on the shard and the tokenizer, so the number of actors
does not matter, and a later attempt does only the missing shards. Actors on other machines need the corpus and the
output on shared storage, in a folder or on ``s3://``. Documents on which the tokenizer fails or dies are dropped and
counted.
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
from cluster.artifacts.recipe_errors import EXAMPLE
from cluster.corpus import shard_writer
from cluster.readers import bad_documents
from cluster.storage import filesystem
from cluster.storage.filesystem import Location
from cluster.telemetry import metrics, progress
from cluster.tokens import rows
from cluster.tokens.heldout import automatic_share, is_heldout
from cluster.tokens.packing import Packing
from cluster.tokens.shard_tokenizer import ShardTask, ShardTokenizer, read_texts, save_array
from cluster.tokens.tokenizer import (
    load_tokenizer,
    save_tokenizer,
    special_ids,
    train_wordpiece,
    vocabulary_digest,
    vocabulary_size,
)

WORK = "shards"
"""Folder for the facts of finished shards, inside the unfinished artifact."""

_TOKENIZER_FILES = (".json", ".txt", ".model")
"""Files of a tokenizer; the weights in the same folder are not fetched."""


class Pretrained(Recipe):
    """The tokenizer of an existing model."""

    kind: Literal["pretrained"]
    """A pretrained tokenizer."""
    name: str = Field(json_schema_extra={EXAMPLE: 'name = "google-bert/bert-base-uncased"'})
    """A folder, a shipped teacher, or a model of the Hugging Face Hub."""


class TrainedWordPiece(Recipe):
    """A BERT tokenizer whose vocabulary is learned from the corpus."""

    kind: Literal["wordpiece"]
    """A WordPiece tokenizer trained on the corpus."""
    vocab_size: PositiveInt = 30_522
    """Entries of the vocabulary; BERT has 30,522."""
    lowercase: bool = True
    """Lower-cases text and strips accents, as BERT's uncased models do."""
    min_frequency: PositiveInt = 2
    """Pairs of pieces that occur less often are not merged."""


AnyTokenizer: TypeAlias = Annotated[Pretrained | TrainedWordPiece, Field(discriminator="kind")]


class Tokens(Recipe):
    """How documents become rows."""

    seq_len: Annotated[int, Field(ge=8)] = 128
    """Tokens per row."""
    heldout: Literal["auto"] | Annotated[float, Field(gt=0, lt=1)] = "auto"
    """Share of documents kept for validation, chosen by a hash of their text. ``auto`` is 1 %, and of fewer than 10,000
    documents as many as fill 64 rows, or hold a fifth of the text."""
    tokenizer: AnyTokenizer | None = None
    """A pretrained tokenizer or a new one; ``--tokenizer DIR`` names a folder instead."""
    max_bad_share: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Highest share of documents on which the tokenizer fails; more stop the stage."""
    placement: actor_pool.Placement = actor_pool.Placement()


def run(recipe: Tokens, inputs: Mapping[str, Location], out: Location) -> dict[str, Any]:
    """Tokenize every shard of the corpus that no earlier attempt has finished.

    Raises:
        StageError: no tokenizer or two, a tokenizer that lacks special tokens or fails on too many documents, or too
            little text for one row of each part.
    """
    texts = artifact.read(inputs["corpus"], "corpus")
    sources = [texts.location / name for name in texts.matching(shard_writer.SHARDS)]
    heldout = _heldout(recipe, sources, int(texts.facts["documents"]))
    tokenizer = _tokenizer(recipe.tokenizer, heldout, sources, inputs.get("tokenizer"), out)
    special, vocab_size = special_ids(tokenizer), vocabulary_size(tokenizer)
    packing = Packing(recipe.seq_len, vocab_size, special.cls, special.sep, special.all)
    shards = [ShardTask(source, number, out, out / WORK, packing, heldout) for number, source in enumerate(sources)]
    totals = _Totals(int(texts.facts["documents"]), recipe.max_bad_share)
    _tokenize_all(shards, totals, recipe.placement, partial(ShardTokenizer, out / "tokenizer.json", vocab_size))
    found = totals.numbers
    _check(found, recipe.seq_len, heldout)
    counts = np.zeros(vocab_size, dtype=np.int64)
    for shard in shards:
        with filesystem.local(shard.counts) as path:
            counts += np.load(path, allow_pickle=False)
    save_array(out / rows.COUNTS, counts)
    filesystem.remove_tree(out / WORK)
    return {
        "seq_len": recipe.seq_len,
        "train_rows": found["train_rows"],
        "heldout_rows": found["heldout_rows"],
        "tokens": (found["train_rows"] + found["heldout_rows"]) * recipe.seq_len,
        "documents": found["train_documents"] + found["heldout_documents"],
        "heldout_documents": found["heldout_documents"],
        "heldout_share": heldout,
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
    """Sums of the facts of finished shards; raises StageError when too many documents have failed."""

    def __init__(self, documents: int, max_bad_share: float) -> None:
        self.numbers, self.failed = Counter[str](), Counter[str]()
        self._by_file: dict[str, list[dict[str, str]]] = {}
        self._documents, self._max_bad_share = documents, max_bad_share

    def add(self, facts: Mapping[str, Any]) -> None:
        self.numbers.update({key: value for key, value in facts.items() if isinstance(value, int)})
        self.failed.update(facts["failed"])
        for example in facts["examples"]:
            self._by_file.setdefault(example["file"], []).append(example)
        if (failed := self.failed.total()) > max(bad_documents.ALWAYS_TOLERATED, self._max_bad_share * self._documents):
            examples = "; ".join(f"{one['file']}: {one['text']!r}" for one in self.examples)
            raise errors.StageError(
                f"the tokenizer fails on {failed:,} of {self._documents:,} documents so far, more than max_bad_share "
                f"= {self._max_bad_share}: check them, or raise it; they begin {examples}"
            )

    @property
    def examples(self) -> list[dict[str, str]]:
        """The first failed documents, in the order of the corpus."""
        return [example for name in sorted(self._by_file) for example in self._by_file[name]][: bad_documents.EXAMPLES]


def _tokenize_all(shards: Sequence[ShardTask], totals: _Totals, placement: actor_pool.Placement, worker: Any) -> None:
    """Tokenize the shards without facts, on the pool."""
    there = {found.location.name for found in filesystem.files(shards[0].work, (".json",))} if shards else set()
    done = [shard for shard in shards if shard.done.name in there]
    for shard in done:
        totals.add(filesystem.read_json(shard.done))
    missing = [shard for shard in shards if shard.done.name not in there]
    units = [actor_pool.Unit(shard.source.name, shard, shard.source.stat().st_size) for shard in missing]
    with progress.Progress("tokens", len(shards), "shards", len(done)) as bar:
        rates = progress.Rates()
        for _, facts in actor_pool.map_unordered("tokens", worker, units, placement):
            totals.add(facts)
            tokens = (facts["train_rows"] + facts["heldout_rows"]) * shards[0].packing.seq_len
            metrics.TOKENS_MADE.inc(tokens)
            for part in (rows.TRAIN, rows.HELDOUT):
                metrics.DOCUMENTS.labels("tokens", part).inc(facts[f"{part}_documents"])
            metrics.DOCUMENTS.labels("tokens", "failed").inc(sum(facts["failed"].values()))
            bar.advance(note=rates.add(tokens=tokens, bytes=facts["bytes"]))


def _heldout(recipe: Tokens, sources: Sequence[Location], documents: int) -> float:
    """Share of the documents that are held out."""
    if recipe.heldout != "auto":
        return recipe.heldout
    texts = (text for source in sources for group in read_texts(source) for text in group)
    return automatic_share(texts, documents, recipe.seq_len)


def _tokenizer(
    wanted: Pretrained | TrainedWordPiece | None,
    heldout: float,
    sources: Sequence[Location],
    given: Location | None,
    out: Location,
) -> Any:
    """The tokenizer, saved in ``out``; the saved one if an earlier attempt has saved it there."""
    ready = out / WORK / "vocabulary.ready"
    if filesystem.exists(ready):
        return _load(out)
    if given is not None and wanted is not None:
        raise errors.StageError("two tokenizers: leave out either --tokenizer or the table [tokenizer] of the recipe")
    if isinstance(wanted, TrainedWordPiece):
        tokenizer = _train(wanted, heldout, sources)
    elif given is not None:
        tokenizer = _load(given)
    elif wanted is not None:
        tokenizer = _load(filesystem.location(wanted.name)) if "://" in wanted.name else load_tokenizer(wanted.name)
    else:
        raise errors.StageError("no tokenizer: give --tokenizer DIR, or a table [tokenizer] in the recipe")
    special_ids(tokenizer)  # raises before anything is written
    _save(tokenizer, out)
    filesystem.write_json(ready, vocabulary_digest(tokenizer))
    return tokenizer


def _load(folder: Location) -> Any:
    if isinstance(folder, Path):
        return load_tokenizer(folder)
    with tempfile.TemporaryDirectory(prefix="stillhouse-") as copy:
        # Models in folders further down, such as checkpoints, have tokenizers of their own.
        for name in filesystem.listing(folder):
            if "/" not in name and name.endswith(_TOKENIZER_FILES):
                with filesystem.local(folder / name) as path:
                    shutil.copy(path, copy)
        return load_tokenizer(copy)


def _save(tokenizer: Any, out: Location) -> None:
    with tempfile.TemporaryDirectory(prefix="stillhouse-") as folder:
        save_tokenizer(tokenizer, Path(folder))
        for path in sorted(Path(folder).iterdir()):
            with filesystem.writing(out / path.name) as temporary:
                temporary.write_bytes(path.read_bytes())


def _train(recipe: TrainedWordPiece, share: float, sources: Sequence[Location]) -> Any:
    """A tokenizer learned from the documents that are not held out."""

    passes = iter(("characters", "vocabulary"))

    def training_texts() -> Iterator[list[str]]:
        for source in progress.progress(sources, next(passes), len(sources), "shards"):
            for texts in read_texts(source):
                yield [text for text in texts if not is_heldout(text, share)]

    return train_wordpiece(training_texts, recipe.vocab_size, recipe.lowercase, recipe.min_frequency)


def _check(totals: Mapping[str, int], seq_len: int, heldout: float) -> None:
    """Raise StageError unless each part has a row."""
    for part, remedy in ((rows.TRAIN, "lower"), (rows.HELDOUT, "raise")):
        if not totals[f"{part}_rows"]:
            raise errors.StageError(
                f"the {totals[f'{part}_documents']} {part} documents fill no row of {seq_len} tokens "
                f"({totals['special_rows']} rows dropped for special tokens): give more text, lower seq_len, "
                f"or {remedy} heldout = {heldout:.3g}"
            )


STAGE = stage.Stage(
    name="cluster.tokens",
    run=run,
    recipe=Tokens,
    inputs={"corpus": stage.Role(("corpus",)), "tokenizer": stage.Role((stage.FOLDER,), optional=True)},
    produces="tokens",
    example="demo#tokens",
    remote=True,
)
