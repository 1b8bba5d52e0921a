"""Selects the documents of a corpus: source limits, duplicates, near-duplicates, and the weights of the sources.

One process decides this over columns of numbers: about 25 bytes per document in memory, and no text. Documents are in
the order of the sources in the recipe; of equal documents the first stays.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cluster.artifacts.errors import StageError
from cluster.corpus import document_table, minhash
from cluster.corpus.document_table import BYTES, HIGH, I64, LOW, OVERLAP, REASON, SOURCE, Mask, ScannedSplit
from cluster.corpus.minhash import NearDuplicates
from cluster.corpus.source_limits import limits_of
from cluster.corpus.word_ngrams import U64
from cluster.readers.source_recipes import AnySource
from cluster.storage.filesystem import Location

REPEATED, NEAR, OVER_WEIGHT = "repeated", "nearly repeated", "weight"
"""Reasons in the manifest."""


@dataclass
class Selection:
    """Which documents of the scanned splits stay, and the number dropped for each reason."""

    starts: I64
    """``[splits + 1]``: the number of each split's first document."""
    kept: Mask
    sizes: npt.NDArray[np.uint32]
    """Bytes of text, ``[documents]``."""
    labels: list[tuple[int, str]]
    """Source and label, by code."""
    codes: npt.NDArray[np.int32]
    """Code of each document's label, ``[documents]``."""
    span_starts: I64
    """``[spans + 1]``: the number of the first document of each span, over all splits."""
    read: I64
    """``[spans]``: documents read, without those after a source's limit."""
    dropped_of: list[Counter[str]]
    """``[spans]``: number of documents by reason."""

    @property
    def dropped(self) -> Counter[str]:
        """Number of documents by reason."""
        total: Counter[str] = Counter()
        for dropped in self.dropped_of:
            total.update(dropped)
        return total

    def drop(self, mask: Mask, reason: str) -> None:
        self.kept &= ~mask
        self.count(reason, _per_span(mask, self.span_starts))

    def count(self, reason: str, numbers: I64, first_span: int = 0) -> None:
        """Count dropped documents of consecutive spans, ``[spans]``."""
        for span in np.flatnonzero(numbers).tolist():
            self.dropped_of[first_span + span][reason] += int(numbers[span])


def select(
    scanned: Sequence[ScannedSplit], sources: Sequence[AnySource], near: NearDuplicates | None, folder: Location
) -> Selection:
    """Select among all documents of the scanned splits, which are in order.

    Raises:
        StageError: a source with a weight has no text left.
    """
    selection, high, low = _gather(scanned, sources, folder)
    selection.drop(exact_duplicates(high, low, selection.kept), REPEATED)
    if near is not None:
        columns = (_column(scanned, folder, document_table.band(k)) for k in range(minhash.bands(near)[0]))
        selection.drop(minhash.near_duplicates(columns, selection.kept), NEAR)
    if sources[0].weight is not None:
        owners = np.array([source for source, _ in selection.labels], np.int32)[selection.codes]
        weights = [source.weight or 0.0 for source in sources]
        selection.drop(documents_over_weight(selection.sizes, owners, high, selection.kept, weights), OVER_WEIGHT)
    return selection


def exact_duplicates(high: U64, low: U64, eligible: Mask) -> Mask:
    """Eligible documents whose 128-bit digest equals that of an earlier eligible one."""
    order = np.flatnonzero(eligible)
    order = order[np.lexsort((low[order], high[order]))]  # stable: equal documents stay in order
    equal = (high[order[1:]] == high[order[:-1]]) & (low[order[1:]] == low[order[:-1]])
    found = np.zeros(len(eligible), np.bool_)
    found[order[1:][equal]] = True
    return found


def documents_over_weight(
    sizes: npt.NDArray[np.uint32],
    owners: npt.NDArray[np.int32],
    hashes: U64,
    eligible: Mask,
    weights: Sequence[float],
) -> Mask:
    """Documents to drop so that the text of each source is proportional to its weight.

    The source with the least text for its weight stays whole. The others lose the documents with the largest hashes:
    a fair sample that does not depend on the order.

    Raises:
        StageError: a source has no text.
    """
    found = np.zeros(len(eligible), np.bool_)
    members = {owner: np.flatnonzero(eligible & (owners == owner)) for owner in range(len(weights))}
    text_bytes = {owner: int(sizes[rows].sum(dtype=np.int64)) for owner, rows in members.items()}
    if empty := [owner for owner, size in text_bytes.items() if not size]:
        raise StageError(f"source {empty[0] + 1} has a weight, and no text is left of it: find out why, or remove it")
    total = min(text_bytes[owner] / weight for owner, weight in enumerate(weights))
    for owner, rows in members.items():
        ordered = rows[np.argsort(hashes[rows], kind="stable")]
        # Half a byte, so that rounding takes no document from the source that stays whole.
        found[ordered[np.cumsum(sizes[ordered], dtype=np.int64) > total * weights[owner] + 0.5]] = True
    return found


