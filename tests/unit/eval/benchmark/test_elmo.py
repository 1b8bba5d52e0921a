"""ELMo: its published size, its parts against plain references, and the context of its word vectors."""

import pytest
import torch
from torch import nn

from eval.benchmark.elmo import (
    ALPHABET,
    PADDING,
    ClippedLstm,
    Elmo,
    ElmoPairs,
    ElmoSizes,
    character_ids,
    encode,
    words_of,
)

SMALL = ElmoSizes(
    character=4, filters=((1, 3), (2, 5)), highways=1, projection=6, cell=10, hidden=7, characters=8, words=5
)


def parameters(module: nn.Module) -> int:
    return sum(each.numel() for each in module.parameters())


@pytest.fixture
def pairs() -> ElmoPairs:
    torch.manual_seed(0)
    return ElmoPairs(SMALL).eval()


def test_the_published_sizes_are_the_papers_180_million() -> None:
    with torch.device("meta"):
        model = ElmoPairs(ElmoSizes())
    words, both = parameters(model.elmo.words), parameters(model.elmo)
    assert [round(each / 1e6, 1) for each in (words, both - words, both)] == [18.0, 75.6, 93.6]
    assert round(parameters(model.reader) / 1e6, 1) == 84.3
    assert round(parameters(model) / 1e6) == 178


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_a_layer_is_an_lstm_with_projection_where_nothing_is_clipped() -> None:
    torch.manual_seed(0)
    ours, theirs = ClippedLstm(6, 10), nn.LSTM(6, 10, proj_size=6)
    with torch.no_grad():
        ours.inputs.weight.copy_(theirs.weight_ih_l0)
        ours.state.weight.copy_(theirs.weight_hh_l0)
        ours.state.bias.copy_(theirs.bias_ih_l0 + theirs.bias_hh_l0)
        ours.projection.weight.copy_(theirs.weight_hr_l0)
        given = torch.randn(9, 6)
        torch.testing.assert_close(ours(given), theirs(given)[0])


def test_cell_and_output_are_clipped() -> None:
    layer = ClippedLstm(1, 1)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.fill_(50.0)
        # All gates open: the cell would count the words, 1, 2, 3, 4, 5.
        output = layer(torch.ones(5, 1))
        assert output.tolist() == [[3.0]] * 5
        layer.projection.weight.fill_(1.0)
        cells = torch.atanh(layer(torch.ones(5, 1)).double()).flatten()
    assert cells.tolist() == pytest.approx([1, 2, 3, 3, 3], rel=1e-3)


def test_one_half_of_a_words_vector_knows_the_words_before_and_the_other_those_after() -> None:
    torch.manual_seed(0)
    model = Elmo(SMALL).eval()
    with torch.no_grad():
        here, last, first = (
            model(character_ids(text.split(), SMALL.characters)) for text in ("a b c d", "a b c x", "x b c d")
        )
    width = SMALL.projection
    assert here.shape == (4, 2 * width)
    torch.testing.assert_close(last[:3, :width], here[:3, :width])
    assert (last[:3, width:] - here[:3, width:]).abs().amax(dim=1).min() > 0
    torch.testing.assert_close(first[1:, width:], here[1:, width:])
    assert (first[1:, :width] - here[1:, :width]).abs().amax(dim=1).min() > 0


def test_a_words_own_vector_does_not_depend_on_the_padding_beyond_its_longest_filter() -> None:
    torch.manual_seed(0)
    model = Elmo(SMALL).eval()
    with torch.no_grad():
        short, long = (model.words(character_ids(["ab"], characters)) for characters in (8, 20))
    torch.testing.assert_close(short, long)


def test_characters_are_bytes_between_marks() -> None:
    ids = character_ids(["a", "é", "abcdefgh"], 8)
    a, pad = ord("a") + 1, PADDING
    assert ids.tolist() == [
        [259, 257, 260, pad, pad, pad, pad, pad],
        [259, a, 260, pad, pad, pad, pad, pad],
        [259, 0xC3 + 1, 0xA9 + 1, 260, pad, pad, pad, pad],
        [259, a, a + 1, a + 2, a + 3, a + 4, a + 5, 260],
        [259, 258, 260, pad, pad, pad, pad, pad],
    ]
    assert ids.max() < ALPHABET


def test_words_and_marks_of_punctuation_are_apart_and_the_rest_is_cut() -> None:
    assert "|".join(words_of("A man isn't playing, he's singing.", 40)) == "A|man|isn't|playing|,|he's|singing|."
    assert words_of("one two three", 2) == ["one", "two"]


def test_a_pair_is_scored_from_both_sentences_their_difference_and_their_product(pairs: ElmoPairs) -> None:
    with torch.no_grad():
        given = encode("A river carries sand.", "Rain fell all night long, again", SMALL)
        assert [len(ids) for ids in given] == [5 + 2, 5 + 2]
        (u, _), (v, _) = (pairs.reader(pairs.elmo(ids)) for ids in given)
        u, v = u.max(dim=0).values, v.max(dim=0).values
        wanted = pairs.score.weight @ torch.cat([u, v, (u - v).abs(), u * v]) + pairs.score.bias
        torch.testing.assert_close(pairs(*given), wanted)
        assert pairs(*encode("", "word", SMALL)).isfinite().all()


def test_a_filter_wider_than_a_word_is_refused() -> None:
    with pytest.raises(ValueError, match="a filter spans 9 characters, a word has 8"):
        ElmoSizes(filters=((9, 4),), characters=8)
