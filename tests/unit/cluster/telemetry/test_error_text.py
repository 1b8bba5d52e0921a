"""One-line forms of an exception's message."""

import pytest

from cluster.telemetry.error_text import first_line, last_line, one_line


@pytest.mark.parametrize(
    ("message", "first", "whole"),
    [
        ("\n  no such bucket.\n  try again.", "no such bucket", "no such bucket. try again"),
        ("", "ValueError", "ValueError"),
        ("x" * 400, "x" * 300, "x" * 400),
    ],
)
def test_a_message_on_one_line(message: str, first: str, whole: str) -> None:
    assert (first_line(ValueError(message)), one_line(ValueError(message))) == (first, whole)


def test_the_last_line_is_not_blank() -> None:
    assert last_line("starting\n  no device \n\n", "nothing") == "no device"
    assert last_line(" \n", "nothing") == "nothing"
