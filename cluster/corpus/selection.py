"""Which documents a corpus keeps: limits, repeated and nearly repeated documents, and the weights of a mixture.

The driver decides this alone, over columns of numbers: some 25 bytes a document stay in memory, texts never do. The
order of documents is that of the sources in the recipe; of equal documents the first stays.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.artifacts.errors import StageError
from cluster.corpus import document_table, minhash
from cluster.corpus.document_table import BYTES, HIGH, I64, LOW, OVERLAP, REASON, SOURCE, U64, Mask, ScannedSpan
from cluster.corpus.minhash import NearDuplicates
from cluster.corpus.source_limits import SelectionLimit, within_limits
from cluster.readers.source_recipes import AnySource
from cluster.storage import filesystem
from cluster.storage.filesystem import Location

REPEATED, NEAR, WEIGHED = "repeated", "nearly repeated", "weight"


@dataclass
class Selection:
    """What is kept of the pieces, and what became of the rest."""

    starts: I64
    """``[pieces + 1]``: the number of each piece's first document."""
    kept: Mask
    sizes: npt.NDArray[np.uint32]
    """Bytes of text, ``[documents]``."""
    labels: list[tuple[int, str]]
    """Source and label, by code."""
    codes: npt.NDArray[np.int32]
    """Code of each document's label, ``[documents]``."""
    read: int
    """Documents that count as read: not those behind a limit."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Reason to number of documents."""


def choose(
    scanned: Sequence[ScannedSpan], sources: Sequence[AnySource], near: NearDuplicates | None, folder: Location
) -> Selection:
    """Decide for every document of the scanned pieces, which come in order.

    Raises:
        StageError: nothing is left of a source with a weight.
    """
    choice, high, low = _gather(scanned, sources, folder)
    _drop(choice, repeated(high, low, choice.kept), REPEATED)
    if near is not None:
        bands = (_column(scanned, folder, document_table.band(k)) for k in range(minhash.bands(near)[0]))
        _drop(choice, minhash.repeated(bands, choice.kept), NEAR)
    if sources[0].weight is not None:
        owners = np.array([source for source, _ in choice.labels], np.int32)[choice.codes]
        _drop(
            choice,
            near_duplicates_to_drop(choice.sizes, owners, high, choice.kept, [s.weight or 0.0 for s in sources]),
            WEIGHED,
        )
    return choice


def repeated(high: U64, low: U64, eligible: Mask) -> Mask:
    """Eligible documents whose 128-bit digest an earlier eligible one has."""
    places = np.flatnonzero(eligible)
    places = places[np.lexsort((low[places], high[places]))]  # stable: equal ones stay in order
    equal = (high[places[1:]] == high[places[:-1]]) & (low[places[1:]] == low[places[:-1]])
    found = np.zeros(len(eligible), np.bool_)
    found[places[1:][equal]] = True
    return found


def near_duplicates_to_drop(
    sizes: npt.NDArray[np.uint32],
    owners: npt.NDArray[np.int32],
    hashes: U64,
    eligible: Mask,
    weights: Sequence[float],
) -> Mask:
    """Documents of sources that have more text than their weight among the others gives them.

    The source that has the least for its weight stays whole. Of the others those go whose text has the largest hash:
    a fair sample, the same in any order.

    Raises:
        StageError: a source has no text.
    """
    found = np.zeros(len(eligible), np.bool_)
    places = {owner: np.flatnonzero(eligible & (owners == owner)) for owner in range(len(weights))}
    there = {owner: int(sizes[at].sum(dtype=np.int64)) for owner, at in places.items()}
    if empty := [owner for owner, size in there.items() if not size]:
        raise StageError(f"source {empty[0] + 1} has a weight, and no text is left of it: see why, or leave it out")
    total = min(there[owner] / weight for owner, weight in enumerate(weights))
    for owner, at in places.items():
        ordered = at[np.argsort(hashes[at], kind="stable")]
        # Half a byte, so that the source that stays whole does not lose a document to rounding.
        found[ordered[np.cumsum(sizes[ordered], dtype=np.int64) > total * weights[owner] + 0.5]] = True
    return found


