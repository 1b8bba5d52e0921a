"""Charts of values that do not differ."""

from xml.etree import ElementTree

from eval.report.svg import Change, Line, changes, curves


def test_changes_of_nothing_are_drawn_around_zero() -> None:
    drawn = changes("What a loss is worth", [Change("no teacher", 0.0, None, None), Change("untrained", 0.0, 0.0, 0.0)])
    root = ElementTree.fromstring(drawn)
    words = [element.text for element in root.iter() if element.text]
    assert {"no teacher", "untrained", "\N{MINUS SIGN}1", "0", "1"} <= set(words)


def test_long_names_do_not_leave_a_chart() -> None:
    name = "a-student-with-all-losses-" * 5
    for drawn in (changes("Change", [Change(name, -1.0)]), curves("Loss", [Line(name, [(0, 1), (1, 2)], "red")], 0, 3)):
        (shown,) = (element.text for element in ElementTree.fromstring(drawn).iter() if "…" in (element.text or ""))
        assert shown is not None
        assert len(shown) * 6.4 < 420
