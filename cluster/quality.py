"""Rules for text from the web, with the values of the papers that introduced them; each rule has its own reason.

A table ``[cleaning.c4]`` or ``[cleaning.gopher]``, empty or not, switches a paper's rules on. Encyclopedias and books
need none of them.
"""

import re
from typing import Annotated, TypeAlias

from pydantic import Field, NonNegativeFloat, NonNegativeInt

from cluster.recipe import Recipe

Share: TypeAlias = Annotated[float, Field(ge=0.0, le=1.0)]

# What a line of running text ends in, closing quotation marks included.
_LINE_END = (".", "!", "?", '"', "”", "’")
_SENTENCE_END = re.compile(r"[.!?][\"”’')\]]*(?=\s|$)")
_BULLETS = ("•", "‣", "▪", "●", "-", "*")
_ELLIPSES = ("...", "…")
_WORD_WITH_LETTER = re.compile(r"\S*[^\W\d_]\S*")
_STOP_WORDS = frozenset({"the", "be", "to", "of", "and", "that", "have", "with"})


class C4(Recipe):
    """Rules of the Colossal Clean Crawled Corpus (Raffel et al. 2020, section 2.2), but for its list of bad words."""

    min_line_words: NonNegativeInt = 5  # shorter lines are cut out, and so are lines that end in no . ! ? or quote
    cut_lines: tuple[str, ...] = ("javascript", "terms of use", "privacy policy", "cookie policy", "use of cookies")
    min_sentences: NonNegativeInt = 3  # "c4: few sentences", counted in the lines that are left
    forbidden: tuple[str, ...] = ("lorem ipsum", "{")  # "c4: forbidden": placeholder text, program code


class Gopher(Recipe):
    """Quality and line repetition rules of MassiveText (Rae et al. 2021, appendix A.1.1).

    Its limits on words (50 to 100,000) are ``cleaning.min_words`` and ``cleaning.max_words``.
    """

    min_mean_word_characters: NonNegativeFloat = 3.0  # "gopher: word length"
    max_mean_word_characters: NonNegativeFloat = 10.0
    max_symbols_per_word: NonNegativeFloat = 0.1  # "gopher: symbols": hash signs, or ellipses
    max_bullet_lines: Share = 0.9  # "gopher: bullets": share of lines that begin with one
    max_ellipsis_lines: Share = 0.3  # "gopher: ellipses": share of lines that end in one
    min_words_with_letter: Share = 0.8  # "gopher: letters": share of words
    min_stop_words: NonNegativeInt = 2  # "gopher: stop words": how many of eight English ones occur
    max_repeated_lines: Share = 0.3  # "gopher: repeated lines": share of lines that were there before
    max_repeated_line_characters: Share = 0.2  # "gopher: repeated lines": the same, of the characters


def keep_sentences(text: str, rules: C4) -> str:
    """The lines of a text that look like running text (C4's first, fourth and sixth rule)."""
    return "\n".join(line for line in text.split("\n") if _is_prose(line, rules))


def c4_reason(text: str, rules: C4) -> str | None:
    """What C4's rules for whole pages say against a text."""
    lower = text.lower()
    if any(phrase in lower for phrase in rules.forbidden):
        return "c4: forbidden"
    if len(_SENTENCE_END.findall(text)) < rules.min_sentences:
        return "c4: few sentences"
    return None


def gopher_reason(text: str, rules: Gopher) -> str | None:
    """The first of Gopher's rules that a text breaks."""
    return _words_reason(text, rules) or _lines_reason(text, rules)


def _is_prose(line: str, rules: C4) -> bool:
    line = line.strip()
    if not line.endswith(_LINE_END) or line.endswith(_ELLIPSES) or len(line.split()) < rules.min_line_words:
        return False
    lower = line.lower()
    return not any(phrase in lower for phrase in rules.cut_lines)


def _words_reason(text: str, rules: Gopher) -> str | None:
    words = text.split()
    if not words:
        return "gopher: word length"
    mean = sum(map(len, words)) / len(words)
    if not rules.min_mean_word_characters <= mean <= rules.max_mean_word_characters:
        return "gopher: word length"
    ellipses = sum(map(text.count, _ELLIPSES))
    if max(text.count("#"), ellipses) > rules.max_symbols_per_word * len(words):
        return "gopher: symbols"
    if len(_WORD_WITH_LETTER.findall(text)) < rules.min_words_with_letter * len(words):
        return "gopher: letters"
    if len(_STOP_WORDS.intersection(map(str.lower, words))) < rules.min_stop_words:
        return "gopher: stop words"
    return None


def _lines_reason(text: str, rules: Gopher) -> str | None:
    lines = [line.strip() for line in text.split("\n") if line and not line.isspace()]
    if sum(line.startswith(_BULLETS) for line in lines) > rules.max_bullet_lines * len(lines):
        return "gopher: bullets"
    if sum(line.endswith(_ELLIPSES) for line in lines) > rules.max_ellipsis_lines * len(lines):
        return "gopher: ellipses"
    characters = sum(map(len, lines))
    different = set(lines)
    if len(lines) - len(different) > rules.max_repeated_lines * len(lines):
        return "gopher: repeated lines"
    if characters - sum(map(len, different)) > rules.max_repeated_line_characters * characters:
        return "gopher: repeated lines"
    return None
