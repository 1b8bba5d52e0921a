"""Charts of values that do not differ."""

from xml.etree import ElementTree

from eval.report.svg import Change, changes


def test_changes_of_nothing_are_drawn_around_zero() -> None:
    drawn = changes("What a loss is worth", [Change("no teacher", 0.0, None, None), Change("untrained", 0.0, 0.0, 0.0)])
    root = ElementTree.fromstring(drawn)
    words = [element.text for element in root.iter() if element.text]
    assert {"no teacher", "untrained", "-1", "0", "1"} <= set(words)
