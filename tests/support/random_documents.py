"""Documents of random words with Wikipedia's lengths, for benchmarks: packed into rows, or padded in batches.

Both forms contain the same words. Lengths are those of 3,279 Wikipedia paragraphs of at least nine word pieces, which a
log-normal fits (mean of the logarithms 4.34, deviation 0.75: half of the paragraphs are shorter than 77 pieces).
"""

import string
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from tokens_artifact import write_rows
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from cluster.artifacts import artifact
from cluster.tokens import rows
from cluster.tokens.tokenizer import vocabulary_digest

I64 = npt.NDArray[np.int64]

LENGTHS = "document lengths log-normal (4.34, 0.75) as Wikipedia's paragraphs, cut to the row length"
PAD, UNK, CLS, SEP, MASK = range(5)
_SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_MU, _SIGMA = 4.34, 0.75
_SHORTEST = 9
# Lengths that go into one batch differ by less than this (original code: GroupedBatchSampler, bins of four).
_BIN = 4


def draw(tokens: int, vocab_size: int, seed: int = 0) -> list[I64]:
    """Documents with at least ``tokens`` word pieces in total."""
    choice = np.random.default_rng(seed)
    found: list[I64] = []
    total = 0
    while total < tokens:
        length = max(_SHORTEST, round(choice.lognormal(_MU, _SIGMA)))
        found.append(choice.integers(len(_SPECIALS), vocab_size, length))
        total += length
    return found


def packed(documents: list[I64], seq_len: int) -> I64:
    """Full rows ``[rows, seq_len]``: [CLS] first, [SEP] after every document; an unfilled last row is dropped."""
    stream = np.concatenate([part for document in documents for part in (document, [SEP])])
    width = seq_len - 1
    body = stream[: len(stream) // width * width].reshape(-1, width)
    return np.hstack([np.full((len(body), 1), CLS), body])


@dataclass(frozen=True)
class Padded:
    """A padded batch."""

    input_ids: Tensor
    """``[rows, longest]``"""
    lengths: Tensor

    @property
    def tokens(self) -> int:
        """Tokens that are not padding."""
        return int(self.lengths.sum())


def padded(documents: list[I64], seq_len: int, tokens_per_batch: int) -> list[Padded]:
    """Batches of rows of similar length, ``tokens_per_batch`` on average, a fixed number of rows each, shortest first.

    Documents longer than a row become several rows, each with its [CLS] and [SEP]; every token is used.
    """
    width = seq_len - 2
    parts = [document[start : start + width] for document in documents for start in range(0, len(document), width)]
    sequences = [np.concatenate([[CLS], part, [SEP]]) for part in parts]
    mean = sum(map(len, sequences)) / len(sequences)
    size = max(1, round(tokens_per_batch / mean))
    bins: dict[int, list[I64]] = {}
    for sequence in sequences:
        bins.setdefault(-(-len(sequence) // _BIN), []).append(sequence)
    grouped = [sequence for _, group in sorted(bins.items()) for sequence in group]
    return [_padded(grouped[start : start + size]) for start in range(0, len(grouped) - size + 1, size)]


def _padded(sequences: list[I64]) -> Padded:
    longest = max(map(len, sequences))
    table = np.full((len(sequences), longest), PAD)
    for row, sequence in zip(table, sequences, strict=True):
        row[: len(sequence)] = sequence
    return Padded(torch.from_numpy(table), torch.tensor([len(sequence) for sequence in sequences]))


def tokenizer(folder: Path, vocab_size: int) -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer of ``vocab_size`` invented words, saved into ``folder``."""
    letters = string.ascii_lowercase
    words = [*_SPECIALS, *letters, *(f"##{letter}" for letter in letters)]
    words += [f"w{number}" for number in range(vocab_size - len(words))]
    core = Tokenizer(
        models.WordPiece({word: number for number, word in enumerate(words[:vocab_size])}, unk_token="[UNK]")
    )
    core.normalizer = normalizers.BertNormalizer()
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    made = PreTrainedTokenizerFast(tokenizer_object=core, **dict(zip(names, _SPECIALS, strict=True)))
    made.save_pretrained(folder)
    return made


def tokens_artifact(folder: Path, table: I64, vocab_size: int, heldout: int = 8) -> Path:
    """A tokens artifact of the rows ``table``; the first ``heldout`` rows are held out. At most 65,536 words."""
    seq_len = table.shape[1]
    with artifact.create(folder, kind="tokens", inputs={}, recipe={}) as draft:
        for part, taken in ((rows.HELDOUT, table[:heldout]), (rows.TRAIN, table[heldout:])):
            write_rows(
                draft.path / f"{part}-00000.arrow",
                [taken.astype(np.uint16)],
                seq_len=seq_len,
                vocab_size=vocab_size,
            )
        np.save(draft.path / rows.COUNTS, np.bincount(table[heldout:].reshape(-1), minlength=vocab_size))
        made = tokenizer(draft.path, vocab_size)
        draft.facts.update(
            vocab_size=vocab_size,
            seq_len=seq_len,
            train_rows=len(table) - heldout,
            mask_id=MASK,
            pad_id=PAD,
            special_ids=list(range(len(_SPECIALS))),
            vocabulary=vocabulary_digest(made),
        )
    return folder
