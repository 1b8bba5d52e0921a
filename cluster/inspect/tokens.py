"""What is in a tokens artifact: rows decoded, the words they are made of, and what should not be there.

Token counts are those of all training rows; what only rows can tell is measured on a part of them
(:mod:`cluster.inspect.token_rows`).
"""

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from cluster.artifacts.artifact import Artifact
from cluster.inspect.findings import Bars, Block, Curves, Findings, Histogram, Pairs, Sample, Section, Table, fact
from cluster.inspect.token_rows import RowSet, evenly, look
from cluster.storage import filesystem
from cluster.telemetry.formatting import count, file_size, share
from cluster.tokens import rows

_SHOWN = 20
_RARE = 24
_UNKNOWN, _REPEATED, _NEVER = 0.005, 0.001, 0.5
"""Shares from which on unknown tokens, repeated rows and words that never occur are worth a remark."""


def inspect(found: Artifact, num_samples: int) -> Findings:
    """All there is to see of a tokens artifact."""
    with filesystem.local(found.location / "tokenizer.json") as path:
        tokenizer = Tokenizer.from_file(str(path))
    with filesystem.local(found.location / rows.COUNTS) as path:
        counts = np.load(path, allow_pickle=False)
    parts = {part: look(found, part, num_samples) for part in (rows.TRAIN, rows.HELDOUT)}
    train, heldout = parts[rows.TRAIN], parts[rows.HELDOUT]
    shared = int(np.isin(heldout.unique, train.unique).sum())
    sections = [
        _documents(found, parts, shared),
        _words(found, counts, tokenizer),
        Section("ROWS", [_shown(sample, found, tokenizer) for sample in train.samples[:num_samples]]),
    ]
    return Findings("", "", "", _remarks(found, counts, parts, shared), sections)


def _documents(found: Artifact, parts: dict[str, RowSet], shared: int) -> Section:
    facts, train, heldout = found.facts, parts[rows.TRAIN], parts[rows.HELDOUT]
    seq_len, dropped = int(facts["seq_len"]), fact(found, "dropped")
    tokens = (facts["train_rows"] + facts["heldout_rows"]) * seq_len
    entries = [
        (
            "training rows",
            f"{facts['train_rows']:,} of {seq_len} tokens: {count(facts['train_rows'] * seq_len)} tokens",
        ),
        (
            "held-out rows",
            f"{facts['heldout_rows']:,} ({share(facts['heldout_rows'] * seq_len, tokens)} of the tokens)",
        ),
        ("documents", f"{facts['documents']:,}, of which {facts['heldout_documents']:,} held out"),
        ("text", f"{file_size(fact(found, 'bytes'))}, {fact(found, 'bytes') / tokens:.2f} bytes a token"),
        ("left out", ", ".join(f"{value:,} {key.replace('_', ' ')}" for key, value in dropped.items())),
        ("repeated rows", f"{_of(train.repeated, train)}; held out {_of(heldout.repeated, heldout)}"),
        (
            "held out and in training",
            f"{_of(shared, heldout)} rows" + ("" if train.whole else ", as far as was looked"),
        ),
    ]
    blocks: list[Block] = [Pairs(entries)]
    if train.lengths:
        lengths = np.array(train.lengths)
        median, longest = int(np.median(lengths)), int(lengths.max())
        note = (
            f"median {median:,}, longest {longest:,}, {share(int((lengths <= seq_len).sum()), len(lengths))} fit a row"
        )
        blocks.append(Histogram.of("Documents by length in tokens", "tokens", {"documents": train.lengths}, note))
    looked = "of all rows" if train.whole else f"of {train.rows:,} training rows, evenly spread"
    return Section("DOCUMENTS", blocks, f"Lengths and repetitions are those {looked}.")


def _of(number: int, part: RowSet) -> str:
    return f"{number:,} of {part.rows:,}" + (f" ({share(number, part.rows)})" if number else "")


def _words(found: Artifact, counts: npt.NDArray[np.int64], tokenizer: Tokenizer) -> Section:
    total, order = int(counts.sum()), np.argsort(-counts, kind="stable")
    special = [int(number) for number in found.facts["special_ids"]]
    used = order[: int((counts > 0).sum())]
    words = [number for number in used.tolist() if number not in special]
    rank = np.arange(1, len(used) + 1, dtype=np.float64)
    often = {_written(tokenizer, number): 100 * counts[number] / total for number in words[:_SHOWN]}
    entries = [
        ("vocabulary", f"{len(counts):,} entries, {len(counts) - len(used):,} of which never occur"),
        *((_written(tokenizer, number), _told(found, number, int(counts[number]), total)) for number in special),
        ("rarest", _rarest(counts, words, tokenizer)),
    ]
    return Section(
        "TOKENS",
        [
            Pairs(entries),
            Bars(
                "Most frequent tokens",
                "% of the tokens",
                often,
                {name: f"{value:.2f} %" for name, value in often.items()},
            ),
            Curves(
                "Occurrences by rank", "rank", {"tokens": (rank, counts[used].astype(np.float64))}, logarithmic="both"
            ),
            Table(("occurrences", "entries", "share"), _by_occurrence(counts), 1),
        ],
    )