def overlaps(dropped: Counter[str]) -> dict[str, int]:
    """Number of documents that overlap evaluation data, by task."""
    return {reason.removeprefix(OVERLAP): count for reason, count in sorted(dropped.items()) if OVERLAP in reason}


def shard_ranges(selection: Selection, shard_bytes: int) -> Iterator[tuple[int, int]]:
    """First and last document, exclusive, of each output file: at most ``shard_bytes`` of text, or one document."""
    kept = np.flatnonzero(selection.kept)
    ends = np.cumsum(selection.sizes[kept], dtype=np.int64)
    first = 0
    while first < len(kept):
        before = int(ends[first - 1]) if first else 0
        last = max(first + 1, int(np.searchsorted(ends, before + shard_bytes, side="right")))
        yield int(kept[first]), int(kept[last - 1]) + 1
        first = last


def _gather(
    scanned: Sequence[ScannedSplit], sources: Sequence[AnySource], folder: Location
) -> tuple[Selection, U64, U64]:
    """The documents that passed the filters, within the limits of their sources; and the halves of their digests."""
    starts = np.concatenate([[0], np.cumsum([split.rows for split in scanned], dtype=np.int64)]).astype(np.int64)
    total = int(starts[-1])
    high, low = np.empty(total, np.uint64), np.empty(total, np.uint64)
    kept, sizes, codes = np.zeros(total, np.bool_), np.empty(total, np.uint32), np.empty(total, np.int32)
    rows_of = [facts["rows"] for split in scanned for facts in split.facts]
    span_starts = np.concatenate([[0], np.cumsum(rows_of, dtype=np.int64)]).astype(np.int64)
    read = np.zeros(len(rows_of), np.int64)
    selection = Selection(starts, kept, sizes, [], codes, span_starts, read, [Counter() for _ in rows_of])
    code_of: dict[tuple[int, str], int] = {}
    limits = limits_of(sources)
    first_span = 0
    for split, start in zip(scanned, starts[:-1], strict=True):
        table = document_table.read_columns(folder, split, [SOURCE, REASON, BYTES, HIGH, LOW])
        rows = slice(int(start), int(start) + split.rows)
        sizes[rows], high[rows], low[rows] = (table[name].to_numpy() for name in (BYTES, HIGH, LOW))
        owners = np.concatenate([np.full(facts["rows"], span.source) for span, facts in split.spans()])
        codes[rows] = _label_codes(owners, table[SOURCE], code_of)
        passed = table[REASON].is_null().to_numpy()
        within = np.zeros(len(owners), np.bool_)
        for owner in np.unique(owners):
            at = np.flatnonzero(owners == owner)
            within[at[: limits[owner].take_rows(passed[at], sizes[rows][at])]] = True
        kept[rows] = passed & within
        borders = span_starts[first_span : first_span + len(split.facts) + 1] - start
        read[first_span : first_span + len(split.facts)] = _per_span(within, borders)
        for reason, mask in _reasons(table[REASON]):
            selection.count(reason, _per_span(mask & within, borders), first_span)
        first_span += len(split.facts)
    selection.labels = list(code_of)
    return selection, high, low


def _per_span(mask: Mask, starts: I64) -> I64:
    """How many documents of each span are in a mask, ``[spans]``; ``starts`` are those of the spans, and the end."""
    found: I64 = np.diff(np.searchsorted(np.flatnonzero(mask), starts))
    return found


def _reasons(column: pa.ChunkedArray) -> Iterator[tuple[str, Mask]]:
    """Each reason of a split, and which documents were dropped for it."""
    encoded = column.combine_chunks().dictionary_encode()
    codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    for code, reason in enumerate(encoded.dictionary.to_pylist()):
        yield reason, codes == code


def _label_codes(owners: I64, labels: pa.ChunkedArray, code_of: dict[tuple[int, str], int]) -> npt.NDArray[np.int32]:
    """Codes of the labels of one split; adds new ones to ``code_of``."""
    encoded = labels.combine_chunks().dictionary_encode()
    names, indices = encoded.dictionary.to_pylist(), encoded.indices.to_numpy()
    pairs = owners * max(1, len(names)) + indices
    codes = np.empty(len(pairs), np.int32)
    _, firsts = np.unique(pairs, return_index=True)
    for first in np.sort(firsts):
        pair = (int(owners[first]), names[int(indices[first])])
        codes[pairs == pairs[first]] = code_of.setdefault(pair, len(code_of))
    return codes


def _column(scanned: Sequence[ScannedSplit], folder: Location, name: str) -> U64:
    parts: Iterable[U64] = (document_table.read_columns(folder, split, [name])[name].to_numpy() for split in scanned)
    return np.concatenate([np.empty(0, np.uint64), *parts])
