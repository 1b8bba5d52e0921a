"""Selection of documents: limits, repeated documents and weights against a naive implementation."""

import itertools
import random
from typing import Any

import numpy as np
import pytest

from cluster.artifacts.errors import StageError
from cluster.corpus import selection, source_limits
from cluster.corpus.source_limits import ScanProgress
from cluster.corpus.stage import Corpus
from cluster.readers import bad_documents
from cluster.readers.splits import SourceSpan, Split


def test_of_equal_digests_the_first_that_counts_stays() -> None:
    rng = np.random.default_rng(1)
    high, low = rng.integers(0, 12, (2, 2_000)).astype(np.uint64)
    eligible = rng.random(2_000) < 0.7
    seen: set[tuple[int, int]] = set()
    expected = []
    for pair in zip(high.tolist(), low.tolist(), eligible.tolist(), strict=True):
        expected.append(pair[2] and pair[:2] in seen)
        if pair[2]:
            seen.add(pair[:2])
    assert selection.exact_duplicates(high, low, eligible).tolist() == expected


def _naive_limit(passed: list[bool], sizes: list[int], documents: int | None, num_bytes: int | None) -> int:
    """Naive selection, row by row."""
    taken = taken_bytes = 0
    for row, (good, size) in enumerate(zip(passed, sizes, strict=True)):
        if not good:
            continue
        if num_bytes is not None and taken_bytes + size > num_bytes:
            return row
        taken, taken_bytes = taken + 1, taken_bytes + size
        if taken == documents:
            return row + 1
    return len(passed)


@pytest.mark.parametrize("seed", range(8))
def test_limits_are_those_of_counting_one_by_one_over_any_parts(seed: int) -> None:
    draw = random.Random(seed)
    passed = [draw.random() < 0.6 for _ in range(60)]
    sizes = [draw.randint(1, 9) if good else 0 for good in passed]
    documents = draw.choice([None, 1, 5, 20, 1_000])
    num_bytes = draw.choice([None, 1, 30, 100, 10_000])
    limit = source_limits.SourceLimit(documents, num_bytes)
    cuts = sorted({0, 60, *draw.sample(range(60), 3)})
    found = 0
    for start, stop in itertools.pairwise(cuts):
        found += limit.take_rows(np.array(passed[start:stop]), np.array(sizes[start:stop], np.uint32))
    assert found == _naive_limit(passed, sizes, documents, num_bytes)


def test_weights_are_shares_of_the_text_and_one_source_stays_whole() -> None:
    rng = np.random.default_rng(2)
    owners = rng.integers(0, 3, 30_000).astype(np.int32)
    sizes = rng.integers(10, 1_000, 30_000).astype(np.uint32)
    hashes = rng.integers(0, 2**63, 30_000).astype(np.uint64)
    eligible = rng.random(30_000) < 0.9
    gone = selection.documents_over_weight(sizes, owners, hashes, eligible, [3.0, 1.0, 0.5])
    assert not (gone & ~eligible).any()
    text = [int(sizes[eligible & ~gone & (owners == owner)].sum()) for owner in range(3)]
    assert text[0] == sizes[eligible & (owners == 0)].sum()
    assert [size / sum(text) for size in text] == pytest.approx([3 / 4.5, 1 / 4.5, 0.5 / 4.5], abs=1e-4)
    order = rng.permutation(30_000)
    again = selection.documents_over_weight(
        sizes[order], owners[order], hashes[order], eligible[order], [3.0, 1.0, 0.5]
    )
    assert (again == gone[order]).all()
    with pytest.raises(StageError, match="source 2 has a weight, and no text is left of it"):
        selection.documents_over_weight(sizes, owners, hashes, eligible & (owners != 1), [3.0, 1.0, 0.5])


def _splits(*owners: tuple[int, ...]) -> list[Split]:
    return [
        Split(number, tuple(SourceSpan(source, f"{number}.txt", f"{number}.txt", 0, 9, "", 9) for source in sources))
        for number, sources in enumerate(owners)
    ]


