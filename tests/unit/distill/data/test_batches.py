"""Order and masks: every row once per epoch, the same rows and masks on any layout, correct probabilities."""

import numpy as np
import pytest
import tokens_artifact
import torch

from cluster.tokens.rows import TokenSet, open_tokens
from distill.config import Loss, Masking, Training
from distill.data.batches import BLOCK_BYTES, WINDOW_BLOCKS, Batches, Masker, shuffled, shuffled_in_blocks

SEED = 7
WORDS = Loss(soft=0.0, cosine=0.0)


def training(rows_per_step: int = 24, seed: int = SEED, **values: object) -> Training:
    return Training(steps=1, rows_per_step=rows_per_step, seed=seed, **values)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> TokenSet:
    return open_tokens(tokens_artifact.make(tmp_path_factory.mktemp("batches")))


def test_an_epoch_sees_every_row_once_and_two_epochs_differ() -> None:
    for size in (1, 2, 3, 16, 17, 1000, 4097):
        first, second = (shuffled(np.arange(size), size, SEED, epoch) for epoch in (0, 1))
        assert sorted(first) == list(range(size))
        assert size < 16 or (first != second).any()


def test_the_order_is_not_the_rows_own() -> None:
    order = shuffled(np.arange(10_000), 10_000, SEED, 0)
    assert abs(np.corrcoef(np.arange(10_000), order)[0, 1]) < 0.05
    assert len(np.unique(np.diff(order))) > 5_000


@pytest.mark.parametrize("block", [1, 7, 100])
def test_an_epoch_in_blocks_sees_every_row_once_and_two_epochs_differ(block: int) -> None:
    for size in (1, 2, 31, 100, 224, 3200, 3201, 10_007):
        first, second = (shuffled_in_blocks(np.arange(size), size, block, SEED, epoch) for epoch in (0, 1))
        assert sorted(first) == list(range(size))
        assert size < 16 or (first != second).any()


