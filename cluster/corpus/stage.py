"""Text sources to cleaned, deduplicated documents in Parquet shards.

::

    stillhouse corpus RECIPE --out DIR

    documents-00000.parquet    source: dictionary<string>    text: large_string

Texts are UTF-8 in NFC without control characters, not empty, and unique. A pool of actors reads, cleans and filters the
splits of the sources (``scan``); one process selects documents, over numbers alone (``selection``); actors write the
files (``shard_writer``). The same sources give the same bytes, whatever the number of actors. An interrupted run reads
and writes only what is missing; if a source has changed, it starts over.
"""

import contextlib
import functools
import logging
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Self

import numpy as np
from pydantic import Field, PositiveInt, model_validator

from cluster.actors import actor_pool, ray_cluster
from cluster.artifacts import artifact, stage
from cluster.artifacts.recipe import Recipe
from cluster.artifacts.recipe_errors import EXAMPLE
from cluster.corpus import document_table, file_counts, selection, shard_writer
from cluster.corpus.decontamination import Decontamination, EvaluationIndex
from cluster.corpus.document_table import ScannedSplit, facts_path
from cluster.corpus.filters import Cleaning
from cluster.corpus.minhash import NearDuplicates
from cluster.corpus.scan import ScanConfig, Scanner
from cluster.corpus.selection import Selection
from cluster.corpus.shard_writer import ShardWriter
from cluster.corpus.source_limits import ScanProgress
from cluster.readers import bad_documents, splits
from cluster.readers.source_recipes import AnySource
from cluster.readers.splits import Split
from cluster.storage import filesystem
from cluster.storage.filesystem import Location
from cluster.telemetry import metrics, progress

WORK = "splits"
"""Folder of the document tables, inside the unfinished artifact."""
EVALUATION = "evaluation.npz"
FINISHED = ".corpus.tmp"
"""Facts of a complete corpus that is not yet hashed, in case that is interrupted; not part of the artifact."""

_SOURCES = 'sources = [{ kind = "text", path = "text/*.txt" }]'

logger = logging.getLogger("stillhouse")


