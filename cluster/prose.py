"""English prose out of docstrings: code, tables and markup go, paragraphs that read like sentences stay.

Docstrings mix reStructuredText, Markdown, numpy and Google style, often in one file, so nothing is parsed by a
grammar: lines that are certainly no prose are blanked, the rest is cut into paragraphs, and a paragraph stays when
it passes :func:`reads_as_prose`. Names and types of parameters go; their descriptions stay where they are sentences.
"""

import re
from collections.abc import Iterator

FUNCTION_WORD = re.compile(
    r"a|an|and|are|as|at|be|been|but|by|can|each|for|from|has|have|if|in|into|is|it|its|may|must|not|of|on|one"
    r"|only|or|other|should|so|such|than|that|the|their|them|then|there|these|they|this|to|use|used|was|were"
    r"|when|where|which|will|with|you|your"
)
MIN_WORDS = 6
MIN_WORD_SHARE = 0.85
MIN_FUNCTION_SHARE = 0.15

_ADMONITION = re.compile(r"\.\. (?:note|warning|tip|hint|important|caution|attention|danger|admonition)::\s*(.*)")
_DIRECTIVE = re.compile(r"\.\. |\.\.$|:[a-z]+:$|@\w+|(?:examples?|usage|references|see also|shapes?):{1,2}$", re.I)
_SKIPPED_SECTIONS = frozenset({"examples", "example", "see also", "references", "usage"})
_RULE = re.compile(r"([-=~^\"'`#*+_.])\1{2,}[-=~^\"'`#*+_. ]*$")
# Tables, headings, HTML, link targets, prompts and statements.
_NO_PROSE = re.compile(
    r"\||\+[-=+]|#+ |<[/!a-zA-Z]|!\[|\[\^?\w+\]:|\\begin|\$"
    r"|>>> ?|\.\.\. |In \[\d+\]|% |def |class |from \w[\w.]* import "
)
# What stands before a paragraph: a bullet, ":param name:" or "name (type):".
_LABEL = re.compile(
    r"(?:[-*+•]|\(?(?:\d+|[a-zA-Z])[.)])\s+|:[a-z]+(?: [^:]+)?:(?:\s+|$)"
    r"|[`*\w.]+(?:\s*\((?:[^()]|\([^)]*\))*\))?:(?:\s+(?=[A-Z`\"'])|$)"
)
_INLINE = (
    (re.compile(r"<https?://[^>]*>|\[(?:\d+|[A-Z]\w*)\]_"), ""),
    (re.compile(r"!?\[([^\]]+)\]\([^)]*\)"), r"\1"),
    (re.compile(r"`([^`<]+?)\s*<[^>`]*>`__?"), r"\1"),
    (re.compile(r":[a-z:+-]+:`[!~]?(?:[^`<]*\.)?([^`.<]+)(?:<[^`]*)?`"), r"\1"),
    (re.compile(r"`{1,2}~?([^`]+)`{1,2}_{0,2}"), r"\1"),
    (re.compile(r"\*{1,2}(?=\S)([^*]+?)(?<=\S)\*{1,2}"), r"\1"),
    (re.compile(r"</?[a-zA-Z][^>]*>"), ""),
    (re.compile(r"\s+"), " "),
)
_WORD = re.compile(
    r"[\"'(\[“‘]*[A-Za-z]+(?:['’-][A-Za-z]+)*[\"')\]”’]*[.,;:!?]*[\"')”’]*$|[—–-]$|\(?\d+[\d.,]*\)?[.,;:]?$"
)
_OPENING = re.compile(r"[\"'(“‘]*[A-Z]")
_CLOSING = re.compile(r"[.!?][\"')”’]*$")


def paragraphs(docstring: str) -> list[str]:
    """The paragraphs of a dedented docstring that read like English, markup removed, one line each."""
    lines = _without_code(docstring.expandtabs().splitlines())
    return [text for text in map(plain, _candidates(lines)) if reads_as_prose(text)]


def plain(text: str) -> str:
    """Inline markup (roles, literals, emphasis, links, HTML tags) replaced by the words it marks up."""
    for pattern, replacement in _INLINE:
        text = pattern.sub(replacement, text)
    return text.strip()


def reads_as_prose(text: str) -> bool:
    """Whether a paragraph is made of English sentences.

    It opens with a capital, closes like a sentence, has six words or more and no web address; nearly all its words are
    plain words rather than identifiers, operators or paths, and as many are function words as English needs.
    """
    words = text.split()
    if len(words) < MIN_WORDS or "://" in text or not _OPENING.match(text) or not _CLOSING.search(text):
        return False
    if sum(_WORD.match(word) is not None for word in words) < MIN_WORD_SHARE * len(words):
        return False
    bare = (word.strip("\"'()[].,;:!?").lower() for word in words)
    return sum(FUNCTION_WORD.fullmatch(word) is not None for word in bare) >= MIN_FUNCTION_SHARE * len(words)


def _without_code(lines: list[str]) -> list[str]:
    """The lines, with those of code, directives, tables, headings and example sections blanked."""
    kept: list[str] = []
    fenced = skipped_section = False
    block: int | None = None  # what is indented deeper than this belongs to a block that is left out
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        text, indent = line.strip(), _indent(line)
        if block is not None and text and indent <= block:
            block = None
        if text.startswith(("```", "~~~")):
            fenced = not fenced
        elif text and not fenced and _RULE.match(following.strip()):
            skipped_section = text.lower() in _SKIPPED_SECTIONS
        elif text and not fenced and not skipped_section and block is None:
            block = indent if _opens_block(text) else None
            kept.append(_prose_of(line))
            continue
        kept.append("")
    return kept


def _opens_block(text: str) -> bool:
    """Whether the lines indented below this one are no prose: a directive's, a literal's, an example section's."""
    return not _ADMONITION.match(text) and (text.endswith("::") or _DIRECTIVE.match(text) is not None)


def _prose_of(line: str) -> str:
    """The line as far as it may be prose: of an admonition what follows its name, of code and directives nothing."""
    text = line.strip()
    if admonition := _ADMONITION.match(text):
        # Its words go on below, indented by three columns or more.
        return " " * (_indent(line) + 3) + admonition[1]
    if _DIRECTIVE.match(text) or _NO_PROSE.match(text) or _RULE.match(text):
        return ""
    return line[:-1] if text.endswith("::") else line


def _candidates(lines: list[str]) -> Iterator[str]:
    """Runs of neighbouring lines of one indentation, joined; a label starts its own run, which may hang below it."""
    run: list[str] = []
    run_indent, hanging = 0, False
    for line in lines:
        text, indent = line.strip(), _indent(line)
        label = _LABEL.match(text)
        goes_on = indent > run_indent if hanging else indent == run_indent
        if run and (not text or label or not goes_on):
            yield " ".join(run)
            run = []
        hanging = label is not None
        run_indent = indent
        if text:
            run.append(text[label.end() :] if label else text)
    yield " ".join(run)


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())
