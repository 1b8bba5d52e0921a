"""Tokens and teacher artifacts for tests of training, made in a second without Ray."""

import random
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import tiny

from cluster.artifacts import artifact
from cluster.tokens import rows
from cluster.tokens.tokenizer import load_tokenizer, special_ids, vocabulary_digest, vocabulary_size

SEQ_LEN = 32


def make(folder: Path, *, documents: int = 1200, heldout: int = 40) -> Path:
    """A tokens artifact of recombined sentences, and next to it ``teacher``, a BERT of four layers."""
    model = tiny.bert_teacher(folder / "bert", layers=4)
    tokens = of_length(folder / "tokens", model, SEQ_LEN, documents, heldout)
    tokenizer = load_tokenizer(model)
    with artifact.create(folder / "teacher", kind="teacher", inputs={}, recipe={}) as draft:
        for file in model.iterdir():
            shutil.copy(file, draft.path)
        draft.facts.update(vocabulary=vocabulary_digest(tokenizer), layers=4)
    return tokens


def of_length(out: Path, model: Path, seq_len: int, documents: int = 1200, heldout: int = 40) -> Path:
    """Rows of ``seq_len`` tokens, encoded with the tokenizer in ``model``."""
    tokenizer = load_tokenizer(model)
    special = special_ids(tokenizer)
    choice = random.Random(5)
    stream: list[int] = []
    for _ in range(documents):
        stream += [*tokenizer.encode(choice.choice(tiny.ENGLISH), add_special_tokens=False), special.sep]
    count = len(stream) // (seq_len - 1)
    packed = np.array(stream[: count * (seq_len - 1)]).reshape(count, seq_len - 1)
    table = np.hstack([np.full((count, 1), special.cls), packed])
    size = vocabulary_size(tokenizer)
    with artifact.create(out, kind="tokens", inputs={}, recipe={}) as draft:
        for part, taken in ((rows.HELDOUT, table[:heldout]), (rows.TRAIN, table[heldout:])):
            write_rows(draft.path / f"{part}-00000.arrow", [taken], seq_len=seq_len, vocab_size=size)
        np.save(draft.path / rows.COUNTS, np.bincount(table[heldout:].reshape(-1), minlength=size))
        tokenizer.save_pretrained(draft.path)
        draft.facts.update(
            vocab_size=size,
            seq_len=seq_len,
            train_rows=count - heldout,
            heldout_rows=heldout,
            documents=documents,
            heldout_documents=0,
            bytes=4 * len(stream),
            dropped={"failed_documents": 0, "tail_tokens": 0, "special_rows": 0},
            cls_id=special.cls,
            sep_id=special.sep,
            unk_id=special.unk,
            mask_id=special.mask,
            pad_id=special.pad,
            special_ids=list(special.all),
            vocabulary=vocabulary_digest(tokenizer),
        )
    return out


def write_rows(path: Path, batches: Iterable[rows.Tokens], *, seq_len: int, vocab_size: int) -> None:
    """Write batches ``[rows, seq_len]`` of token ids to one file."""
    with rows.row_writer(path, seq_len, vocab_size) as write:
        for batch in batches:
            write(batch)