class Corpus(Recipe):
    """The sources of a corpus, the filters, and the size of the files."""

    sources: Annotated[tuple[AnySource, ...], Field(min_length=1, json_schema_extra={EXAMPLE: _SOURCES})]
    """Where the text comes from."""
    cleaning: Cleaning = Cleaning()
    near_duplicates: NearDuplicates | None = None
    """Drops near-duplicates; by default only exact ones are dropped."""
    decontamination: Decontamination | None = None
    """Drops documents that overlap with evaluation data."""
    max_bad_share: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Highest share of unreadable documents; more stop the stage."""
    shard_bytes: PositiveInt = 64_000_000
    """Bytes of text per file; the tokens stage works file by file."""
    placement: actor_pool.Placement = actor_pool.Placement()

    @model_validator(mode="after")
    def _weights(self) -> Self:
        without = [source.kind for source in self.sources if source.weight is None]
        if without and len(without) < len(self.sources):
            raise ValueError(
                f"a source of kind {without[0]} has no weight and others have: give all of them one, or none"
            )
        return self


def _check_out(recipe: Corpus, out: Location) -> None:
    splits.refuse_inside(recipe.sources, out, shard_writer.SHARDS.replace("*", "00000"))


def run(recipe: Corpus, inputs: Mapping[str, Location], out: Location) -> dict[str, Any]:
    """Write the shards; the facts count documents and bytes by label, and dropped documents by reason.

    Raises:
        StageError: a source cannot be read, too many documents are bad, or no document of a source is left.
    """
    all_splits = splits.make_splits(recipe.sources)
    rules = recipe.decontamination
    evaluation = None if rules is None else EvaluationIndex.load(rules, recipe.cleaning)
    listing = {"splits": [split.to_json() for split in all_splits], "evaluation": evaluation and evaluation.fingerprint}
    if (facts := _resume(listing, out)) is not None:
        return facts
    if evaluation is not None:
        evaluation.save(out / WORK / EVALUATION)
    # One cluster for scanning and writing; a single split is scanned in this process.
    cpus = None if recipe.placement.actors == "auto" else recipe.placement.actors
    with ray_cluster.connect(cpus) if len(all_splits) > 1 else contextlib.nullcontext():
        scanned = _scan(recipe, all_splits, out)
        selected = selection.select(scanned, recipe.sources, recipe.near_duplicates, out / WORK)
        files = file_counts.count(scanned, selected)
        file_counts.check_sources(files, recipe.sources)
        num_shards = _write(recipe, scanned, selected, out)
    facts = _facts(recipe, scanned, selected) | {"shards": num_shards, "files": [file.to_json() for file in files]}
    if evaluation is not None:
        facts["evaluation"] = evaluation.counts
    filesystem.write_json(out / FINISHED, {"listing": artifact.digest(listing), "facts": facts})
    filesystem.remove_tree(out / WORK)
    return facts


def _resume(listing: dict[str, Any], out: Location) -> dict[str, Any] | None:
    """The facts if an earlier attempt has finished the same corpus; otherwise None.

    Keeps the work of an unfinished attempt at the same sources, and deletes any other.
    """
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
    # The record goes first, so that a later attempt does not trust a half-deleted folder.
    filesystem.remove(out / record)
    filesystem.remove_tree(out / WORK)
    for name, info in there.items():
        if name == FINISHED or name.startswith("documents-"):
            filesystem.remove(info.location)
    filesystem.write_json(out / record, listing)
    return None


def _scan(recipe: Corpus, all_splits: Sequence[Split], out: Location) -> Sequence[ScannedSplit]:
    """Scan the splits that no earlier attempt has scanned; returns the needed ones, in order."""
    folder = out / WORK
    scan = ScanProgress(all_splits, recipe.sources, recipe.max_bad_share)
    there = filesystem.listing(folder)
    done = [split.number for split in all_splits if facts_path(folder, split.number).name in there]
    for number in done:
        scan.add(number, filesystem.read_json(facts_path(folder, number))["spans"])
    evaluation = folder / EVALUATION if recipe.decontamination else None
    config = ScanConfig(recipe.sources, recipe.cleaning, recipe.near_duplicates, evaluation)
    worker = functools.partial(Scanner, config, folder)
    with progress.Progress("corpus", len(all_splits), "splits read", len(done)) as bar:
        rates = progress.Rates()
        for unit, result in actor_pool.map_unordered("corpus", worker, scan.pending(), recipe.placement):
            scan.add(unit.payload.number, result["spans"])
            rows, passed, text = (
                sum(facts[key] for facts in result["spans"]) for key in ("rows", "passed", "passed_bytes")
            )
            bar.advance(note=rates.add(documents=rows, bytes=text))
            metrics.DOCUMENTS.labels("corpus", "passed").inc(passed)
            metrics.DOCUMENTS.labels("corpus", "dropped").inc(rows - passed)
    return scan.used


def _write(recipe: Corpus, scanned: Sequence[ScannedSplit], selected: Selection, out: Location) -> int:
    """Write the files that no earlier attempt has written; returns the number of all files."""
    there = filesystem.listing(out)
    planned = list(shard_writer.plan(scanned, selected, recipe.shard_bytes))
    missing = [(shard, size) for shard, size in planned if shard.name not in there]
    # Small files share a unit of work.
    units = (actor_pool.Unit(group[0].name, group, size) for group, size in splits.group_by_size(missing))
    worker = functools.partial(ShardWriter, out / WORK, out)
    with progress.Progress("corpus", len(planned), "files", len(planned) - len(missing)) as bar:
        for _, result in actor_pool.map_unordered("corpus", worker, units, recipe.placement):
            bar.advance(result["shards"])
    return len(planned)


def _facts(recipe: Corpus, scanned: Sequence[ScannedSplit], selected: Selection) -> dict[str, Any]:
    sizes, codes = selected.sizes[selected.kept], selected.codes[selected.kept]
    documents = np.bincount(codes, minlength=len(selected.labels))
    num_bytes = np.bincount(codes, weights=sizes, minlength=len(selected.labels))
    by_label: dict[str, dict[str, Any]] = {}
    owners: dict[str, set[int]] = {}
    for (number, label), count, size in zip(selected.labels, documents.tolist(), num_bytes.tolist(), strict=True):
        if count:
            source = recipe.sources[number]
            entry = by_label.setdefault(label, {"documents": 0, "bytes": 0, "licence": "", "weight": source.weight})
            entry["documents"] += count
            if number not in owners.setdefault(label, {number}):
                owners[label].add(number)
                entry["weight"] = source.weight and entry["weight"] + source.weight
            entry["bytes"] += int(size)
            entry["licence"] = "; ".join(sorted({entry["licence"], source.licence} - {""}))
    dropped = selected.dropped
    return {
        "documents": int(documents.sum()),
        "bytes": int(sizes.sum(dtype=np.int64)),
        "read": int(selected.read.sum()),
        "sources": by_label,
        "dropped": dict(dropped),
        "duplicates": {
            "exact": dropped[selection.REPEATED],
            "near": dropped[selection.NEAR],
            "overlap": selection.overlaps(dropped),
        },
        "examples": _examples(scanned),
    }


def _examples(scanned: Sequence[ScannedSplit]) -> list[dict[str, str]]:
    """The first bad documents, with file names relative to the source, so that its folder does not matter."""
    return [
        {"file": span.name, **{key: example[key] for key in ("where", "reason", "text")}}
        for span, facts in document_table.spans(scanned)
        for example in facts["examples"]
    ][: bad_documents.EXAMPLES]


STAGE = stage.Stage(
    name="cluster.corpus",
    run=run,
    recipe=Corpus,
    produces="corpus",
    example="installed-docs",
    remote=True,
    check_out=_check_out,
)
