"""When a model knows hardly more than word counts."""

import pytest

from cluster.tokens.word_count_gain import knows_little, saved_percent, warning


def test_a_model_that_saves_less_than_a_tenth_of_the_nats_is_named() -> None:
    line = warning("the teacher", 6.31, 6.37)
    assert line is not None
    assert line.startswith(
        "the teacher knows hardly more than word counts: 6.31 nats on hidden words, counts alone have"
    )
    assert "6.37" in line
    assert saved_percent(6.31, 6.37) == pytest.approx(0.94, abs=0.01)
    assert knows_little(9.0, 6.37)


def test_a_model_that_reads_its_rows_is_not() -> None:
    assert warning("the teacher", 4.45, 7.62) is None
    assert not knows_little(4.45, 7.62)


def test_what_was_not_measured_is_not_judged() -> None:
    assert warning("the teacher", None, 6.37) is warning("the teacher", 6.3, None) is None
    assert saved_percent(None, 6.37) is saved_percent(6.3, None) is None
