"""Cleaning: a normal form of every text, and a reason for every dropped document."""

import re
import subprocess
import sys
import unicodedata
from typing import Any

import paths
import pyarrow.parquet as pq
import pytest

from cluster.artifacts.recipe import RecipeError
from cluster.corpus.clean_text import clean
from cluster.corpus.filters import Cleaning, Filter, language_of

DATA = paths.DATA

PROSE = (
    "The wash still is heated with steam until the alcohol has left the wash, and what is caught of it is run a second "
    "time through the spirit still. The stillman cuts the heads and the tails away and keeps the heart of the run. "
    "That is what will have to lie in the cask for years, and it is never hurried."
)
GERMAN = (
    "Die Brennblase wird mit Dampf beheizt, bis der Alkohol aus der Maische entwichen ist, und was davon aufgefangen "
    "wird, läuft ein zweites Mal durch die Feinbrandblase. Der Brenner trennt Vorlauf und Nachlauf vom Mittellauf."
)


def _judge(text: str, **values: Any) -> str | None:
    return Filter(Cleaning.of(values)).apply(text).reason


def _naive(text: str) -> str:
    kept = []
    for character in text.replace("\r\n", "\n").replace("\r", "\n"):
        unwanted = unicodedata.category(character) in ("Cc", "Cs") and character != "\n"
        separates = unwanted and character.isspace()
        kept.append(" " if separates else "" if unwanted or character == "\ufeff" else character)
    return unicodedata.normalize("NFC", "".join(kept)).strip()


@pytest.mark.parametrize(
    "text",
    [
        "plain",
        "  around  it \n",
        "tab\tand\r\nline\rends\n\n",
        "bell\x07 null\x00 delete\x7f escape\x1b[0m",
        "e\u0301 cole\u0301, \u212b, ﬁ stays",
        "\ufeffmark, c1\x85 control\x9f",
        "lone \ud800 surrogate \udfff",
        "\x1c\x1f",
        "First line\x0bSecond line",
        "page one ends\x0cPage two",
        "a title\x85its text",
        "a\x1cb\x1dc\x1ed\x1fe",
        "",
    ],
)
def test_clean_does_what_it_says_character_by_character(text: str) -> None:
    assert clean(text) == _naive(text)
    assert clean(clean(text)) == clean(text)
    clean(text).encode("utf-8")


def test_every_ascii_character_is_kept_or_not_as_everywhere_else() -> None:
    for code in range(128):
        text = f"a{chr(code)}b"
        assert clean(text) == _naive(text), code
        assert clean(text + "é") == clean(text) + "é", "the fast path for ASCII must equal the general one"


@pytest.mark.parametrize(
    ("text", "values", "reason"),
    [
        (PROSE, {}, None),
        (" \n\x00", {}, "empty"),
        ("123456789", {"min_characters": 10}, "short"),
        ("1234567890 ", {"min_characters": 10}, None),
        ("12345678901", {"max_characters": 10}, "long"),
        ("1234567890 ", {"max_characters": 10}, None),
        ("one two\nthree", {"min_words": 4}, "few words"),
        ("one two\nthree", {"min_words": 3, "max_words": 3}, None),
        ("one two\nthree", {"max_words": 2}, "many words"),
        (PROSE, {"languages": ["en"]}, None),
        (GERMAN, {"languages": ["en"]}, "language"),
        (GERMAN, {"languages": ["en", "de"]}, None),
        ("Lorem 12 xyzzy !!", {"languages": ["en"], "min_language_score": 0.95}, "language"),
    ],
)
def test_reasons(text: str, values: dict[str, Any], reason: str | None) -> None:
    assert _judge(text, **values) == reason


def _lines(*lines: str) -> str:
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "rules", "reason"),
    [
        (PROSE, {}, None),
        ("a b c d e f g h i the and", {}, "gopher: word length"),
        ("incomprehensibilities the and " * 5 + "counterrevolutionaries " * 20, {}, "gopher: word length"),
        (PROSE + " #one #two" * 6, {}, "gopher: symbols"),
        (PROSE.replace(". ", "... ").replace(", ", "… "), {"max_symbols_per_word": 0.05}, "gopher: symbols"),
        (PROSE + " 1234 5678" * 20, {}, "gopher: letters"),
        ("quick brown foxes jump over lazy dogs with vigour", {}, "gopher: stop words"),
        ("quick brown foxes jump over the dogs with vigour", {}, None),
        (_lines(*("- The " + line for line in PROSE.split(", "))), {}, "gopher: bullets"),
        (_lines("Read the rest of that...", "More of it and with that…", PROSE), {}, "gopher: ellipses"),
        (_lines(PROSE, *["Subscribe to the list."] * 2), {}, "gopher: repeated lines"),
        (_lines(PROSE, PROSE, *(f"The line {number} of them." for number in range(5))), {}, "gopher: repeated lines"),
        (_lines(PROSE, *["Subscribe to the list."] * 2), {"max_repeated_lines": 0.5}, None),
    ],
)
def test_gopher_rules(text: str, rules: dict[str, Any], reason: str | None) -> None:
    assert _judge(text) is None
    assert _judge(text, gopher=rules) == reason


