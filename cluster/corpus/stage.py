"""Text sources to cleaned, deduplicated documents in Parquet shards.

::

    python -m cluster.corpus RECIPE --out DIR

    documents-00000.parquet    source: dictionary<string>    text: large_string

Texts are UTF-8 in NFC without control characters; none is empty, none is there twice. The sources are cut into pieces,
which a pool of actors reads, cleans and judges document by document (``scan``); then one process
decides what stays, over numbers alone (``selection``); then actors write the files (``shard_writer``).
The same sources give the same files, byte for byte, whatever the number of actors. An interrupted attempt goes on with
the pieces and files that are not there yet; when a source has changed meanwhile, it starts over.
"""

import contextlib
import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from typing import Annotated, Any, Self

import numpy as np
from pydantic import Field, PositiveInt, model_validator

from cluster.actors import actor_pool, ray_cluster
from cluster.artifacts import artifact, errors, stage
from cluster.artifacts.recipe import Recipe
from cluster.corpus import selection, shard_writer
from cluster.corpus.decontamination import Decontamination, Evaluation
from cluster.corpus.document_table import ScannedSpan, marker_of
from cluster.corpus.filters import Cleaning
from cluster.corpus.minhash import NearDuplicates
from cluster.corpus.scan import ScanConfig, Scanner
from cluster.corpus.selection import Selection
from cluster.corpus.shard_writer import ShardWriter
from cluster.corpus.source_limits import ScanLedger
from cluster.readers import bad_documents, splits
from cluster.readers.source_recipes import AnySource
from cluster.readers.splits import Span, Split
from cluster.storage import filesystem
from cluster.storage.filesystem import Location
from cluster.telemetry import metrics, progress

SOURCE, TEXT, SHARDS, SCHEMA = shard_writer.SOURCE, shard_writer.TEXT, shard_writer.PATTERN, shard_writer.SCHEMA

WORK = "pieces"
"""Folder of what is known of the sources, in the artifact while it is being made."""
EVALUATION = "evaluation.npz"
FINISHED = ".corpus.tmp"
"""The facts, for when an attempt is interrupted while everything is there and is being hashed; no artifact lists it."""

logger = logging.getLogger("stillhouse")


class Corpus(Recipe):
    """Which texts make up a corpus, what is asked of them, and how they are cut into files."""

    sources: Annotated[tuple[AnySource, ...], Field(min_length=1)]
    cleaning: Cleaning = Cleaning()
    near_duplicates: NearDuplicates | None = None
    decontamination: Decontamination | None = None
    max_bad_share: Annotated[float, Field(ge=0, le=1)] = 0.01  # of the documents read that are no usable text
    shard_bytes: PositiveInt = 64_000_000  # of text; a shard is also the unit of work of the next stage
    placement: actor_pool.Placement = actor_pool.Placement()

    @model_validator(mode="after")
    def _weights(self) -> Self:
        without = [source.kind for source in self.sources if source.weight is None]
        if without and len(without) < len(self.sources):
            raise ValueError(
                f"a source of kind {without[0]} has no weight and others have: give all of them one, or none"
            )
        return self


def run(recipe: Corpus, inputs: Mapping[str, Location], out: Location) -> dict[str, Any]:
    """Write the shards; facts count documents and bytes by label, and everything dropped by reason.

    Raises:
        StageError: a source cannot be read, too many documents are bad, or no document is left.
    """
    wanted = splits.cut(recipe.sources)
    evaluation = Evaluation.load(recipe.decontamination) if recipe.decontamination else None
    listing = {"pieces": [piece.plain() for piece in wanted], "evaluation": evaluation and evaluation.fingerprint}
    if (facts := _resume(listing, out)) is not None:
        return facts
    if evaluation is not None:
        evaluation.save(out / WORK / EVALUATION)
    # One cluster for both halves, where one is needed at all.
    cpus = None if recipe.placement.actors == "auto" else recipe.placement.actors
    with ray_cluster.connect(cpus) if len(wanted) > 1 else contextlib.nullcontext():
        scanned = _scan(recipe, wanted, out)
        chosen = selection.choose(scanned, recipe.sources, recipe.near_duplicates, out / WORK)
        _refuse_nothing(scanned, chosen)
        num_shards = _write(recipe, scanned, chosen, out)
    facts = _facts(recipe, scanned, chosen) | {"shards": num_shards}
    if evaluation is not None:
        facts["evaluation"] = evaluation.counts
    filesystem.write_json(out / FINISHED, {"listing": artifact.digest(listing), "facts": facts})
    filesystem.remove_tree(out / WORK)
    return facts


def _resume(listing: dict[str, Any], out: Location) -> dict[str, Any] | None:
    """The facts, where an interrupted attempt at the same files had come to its end. Otherwise what it left stays where
    the sources are the same, and goes where they are not."""
    there = filesystem.listing(out)
    if FINISHED in there:
        finished = filesystem.read_json(out / FINISHED)
        if finished["listing"] == artifact.digest(listing):
            filesystem.remove_tree(out / WORK)
            return dict(finished["facts"])
    record = f"{WORK}/listing.json"
    if record in there and filesystem.read_json(out / record) == listing:
        return None
    if record in there or FINISHED in there:
        logger.info("corpus: the sources have changed since the last attempt: it starts over")
    # The record goes first: what an interrupted clearing leaves behind belongs to nothing.
    filesystem.remove(out / record)
    filesystem.remove_tree(out / WORK)
    for name, info in there.items():
        if name == FINISHED or name.startswith("documents-"):
            filesystem.remove(info.location)
    filesystem.write_json(out / record, listing)
    return None


