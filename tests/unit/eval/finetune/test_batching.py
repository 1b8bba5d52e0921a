"""Encoded rows: equal to the tokenizer's, in batches padded to their longest row, in a seeded order."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from eval.finetune.batching import Features, encode, scoring_batches, training_batches


def test_pairs_are_cut_at_the_longer_text_and_carry_types(tmp_path: Path) -> None:
    tokenizer = tiny.wordpiece(tmp_path / "model")
    features = encode(tokenizer, (("the " * 50, "mill"), ("river mill", "river")), max_length=16)
    assert features.lengths.tolist() == [16, 5]
    batch = features.batch(np.array([0, 1]))
    assert tokenizer.decode(batch["input_ids"][0]).endswith("[SEP] river mill [SEP]")
    assert batch["token_type_ids"][1, :5].tolist() == [0, 0, 0, 1, 1]


@pytest.mark.parametrize("build", [tiny.wordpiece, tiny.byte_level], ids=lambda build: build.__name__)
def test_a_batch_is_what_the_tokenizer_pads(build: Any, tmp_path: Path) -> None:
    tokenizer = build(tmp_path / "model")
    texts = tuple(tiny.ENGLISH[:6])
    features = encode(tokenizer, (texts,), max_length=99)
    rows = np.array([4, 0, 5])
    expected = tokenizer(
        [texts[row] for row in rows], truncation=True, max_length=99, padding=True, return_tensors="pt"
    )
    batch = features.batch(rows)
    assert batch.keys() == expected.keys()
    assert all(torch.equal(batch[name], expected[name]) for name in expected)


def test_rows_of_one_length_need_no_mask() -> None:
    features = Features.of([[1, 2], [3, 4], [5]], None, pad=9)
    assert set(features.batch(np.array([1, 0]))) == {"input_ids"}
    padded = features.batch(np.array([0, 2]))
    assert padded["input_ids"].tolist() == [[1, 2], [5, 9]]
    assert padded["attention_mask"].tolist() == [[1, 1], [1, 0]]
    chosen = features.rows(np.array([2, 1]))
    assert chosen.lengths.tolist() == [1, 2]
    assert chosen.batch(np.array([0, 1]))["input_ids"].tolist() == [[5, 9], [3, 4]]


def test_training_batches_are_seeded_shuffles_that_save_padding() -> None:
    lengths = np.random.default_rng(3).integers(5, 128, size=3000)
    batches = training_batches(lengths, 16, seed=1, epoch=0)
    assert sorted(np.concatenate(batches).tolist()) == list(range(3000))
    assert {len(rows) for rows in batches} == {16, 3000 % 16}
    padded = sum(len(rows) * lengths[rows].max() for rows in batches)
    assert padded < 1.1 * sum(lengths)

    def order(seed: int, epoch: int) -> list[int]:
        return np.concatenate(training_batches(lengths, 16, seed, epoch)).tolist()

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(2, 0)
    assert order(1, 0) != order(1, 1)
    # Neither short nor long batches come first.
    firsts = [lengths[rows].max() for rows in batches[: len(batches) // 2]]
    assert 40 < np.mean(firsts) < 95


def test_scoring_batches_see_every_row_once() -> None:
    batches = scoring_batches(np.array([9, 3, 5, 3, 8]), 2)
    assert [rows.tolist() for rows in batches] == [[1, 3], [2, 4], [0]]