def test_c4_keeps_the_lines_that_end_like_sentences() -> None:
    page = _lines(
        "Home | About",
        "The still was charged in the morning.",
        "Too short.",
        "Please enable JavaScript to see this page.",
        'She asked: "When will it be ready?"',
        "Read on, there is much more...",
        "It was ready before the night came!  ",
    )
    judged = Filter(Cleaning.of({"c4": {}})).apply(page)
    assert judged.reason is None
    assert [line[:8] for line in judged.text.split("\n")] == ["The stil", "She aske", "It was r"]
    assert Filter(Cleaning()).apply(page).text == page.rstrip()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (PROSE + "\nThen lorem ipsum is all that follows.", "c4: forbidden"),
        (PROSE + "\nint main() { return 0 and that is all.", "c4: forbidden"),
        ("It is one sentence with a number, 3.14, and no other.", "c4: few sentences"),
        ("Home\nAbout\nContact", "empty"),
    ],
)
def test_c4_rules_for_pages(text: str, reason: str) -> None:
    assert _judge(text) is None
    assert _judge(text, c4={}) == reason


def test_lengths_are_those_of_what_c4_leaves() -> None:
    text = "Menu " * 50 + "\n" + PROSE
    assert _judge(text, c4={}, max_characters=len(PROSE)) is None
    assert _judge(text, max_characters=len(PROSE)) == "long"


def test_a_text_is_told_by_its_middle() -> None:
    assert language_of(GERMAN * 8 + "\n" + PROSE * 4 + "\n" + GERMAN * 8)[0] == "en"


@pytest.mark.parametrize(
    ("text", "language"),
    [
        (PROSE, "en"),
        (GERMAN, "de"),
        ("La distillation sépare l'alcool de l'eau parce que les deux ne bouillent pas à la même température.", "fr"),
        ("La destilación separa el alcohol del agua porque los dos no hierven a la misma temperatura.", "es"),
        ("Перегонка отделяет спирт от воды, потому что они кипят при разной температуре.", "ru"),
        ("蒸馏将酒精与水分离，因为两者的沸点不同。", "zh"),
        ("蒸留はアルコールと水を沸点の違いによって分離する方法である。", "ja"),
        ("يفصل التقطير الكحول عن الماء لأنهما لا يغليان عند درجة الحرارة نفسها.", "ar"),
    ],
)
def test_languages(text: str, language: str) -> None:
    found, score = language_of(text)
    assert (found, score > 0.65) == (language, True)


def test_languages_are_told_without_a_network() -> None:
    """Run in a process that may not resolve addresses and has no cached models."""
    script = """
import sys
def refuse(event, arguments):
    if event in ("socket.getaddrinfo", "socket.connect", "urllib.Request", "pickle.find_class"):
        raise RuntimeError(event)
from cluster.corpus.filters import language_of
sys.addaudithook(refuse)
print(language_of("Nothing is fetched, and nothing is unpickled, when a language is asked for.")[0])
"""
    environment = {"PATH": "", "HOME": "/nonexistent", "TMPDIR": "/nonexistent", "FTLANG_CACHE": "/nonexistent"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "en\n", done.stderr


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"languages": ["english"]}, "languages: no language english; did you mean en"),
        ({"languages": ["EN"]}, "no language EN; did you mean en"),
        ({"min_characters": 10, "max_characters": 9}, "min_characters 10 is above max_characters 9"),
        ({"min_words": 10, "max_words": 9}, "min_words 10 is above max_words 9"),
        ({"min_language_score": 1.5}, "min_language_score"),
        ({"gopher": {"max_bullets": 0.5}}, "gopher.max_bullets; did you mean gopher.max_bullet_lines"),
    ],
)
def test_impossible_recipes_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(message)):
        Cleaning.of(values)


@pytest.mark.real_data
@pytest.mark.skipif(not DATA.is_dir(), reason="no ../shared/data next to the checkout")
def test_encyclopedia_articles_pass_the_rules_made_for_good_text() -> None:
    table = pq.read_table(DATA / "corpus" / "wikipedia_en-00002-of-00008.parquet", columns=["text"])
    cleaner = Filter(Cleaning.of({"languages": ["en"], "gopher": {}, "min_words": 50, "max_words": 100_000}))
    reasons = [cleaner.apply(text).reason for text in table.column("text").to_pylist()[:300]]
    assert reasons.count(None) >= 295, reasons


def test_control_characters_that_separate_words_leave_a_blank() -> None:
    separators = "\t\x0b\x0c\x1c\x1d\x1e\x1f\x85"
    assert clean("é".join(f"one{character}two" for character in separators)).split("é") == ["one two"] * len(separators)


@pytest.mark.parametrize("phrase", ["Privacy Policy", "PRIVACY\tPOLICY", "pri\x07vacy policy"])
def test_phrases_of_c4_match_in_any_case_and_form(phrase: str) -> None:
    page = f"{PROSE}\nHere is our privacy policy and some more of it."
    assert _judge(page, c4={"forbidden": [phrase]}) is None, "the line is cut before"
    assert _judge(page, c4={"forbidden": [phrase], "cut_lines": []}) == "c4: forbidden"
    kept = Filter(Cleaning.of({"c4": {"cut_lines": [phrase]}})).apply(page).text
    assert kept == PROSE


def test_phrases_are_compared_in_the_form_of_clean_text() -> None:
    decomposed = unicodedata.normalize("NFD", "CRÈME BRÛLÉE")
    assert _judge(f"{PROSE} A crème brûlée is none.", c4={"forbidden": [decomposed]}) == "c4: forbidden"


@pytest.mark.parametrize(
    ("rules", "says"),
    [({"forbidden": [""]}, "empty"), ({"cut_lines": ["\x07"]}, "empty"), ({"cut_lines": ["a\nb"]}, "lines")],
)
def test_phrases_that_match_everything_or_nothing_are_refused(rules: dict[str, list[str]], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        Cleaning.of({"c4": rules})