def _scan(recipe: Corpus, wanted: Sequence[Split], out: Location) -> Sequence[ScannedSpan]:
    """Read the pieces that no earlier attempt has read; what is needed of all, in order."""
    folder = out / WORK
    ledger = ScanLedger(wanted, recipe.sources, recipe.max_bad_share)
    there = filesystem.listing(folder)
    done = [piece for piece in wanted if marker_of(folder, piece.number).name in there]
    for piece in done:
        ledger.add(piece.number, filesystem.read_json(marker_of(folder, piece.number))["spans"])
    evaluation = folder / EVALUATION if recipe.decontamination else None
    question = ScanConfig(recipe.sources, recipe.cleaning, recipe.near_duplicates, evaluation)
    worker = functools.partial(Scanner, question, folder)
    with progress.Progress("corpus", len(wanted), "pieces read", len(done)) as shown:
        rates = progress.Rates()
        for unit, result in actor_pool.each("corpus", worker, ledger.wanted(), recipe.placement):
            ledger.add(unit.payload.number, result["spans"])
            text = sum(facts["passed_bytes"] for facts in result["spans"])
            shown.advance(note=rates.add(documents=sum(facts["rows"] for facts in result["spans"]), bytes=text))
            for facts in result["spans"]:
                metrics.DOCUMENTS.labels("corpus", "passed").inc(facts["passed"])
                metrics.DOCUMENTS.labels("corpus", "dropped").inc(facts["rows"] - facts["passed"])
    return ledger.used


def _refuse_nothing(scanned: Sequence[ScannedSpan], chosen: Selection) -> None:
    if not chosen.kept.any():
        examples = [example for _, facts in _read_spans(scanned) for example in facts["examples"]]
        dropped = f"{bad_documents.counted(chosen.dropped)}{bad_documents.shown(examples)}"
        raise errors.StageError(f"the corpus is empty (dropped: {dropped}): give sources with text")


def _write(recipe: Corpus, scanned: Sequence[ScannedSpan], chosen: Selection, out: Location) -> int:
    """Write the files that no earlier attempt has written; returns how many there are of all."""
    there = filesystem.listing(out)
    planned = list(shard_writer.plan(scanned, chosen, recipe.shard_bytes))
    missing = [(shard, size) for shard, size in planned if shard.name not in there]
    worker = functools.partial(ShardWriter, out / WORK, out)
    with progress.Progress("corpus", len(planned), "files", len(planned) - len(missing)) as shown:
        for _, result in actor_pool.each("corpus", worker, shard_writer.units(iter(missing)), recipe.placement):
            shown.advance(result["shards"])
    return len(planned)


def _read_spans(scanned: Sequence[ScannedSpan]) -> Iterator[tuple[Span, dict[str, Any]]]:
    return ((span, facts) for found in scanned for span, facts in zip(found.piece.spans, found.spans, strict=True))


def _facts(recipe: Corpus, scanned: Sequence[ScannedSpan], chosen: Selection) -> dict[str, Any]:
    sizes, codes = chosen.sizes[chosen.kept], chosen.codes[chosen.kept]
    documents = np.bincount(codes, minlength=len(chosen.labels))
    num_bytes = np.bincount(codes, weights=sizes, minlength=len(chosen.labels))
    by_label: dict[str, dict[str, Any]] = {}
    owners: dict[str, set[int]] = {}
    for (number, label), count, size in zip(chosen.labels, documents.tolist(), num_bytes.tolist(), strict=True):
        if count:
            source = recipe.sources[number]
            entry = by_label.setdefault(label, {"documents": 0, "bytes": 0, "licence": "", "weight": source.weight})
            entry["documents"] += count
            if number not in owners.setdefault(label, {number}):
                owners[label].add(number)
                entry["weight"] = source.weight and entry["weight"] + source.weight
            entry["bytes"] += int(size)
            entry["licence"] = "; ".join(sorted({entry["licence"], source.licence} - {""}))
    return {
        "documents": int(documents.sum()),
        "bytes": int(sizes.sum(dtype=np.int64)),
        "read": chosen.read,
        "sources": by_label,
        "dropped": dict(chosen.dropped),
        "duplicates": {
            "exact": chosen.dropped[selection.REPEATED],
            "near": chosen.dropped[selection.NEAR],
            "overlap": selection.overlaps(chosen.dropped),
        },
        "examples": _examples(scanned),
        "files": _fingerprints(scanned),
    }


def _examples(scanned: Sequence[ScannedSpan]) -> list[dict[str, str]]:
    """The first bad documents, of files by their names below the source: where that lies is no part of the corpus."""
    kept = ("where", "reason", "text")
    found = [
        {"file": span.name, **{key: example[key] for key in kept}}
        for span, facts in _read_spans(scanned)
        for example in facts["examples"]
    ]
    return found[: bad_documents.EXAMPLES]


def _fingerprints(scanned: Sequence[ScannedSpan]) -> list[dict[str, Any]]:
    """Every file that was read, and a digest of the documents in it."""
    digests: dict[tuple[int, str], list[str]] = {}
    for span, facts in _read_spans(scanned):
        digests.setdefault((span.source, span.name), []).append(facts["fingerprint"])
    return [
        {"source": source, "name": name, "sha256": sha256("".join(found).encode()).hexdigest()}
        for (source, name), found in digests.items()
    ]


STAGE = stage.Stage(name="cluster.corpus", run=run, recipe=Corpus, produces="corpus", remote=True)