def _rarest(counts: npt.NDArray[np.int64], words: list[int], tokenizer: Tokenizer) -> str:
    if not words:
        return "there is nothing but special tokens"
    least = [number for number in words if counts[number] == counts[words[-1]]]
    some = "  ".join(_written(tokenizer, number) for number in evenly(least, _RARE))
    return f"{len(least):,} that occur {counts[least[0]]:,}×: {some}"


def _told(found: Artifact, number: int, occurrences: int, total: int) -> str:
    role = {found.facts[f"{name}_id"]: name for name in ("cls", "sep", "mask", "pad", "unk")}.get(number, "special")
    meaning = {
        "unk": "text the tokenizer has no word for",
        "cls": "a row begins",
        "sep": "a document ends",
        "mask": "put in by training alone",
        "pad": "rows are full and need none",
    }.get(role, role)
    return f"{count(occurrences)} ({share(occurrences, total)}): {meaning}"


def _by_occurrence(counts: npt.NDArray[np.int64]) -> list[tuple[str, str, str]]:
    """Entries of the vocabulary by how often they occur."""
    edges = [0, 1, 10, 100, 1000, 10_000, np.iinfo(np.int64).max]
    names = ("never", "1 to 9", "10 to 99", "100 to 999", "1,000 to 9,999", "10,000 and more")
    numbers = np.histogram(counts, edges)[0].tolist()
    return [(name, f"{number:,}", share(number, len(counts))) for name, number in zip(names, numbers, strict=True)]


def _shown(sample: tuple[int, str, npt.NDArray[np.int64]], found: Artifact, tokenizer: Tokenizer) -> Sample:
    """A row as text, special tokens by name."""
    _, where, ids = sample
    special = np.isin(ids, found.facts["special_ids"])
    borders = np.flatnonzero(np.diff(special)) + 1
    spans: list[tuple[str, bool]] = []
    for run in np.split(ids, borders):
        if np.isin(run[0], found.facts["special_ids"]):
            spans += ((_written(tokenizer, number), True) for number in run.tolist())
        else:
            spans.append((tokenizer.decode(run.tolist(), skip_special_tokens=False), False))
    return Sample(where, spans)


def _written(tokenizer: Tokenizer, number: int) -> str:
    return str(tokenizer.id_to_token(number) or f"#{number}")


def _remarks(found: Artifact, counts: npt.NDArray[np.int64], parts: dict[str, RowSet], shared: int) -> list[str]:
    facts, train, heldout = found.facts, parts[rows.TRAIN], parts[rows.HELDOUT]
    total, unk = int(counts.sum()), facts["unk_id"]
    remarks = []
    if total != facts["train_rows"] * facts["seq_len"]:
        remarks.append(
            f"{rows.COUNTS} counts {total:,} tokens, the rows have {facts['train_rows'] * facts['seq_len']:,}"
        )
    if unk is not None and counts[unk] > _UNKNOWN * total:
        remarks.append(
            f"{share(int(counts[unk]), total)} of the tokens are unknown to the tokenizer: is it the right one for "
            "this text?"
        )
    if foreign := train.foreign + heldout.foreign:
        remarks.append(f"{foreign:,} rows do not begin with the start token or have ids outside of the vocabulary")
    if train.repeated > _REPEATED * train.rows:
        remarks.append(f"{_of(train.repeated, train)} training rows repeat another one: the corpus repeats itself")
    if shared > _REPEATED * heldout.rows:
        remarks.append(f"{_of(shared, heldout)} held-out rows are training rows as well: validation says too much")
    if (never := int((counts == 0).sum())) > _NEVER * len(counts):
        remarks.append(
            f"{share(never, len(counts))} of the vocabulary never occur: little text, or another tokenizer's"
        )
    if fact(found, "dropped")["failed_documents"]:
        remarks.append(f"the tokenizer failed on {facts['dropped']['failed_documents']:,} documents")
    return remarks