def _facts(passed: int, bad: int = 0) -> dict[str, Any]:
    example = {"place": "in.txt", "where": "line 1", "reason": "not UTF-8", "text": "x"}
    spans = {"rows": passed + bad, "passed": passed, "passed_bytes": 10 * passed, "fingerprint": ""}
    return {
        **spans,
        "dropped": {"not UTF-8": bad} if bad else {},
        "examples": [example] * min(bad, bad_documents.EXAMPLES),
    }


def _sources(*limits: int | None) -> Any:
    values = [{"kind": "text", "path": "a", **({"limit": limit} if limit else {})} for limit in limits]
    return Corpus.of({"sources": values}).sources


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2]])
def test_splits_behind_a_limit_do_not_count_however_many_were_read(order: list[int]) -> None:
    scan = ScanProgress(_splits((0,), (0,), (0,), (0, 1)), _sources(25, None), 0.5)
    for number in order:
        scan.add(number, [_facts(20)] * (2 if number == 3 else 1))
    assert [found.split.number for found in scan.used] == [0, 1, 3]


def test_a_source_at_its_limit_gets_no_more_reads() -> None:
    scan = ScanProgress(_splits((0,), (0,), (0,), (1,), (0, 1)), _sources(25, None), 0.5)
    asked = []
    for unit in scan.pending():
        asked.append(unit.payload.number)
        scan.add(unit.payload.number, [_facts(20)] * len(unit.payload.spans))
    assert asked == [0, 1, 3, 4]
    assert [found.split.number for found in scan.used] == asked


def _add_all(scan: ScanProgress, facts: list[dict[str, Any]], order: list[int]) -> None:
    for number in order:
        scan.add(number, [facts[number]])


def test_a_slow_piece_of_a_limited_source_does_not_let_all_the_others_be_read() -> None:
    scan = ScanProgress(_splits(*[(0,)] * 50), _sources(25), 0.5)
    asked = []
    for unit in scan.pending():
        asked.append(unit.payload.number)
        if unit.payload.number:
            scan.add(unit.payload.number, [_facts(20)])
    assert asked == [0, 1, 2]
    scan.add(0, [_facts(4)])
    assert [found.split.number for found in scan.used] == [0, 1, 2]


def test_splits_an_earlier_attempt_has_read_further_on_do_not_replace_those_before_them() -> None:
    scan = ScanProgress(_splits(*[(0,)] * 6), _sources(50), 0.5)
    for number in (1, 4, 5):
        scan.add(number, [_facts(20)])
    asked = []
    for unit in scan.pending():
        asked.append(unit.payload.number)
        scan.add(unit.payload.number, [_facts(20)])
    assert asked == [0, 2]
    assert [found.split.number for found in scan.used] == [0, 1, 2]


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0]])
def test_too_many_bad_documents_in_a_row_of_splits_stop_a_run(order: list[int]) -> None:
    scan = ScanProgress(_splits((0,), (0,), (0,)), _sources(None), 0.02)
    facts = [_facts(1_000, bad=15), _facts(1_000, bad=30), _facts(100_000)]
    bad = r"45 of the first 2,045 documents are bad \(45 not UTF-8\), more than max_bad_share = 0.02, for example in"
    with pytest.raises(StageError, match=bad):
        _add_all(scan, facts, order)


def test_few_bad_documents_do_not_stop_a_run() -> None:
    bad_documents.check_bad_share(read=11, bad={"empty": bad_documents.ALWAYS_TOLERATED}, share=0.0, examples=[])
    with pytest.raises(StageError, match="11 of the first 11 documents are bad"):
        bad_documents.check_bad_share(
            read=11, bad={"empty": bad_documents.ALWAYS_TOLERATED + 1}, share=0.5, examples=[]
        )