def test_rows_in_blocks_come_from_few_places_at_a_time_and_from_everywhere_in_the_end() -> None:
    size, block = 1_000_000, 1000
    order = shuffled_in_blocks(np.arange(size), size, block, SEED, 0)
    window = order[: block * WINDOW_BLOCKS]
    # Blocks may begin anywhere, so each touches two ranges of a thousand rows.
    assert len(np.unique(window // block)) <= 2 * WINDOW_BLOCKS
    assert len(np.unique(order[:: block * WINDOW_BLOCKS] // (size // 10))) > 5
    # One step already has rows of nearly every block of its window, in random order.
    assert len(np.unique(order[:200] // block)) > WINDOW_BLOCKS
    assert abs(np.corrcoef(np.arange(len(window)), window)[0, 1]) < 0.05
    other = shuffled_in_blocks(np.arange(size), size, block, SEED, 1)
    assert len(np.intersect1d(window, other[: len(window)])) < len(window) / 5


def test_a_run_in_blocks_resumes_from_its_step_alone(tokens: TokenSet) -> None:
    """The order follows the formula, in whole or in parts, across epochs."""
    blocks = training(50, order="blocks")
    batches = Batches(tokens.train, Masker(tokens, blocks), blocks)
    size, block = len(tokens.train), BLOCK_BYTES // tokens.train.row_bytes
    epochs = [shuffled_in_blocks(np.arange(size), size, block, SEED, epoch) for epoch in range(3)]
    first_step, count = size // 50, 3
    parts = [
        batches.rows(step, first, 10)[0] for step in range(first_step, first_step + count) for first in range(0, 50, 10)
    ]
    np.testing.assert_array_equal(np.concatenate(parts), np.concatenate(epochs)[first_step * 50 :][: 50 * count])


def test_the_order_is_part_of_what_is_trained() -> None:
    assert training().identity() != training(order="blocks").identity()


def test_any_number_of_workers_sees_the_same_rows_with_the_same_masks(tokens: TokenSet) -> None:
    batches = Batches(tokens.train, Masker(tokens, training()), training())
    whole = batches.take(step=5, first=0, count=24)
    for size in (1, 3, 8):
        parts = [batches.take(step=5, first=first, count=size) for first in range(0, 24, size)]
        assert torch.equal(torch.cat([part.input_ids for part in parts]), whole.input_ids)
        assert torch.equal(torch.cat([part.labels for part in parts]), whole.labels)


def test_a_step_may_straddle_epochs(tokens: TokenSet) -> None:
    rows = len(tokens.train)
    batches = Batches(tokens.train, Masker(tokens, training()), training(rows - 1))
    straddling = batches.take(step=1, first=0, count=rows - 1)
    assert len(straddling.input_ids) == rows - 1


def test_masks_of_a_row_change_from_epoch_to_epoch(tokens: TokenSet) -> None:
    masker = Masker(tokens, training(loss=WORDS))
    rows = np.zeros(50, dtype=np.int64)
    masked = masker.mask(tokens.train.take(rows), rows, np.arange(50))
    assert len({tuple(row) for row in masked.positions.reshape(50, -1).numpy() % tokens.seq_len}) > 40


def test_every_row_has_the_same_number_of_labels_and_special_tokens_have_none(tokens: TokenSet) -> None:
    masker = Masker(tokens, training(loss=WORDS))
    rows = np.arange(len(tokens.train))
    plain = tokens.train.take(rows)
    batch = masker.mask(plain, rows, np.zeros_like(rows))
    per_row = round(0.15 * tokens.seq_len)
    assert batch.positions.shape == (len(rows) * per_row,)
    assert (np.bincount(batch.positions.numpy() // tokens.seq_len, minlength=len(rows)) == per_row).all()
    assert not np.isin(batch.labels.numpy(), tokens.special_ids).any()
    np.testing.assert_array_equal(plain.reshape(-1)[batch.positions.numpy()], batch.labels.numpy())
    untouched = np.ones(plain.size, dtype=bool)
    untouched[batch.positions.numpy()] = False
    np.testing.assert_array_equal(plain.reshape(-1)[untouched], batch.input_ids.reshape(-1).numpy()[untouched])


def test_chosen_words_are_shown_as_mask_random_word_or_themselves(tokens: TokenSet) -> None:
    masker = Masker(tokens, training(loss=WORDS))
    rows = np.repeat(np.arange(len(tokens.train)), 8)
    epochs = np.tile(np.arange(8), len(tokens.train))
    batch = masker.mask(tokens.train.take(rows), rows, epochs)
    shown, labels = batch.input_ids.reshape(-1)[batch.positions].numpy(), batch.labels.numpy()
    masked, kept = shown == tokens.mask_id, shown == labels
    assert masked.mean() == pytest.approx(0.8, abs=0.01)
    assert kept.mean() == pytest.approx(0.1, abs=0.01)
    random = shown[~masked & ~kept]
    assert len(random) / len(shown) == pytest.approx(0.1, abs=0.01)
    # Drawn from the whole vocabulary, not from the words of the text.
    assert len(np.unique(random)) > 0.9 * tokens.vocab_size


@pytest.mark.parametrize("smoothing", [0.0, 0.7])
def test_words_are_chosen_as_often_as_by_the_naive_draw(tokens: TokenSet, smoothing: float) -> None:
    """Compare with ``torch.multinomial`` on the probabilities of the original code, row by row."""
    row = tokens.train.take(np.array([3]))
    draws = 20_000
    masker = Masker(tokens, training(loss=WORDS, masking=Masking(smoothing=smoothing)))
    epochs = np.arange(draws)
    batch = masker.mask(np.repeat(row, draws, axis=0), np.full(draws, 3), epochs)
    ours = np.bincount(batch.positions.numpy() % tokens.seq_len, minlength=tokens.seq_len) / draws

    chances = np.maximum(tokens.counts, 1).astype(np.float64) ** -smoothing
    chances[list(tokens.special_ids)] = 0
    weights = torch.from_numpy(chances[row[0]]).expand(draws, -1)
    torch.manual_seed(0)
    drawn = torch.multinomial(weights, masker.labels_per_row, replacement=False)
    naive = np.bincount(drawn.numpy().reshape(-1), minlength=tokens.seq_len) / draws
    # Three standard errors of the difference of two such frequencies are 0.015 at most.
    np.testing.assert_allclose(ours, naive, atol=0.015)
    assert ours[0] == 0


def test_other_seeds_give_other_masks_and_orders(tokens: TokenSet) -> None:
    first, second = (
        Batches(tokens.train, Masker(tokens, training(16, seed)), training(16, seed)).take(0, 0, 16) for seed in (1, 2)
    )
    assert not torch.equal(first.input_ids, second.input_ids)
    assert not torch.equal(first.positions, second.positions)


@pytest.mark.parametrize("seq_len", [32])
def test_soft_targets_are_compared_where_the_recipe_says(tokens: TokenSet, seq_len: int) -> None:
    """Labels come first, then all other positions, none, or a sample: the same number in every row, without repeats."""
    labels = round(0.15 * seq_len)
    rows = np.arange(200)
    wanted = {"all": seq_len - labels, "masked": 0, "sampled": round(0.25 * (seq_len - labels))}
    for kind, others in wanted.items():
        masker = Masker(tokens, training(loss=Loss(soft_positions=kind, soft_sample=0.25)))  # type: ignore[arg-type]
        batch = masker.mask(tokens.train.take(rows), rows, np.zeros_like(rows))
        assert len(batch.labels) == 200 * labels
        assert len(batch.positions) == 200 * (labels + others)
        assert len(batch.positions.unique()) == len(batch.positions)
        assert (np.bincount(batch.positions.numpy() // seq_len) == labels + others).all()
        plain = masker.mask(tokens.train.take(rows), rows, np.zeros_like(rows))
        assert torch.equal(plain.positions, batch.positions)


def test_sampled_positions_change_from_epoch_to_epoch_and_are_even(tokens: TokenSet) -> None:
    masker = Masker(tokens, training(loss=Loss(soft_positions="sampled", soft_sample=0.2)))
    rows, epochs = np.zeros(4000, dtype=np.int64), np.arange(4000)
    batch = masker.mask(tokens.train.take(rows), rows, epochs)
    positions = batch.positions.numpy() % tokens.seq_len
    labels, others = (np.bincount(part, minlength=tokens.seq_len) for part in np.split(positions, [len(batch.labels)]))
    free = tokens.seq_len - round(0.15 * tokens.seq_len)
    np.testing.assert_allclose(others / (4000 - labels), round(0.2 * free) / free, atol=0.03)


def test_rows_of_a_batch_can_be_named(tokens: TokenSet) -> None:
    batches = Batches(tokens.train, Masker(tokens, training()), training())
    rows, epochs = batches.rows(step=3, first=4, count=8)
    again = Masker(tokens, training()).mask(tokens.train.take(rows), rows, epochs)
    assert torch.equal(again.input_ids, batches.take(step=3, first=4, count=8).input_ids)
