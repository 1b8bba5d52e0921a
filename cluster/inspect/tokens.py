"""Tokens: decoded rows, the frequencies of the vocabulary, and duplicated or invalid rows.

Token counts cover all training rows; statistics of rows cover the part that :mod:`cluster.inspect.token_rows` reads.
"""

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from cluster.artifacts.artifact import Artifact
from cluster.inspect.findings import (
    Bars,
    Block,
    Curves,
    Findings,
    Histogram,
    Pairs,
    Sample,
    Section,
    Table,
    evenly,
    fact,
)
from cluster.inspect.token_rows import RowSet, look
from cluster.storage import filesystem
from cluster.telemetry.formatting import count, file_size, share
from cluster.tokens import rows

_SHOWN = 20
_RARE = 24
_UNKNOWN, _REPEATED, _NEVER = 0.005, 0.001, 0.5
"""Shares of unknown tokens, repeated rows and unused vocabulary that are worth a remark."""
_MEANINGS = {
    "unk": "text the tokenizer has no word for",
    "cls": "start of a row",
    "sep": "end of a document",
    "mask": "only training inserts it",
    "pad": "rows are full and need none",
}
_OCCURRENCES = {"never": 0, "1 to 9": 1, "10 to 99": 10, "100 to 999": 100, "1,000 to 9,999": 1000}
_OCCURRENCES["10,000 and more"] = 10_000


def inspect(found: Artifact, num_samples: int) -> Findings:
    """View of a tokens artifact."""
    with filesystem.local(found.location / "tokenizer.json") as path:
        tokenizer = Tokenizer.from_file(str(path))
    with filesystem.local(found.location / rows.COUNTS) as path:
        counts = np.load(path, allow_pickle=False)
    train, heldout = (look(found, part, num_samples) for part in (rows.TRAIN, rows.HELDOUT))
    shared = int(np.isin(heldout.unique, train.unique).sum())
    sections = [
        _documents(found, train, heldout, shared),
        _vocabulary(found, counts, tokenizer),
        Section("ROWS", [_sample(sample, found, tokenizer) for sample in train.samples[:num_samples]]),
    ]
    return Findings(remarks=_remarks(found, counts, train, heldout, shared), sections=sections)


def _documents(found: Artifact, train: RowSet, heldout: RowSet, shared: int) -> Section:
    facts, seq_len, num_bytes = found.facts, int(found.facts["seq_len"]), fact(found, "bytes")
    train_tokens, heldout_tokens = (facts[key] * seq_len for key in ("train_rows", "heldout_rows"))
    tokens = train_tokens + heldout_tokens
    partial = "" if train.whole else ", in the part that was read"
    entries = [
        ("training rows", f"{facts['train_rows']:,} of {seq_len} tokens: {count(train_tokens)} tokens"),
        ("held-out rows", f"{facts['heldout_rows']:,} ({share(heldout_tokens, tokens)} of the tokens)"),
        ("documents", f"{facts['documents']:,}, of which {facts['heldout_documents']:,} held out"),
        ("text", f"{file_size(num_bytes)}, {num_bytes / tokens:.2f} bytes a token"),
        ("left out", ", ".join(f"{n:,} {key.replace('_', ' ')}" for key, n in fact(found, "dropped").items())),
        ("repeated rows", f"{_of(train.repeated, train)}; held out {_of(heldout.repeated, heldout)}"),
        ("held out and in training", f"{_of(shared, heldout)} rows{partial}"),
    ]
    blocks: list[Block] = [Pairs(entries)]
    if train.lengths:
        lengths = np.array(train.lengths)
        fitting = share(int((lengths <= seq_len).sum()), len(lengths))
        note = f"median {int(np.median(lengths)):,}, longest {int(lengths.max()):,}, {fitting} fit a row"
        blocks.append(Histogram.of("Documents by length in tokens", "tokens", {"documents": train.lengths}, note))
    looked = "all rows" if train.whole else f"{train.rows:,} training rows, evenly spread"
    return Section("DOCUMENTS", blocks, f"Lengths and repetitions are those of {looked}.")


def _of(number: int, part: RowSet) -> str:
    return f"{number:,} of {part.rows:,}" + (f" ({share(number, part.rows)})" if number else "")


