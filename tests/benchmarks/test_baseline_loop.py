"""The baseline loop computes the same losses and gradients as ours on the same words."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from baseline_loop import IGNORED, Masked, UsualLoop, Words
from random_documents import CLS, MASK, PAD, SEP, Padded, draw, packed, padded
from torch.testing import assert_close
from transformers import BertConfig, BertForMaskedLM

from cluster.models.precision import Precision
from distill.config import Loss, Student, Training
from distill.data.batches import Batch
from distill.modeling import student
from distill.modeling.masked_lm import MaskedLM
from distill.train.student_objective import HeadSettings, StudentObjective

VOCABULARY, LENGTH = 320, 24


def teacher() -> Any:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=LENGTH,
    )
    model = BertForMaskedLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def loop(precision: Precision = "fp32", dropout: bool = False) -> UsualLoop:
    training = Training(steps=4, rows_per_step=8, precision=precision, loss=Loss(soft=5.0, masked=2.0, cosine=1.0))
    source = teacher()
    words = Words(torch.ones(VOCABULARY, dtype=torch.long), tuple(range(5)), MASK)
    made = UsualLoop(source, student.make(source, Student(), seed=1), words, training, torch.device("cpu"))
    if not dropout:
        made.student.eval()
    return made


def batches() -> list[Padded]:
    return padded(draw(600, VOCABULARY), LENGTH, tokens_per_batch=4 * LENGTH)


def test_losses_and_gradients_are_ours_on_full_rows() -> None:
    usual = loop()
    rows = torch.from_numpy(packed(draw(200, VOCABULARY), LENGTH)[:4])
    given = usual.mask(Padded(rows, torch.full((4,), LENGTH)))
    labelled = (given.labels != IGNORED).flatten()
    found = usual.losses(given)
    found.total.backward()

    ours = StudentObjective(student.make(usual.teacher, Student(), seed=1), Loss(), HeadSettings("fused", 16)).eval()
    taught = MaskedLM(usual.teacher)
    positions = torch.cat([labelled.nonzero()[:, 0], (~labelled).nonzero()[:, 0]])
    batch = Batch(given.input_ids, positions, given.labels.flatten()[labelled])
    with torch.no_grad():
        outputs = taught(batch.input_ids, batch.positions)
    losses = ours(batch, outputs, taught.projection).losses
    losses.total.backward()

    for term in ("total", "soft", "masked", "cosine"):
        assert_close(getattr(found, term), getattr(losses, term), rtol=1e-5, atol=1e-6, msg=term)
    theirs = dict(usual.student.named_parameters())
    for name, parameter in ours.model.named_parameters():
        assert_close(parameter.grad, theirs[name].grad, rtol=1e-4, atol=1e-6, msg=name)


def test_padding_changes_no_loss() -> None:
    usual = loop()
    given = usual.mask(batches()[0])
    wider = Masked(
        *(torch.nn.functional.pad(part, (0, 1), value=fill) for part, fill in _parts(given, (PAD, False, IGNORED)))
    )
    found, padded_more = usual.losses(given), usual.losses(wider)
    for term in dataclasses.fields(found):
        assert_close(getattr(found, term.name), getattr(padded_more, term.name), rtol=1e-5, atol=1e-6)


def _parts(given: Masked, fills: tuple[Any, ...]) -> list[tuple[torch.Tensor, Any]]:
    return list(zip((given.input_ids, given.attention_mask, given.labels), fills, strict=True))


def test_masks_hide_a_seventh_of_the_words_and_no_padding() -> None:
    usual, batch = loop(), batches()[0]
    given = usual.mask(batch)
    hidden = given.labels != IGNORED
    assert hidden.sum().item() == int(np.ceil(0.15 * batch.tokens))
    assert not (hidden & ~given.attention_mask).any()
    assert (given.labels[hidden] >= 5).all(), "special tokens are never masked"
    assert (given.labels[hidden] == batch.input_ids[hidden]).all()
    assert (given.input_ids[~hidden] == batch.input_ids[~hidden]).all()
    assert (given.input_ids[hidden] == MASK).float().mean() > 0.5


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_student_learns_in_the_baseline_loop(precision: Precision) -> None:
    usual = loop(precision, dropout=True)
    made = batches()
    given = usual.mask(made[0])
    before = usual.losses(given).total.item()
    for _ in range(20):
        usual.step(made[:2], 2, 2e-3)
        assert usual.last is not None
    assert usual.losses(given).total.item() < 0.95 * before


def test_batches_hold_every_word_once_and_little_padding() -> None:
    documents = draw(20_000, VOCABULARY)
    made = padded(documents, LENGTH, tokens_per_batch=4 * LENGTH)
    real = sum(batch.tokens for batch in made)
    table = sum(batch.input_ids.numel() for batch in made)
    words = sum(int((batch.input_ids > MASK).sum()) for batch in made)
    assert real / table > 0.95, "lengths of a batch are similar"
    assert 0.98 * sum(map(len, documents)) < words <= sum(map(len, documents))
    assert all((batch.input_ids != PAD).sum() == batch.tokens for batch in made)


def test_packed_rows_are_full() -> None:
    documents = draw(2_000, VOCABULARY)
    rows = packed(documents, LENGTH)
    assert (rows[:, 0] == CLS).all()
    assert (rows[:, 1:] != CLS).all()
    assert (rows != PAD).all()
    assert abs((rows == SEP).sum() - len(documents)) <= 1