def _drop(choice: Selection, gone: Mask, reason: str) -> None:
    if count := int(gone.sum()):
        choice.dropped[reason] += count
        choice.kept &= ~gone


def _gather(
    scanned: Sequence[ScannedSpan], sources: Sequence[AnySource], folder: Location
) -> tuple[Selection, U64, U64]:
    """The documents that passed the filters of their own, within the limits of their sources."""
    starts = np.concatenate([[0], np.cumsum([found.rows for found in scanned], dtype=np.int64)]).astype(np.int64)
    total = int(starts[-1])
    high, low = np.empty(total, np.uint64), np.empty(total, np.uint64)
    choice = Selection(starts, np.zeros(total, np.bool_), np.empty(total, np.uint32), [], np.empty(total, np.int32), 0)
    codes: dict[tuple[int, str], int] = {}
    limits = [SelectionLimit(source.limit, source.max_bytes) for source in sources]
    for found, start in zip(scanned, starts[:-1], strict=True):
        table = _read(found, folder, [SOURCE, REASON, BYTES, HIGH, LOW])
        rows = slice(int(start), int(start) + found.rows)
        choice.sizes[rows], high[rows], low[rows] = (table[name].to_numpy() for name in (BYTES, HIGH, LOW))
        owners = np.repeat([span.source for span in found.piece.spans], [span["rows"] for span in found.spans])
        choice.codes[rows] = _codes(owners, table[SOURCE], codes)
        passed = table[REASON].is_null().to_numpy()
        within = within_limits(owners, passed, choice.sizes[rows], limits)
        choice.kept[rows] = passed & within
        choice.read += int(within.sum())
        reasons = table[REASON].filter(pa.array(within & ~passed)).value_counts()
        choice.dropped.update({str(entry["values"]): int(entry["counts"]) for entry in reasons.to_pylist()})
    choice.labels = list(codes)
    return choice, high, low


def _codes(owners: I64, labels: pa.ChunkedArray, codes: dict[tuple[int, str], int]) -> npt.NDArray[np.int32]:
    """Codes of the labels of one piece; new ones are added."""
    encoded = labels.combine_chunks().dictionary_encode()
    names, places = encoded.dictionary.to_pylist(), encoded.indices.to_numpy()
    pairs = owners * max(1, len(names)) + places
    found = np.empty(len(pairs), np.int32)
    _, firsts = np.unique(pairs, return_index=True)
    for first in np.sort(firsts):
        pair = (int(owners[first]), names[int(places[first])])
        found[pairs == pairs[first]] = codes.setdefault(pair, len(codes))
    return found


def _column(scanned: Sequence[ScannedSpan], folder: Location, name: str) -> U64:
    parts: Iterable[U64] = (_read(found, folder, [name])[name].to_numpy() for found in scanned)
    return np.concatenate([np.empty(0, np.uint64), *parts])


def _read(found: ScannedSpan, folder: Location, columns: list[str]) -> pa.Table:
    with filesystem.open_read(document_table.table_of(folder, found.piece.number)) as file:
        return pq.read_table(file, columns=columns)


def overlaps(dropped: Counter[str]) -> dict[str, int]:
    """Documents that overlapped evaluation data, by task."""
    return {reason.removeprefix(OVERLAP): count for reason, count in sorted(dropped.items()) if OVERLAP in reason}


def shards(choice: Selection, shard_bytes: int) -> Iterator[tuple[int, int]]:
    """First and last document, exclusive, of each output file: so many consecutive ones that what is kept of them is
    no more than ``shard_bytes``, or is one document."""
    places = np.flatnonzero(choice.kept)
    ends = np.cumsum(choice.sizes[places], dtype=np.int64)
    first = 0
    while first < len(places):
        before = int(ends[first - 1]) if first else 0
        last = max(first + 1, int(np.searchsorted(ends, before + shard_bytes, side="right")))
        yield int(places[first]), int(places[last - 1]) + 1
        first = last