def _vocabulary(found: Artifact, counts: npt.NDArray[np.int64], tokenizer: Tokenizer) -> Section:
    total, special = int(counts.sum()), [int(number) for number in found.facts["special_ids"]]
    used = np.argsort(-counts, kind="stable")[: int((counts > 0).sum())]
    words = [number for number in used.tolist() if number not in special]
    rank = np.arange(1, len(used) + 1, dtype=np.float64)
    frequent = {_token(tokenizer, number): 100 * counts[number] / total for number in words[:_SHOWN]}
    entries = [
        ("vocabulary", f"{len(counts):,} entries, {len(counts) - len(used):,} of which never occur"),
        *((_token(tokenizer, number), _special(found, number, int(counts[number]), total)) for number in special),
        ("rarest", _rarest(counts, words, tokenizer)),
    ]
    numbers = np.histogram(counts, [*_OCCURRENCES.values(), np.iinfo(np.int64).max])[0].tolist()
    by_occurrence = [(name, f"{n:,}", share(n, len(counts))) for name, n in zip(_OCCURRENCES, numbers, strict=True)]
    curve = {"tokens": (rank, counts[used].astype(np.float64))}
    blocks: list[Block] = [
        Pairs(entries),
        Bars("Most frequent tokens", "% of the tokens", frequent, "{:.2f} %".format),
        Curves("Occurrences by rank", "rank", curve, logarithmic="both"),
        Table(("occurrences", "entries", "share"), by_occurrence),
    ]
    return Section("TOKENS", blocks)


def _rarest(counts: npt.NDArray[np.int64], words: list[int], tokenizer: Tokenizer) -> str:
    if not words:
        return "all tokens are special tokens"
    least = [number for number in words if counts[number] == counts[words[-1]]]
    some = "  ".join(_token(tokenizer, number) for number in evenly(least, _RARE))
    return f"{len(least):,} that occur {counts[least[0]]:,}×: {some}"


def _special(found: Artifact, number: int, occurrences: int, total: int) -> str:
    meanings = (meaning for name, meaning in _MEANINGS.items() if found.facts[f"{name}_id"] == number)
    return f"{count(occurrences)} ({share(occurrences, total)}): {next(meanings, 'special')}"


def _sample(sample: tuple[int, str, npt.NDArray[np.int64]], found: Artifact, tokenizer: Tokenizer) -> Sample:
    """A row as text, special tokens by name."""
    _, where, ids = sample
    special = np.isin(ids, found.facts["special_ids"])
    spans: list[tuple[str, bool]] = []
    for run in np.split(ids, np.flatnonzero(np.diff(special)) + 1):
        if np.isin(run[0], found.facts["special_ids"]):
            spans += ((_token(tokenizer, number), True) for number in run.tolist())
        else:
            spans.append((tokenizer.decode(run.tolist(), skip_special_tokens=False), False))
    return Sample(where, spans)


def _token(tokenizer: Tokenizer, number: int) -> str:
    return str(tokenizer.id_to_token(number) or f"#{number}")


def _remarks(found: Artifact, counts: npt.NDArray[np.int64], train: RowSet, heldout: RowSet, shared: int) -> list[str]:
    facts, remarks = found.facts, []
    total, unk = int(counts.sum()), facts["unk_id"]
    if total != (tokens := facts["train_rows"] * facts["seq_len"]):
        remarks.append(f"{rows.COUNTS} counts {total:,} tokens, the rows have {tokens:,}")
    if unk is not None and counts[unk] > _UNKNOWN * total:
        unknown = share(int(counts[unk]), total)
        remarks.append(f"{unknown} of the tokens are unknown to the tokenizer: is it the right one for this text?")
    if foreign := train.foreign + heldout.foreign:
        remarks.append(f"{foreign:,} rows do not begin with the start token or have ids outside the vocabulary")
    if train.repeated > _REPEATED * train.rows:
        remarks.append(f"{_of(train.repeated, train)} training rows repeat another one: the corpus repeats itself")
    if shared > _REPEATED * heldout.rows:
        remarks.append(f"{_of(shared, heldout)} held-out rows are training rows as well: validation is contaminated")
    if (never := int((counts == 0).sum())) > _NEVER * len(counts):
        remarks.append(f"{share(never, len(counts))} of the vocabulary never occur: little text, or a wrong tokenizer")
    if failed := fact(found, "dropped")["failed_documents"]:
        remarks.append(f"the tokenizer failed on {failed:,} documents")
    return remarks
