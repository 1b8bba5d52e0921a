"""Reads English prose from the docstrings of the standard library and of installed packages, for the demo corpus.

Every machine that runs this project has some megabytes of edited English in its Python packages. A document is the
prose of one module, labelled with its package. Files are parsed, never imported.
"""

import ast
import hashlib
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from cluster.artifacts.errors import StageError
from cluster.readers.bad_documents import BadDocument

STDLIB = "stdlib"
MAX_CHARACTERS = 20_000
"""Approximate length limit of a document; a module with more prose becomes several."""

_SKIPPED = frozenset({"__pycache__", "test", "tests", "idle_test", "site-packages", "dist-packages"})
# Copies of other packages: their prose would carry the wrong label.
_VENDORED = frozenset({"vendor", "_vendor", "vendored", "_vendored", "third_party", "thirdparty", "thirdparty_files"})

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
_NOT_PROSE = re.compile(
    r"\||\+[-=+]|#+ |<[/!a-zA-Z]|!\[|\[\^?\w+\]:|\\begin|\$"
    r"|>>> ?|\.\.\. |In \[\d+\]|% |def |class |from \w[\w.]* import "
)
# Prefix of a paragraph: a bullet, ":param name:" or "name (type):".
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


def documents(wanted: Sequence[str]) -> Iterator[tuple[str, str | BadDocument]]:
    """Package and text of each document, each paragraph once: generated classes repeat whole docstrings.

    Args:
        wanted: names of packages; empty means all.

    Raises:
        StageError: a wanted package is not installed.
    """
    seen: set[str] = set()
    for package, roots in _select(wanted).items():
        for module in (module for root in roots for module in modules(root)):
            try:
                found = [text for docstring in docstrings(module.read_bytes()) for text in paragraphs(docstring)]
            except (SyntaxError, ValueError, RecursionError):
                # A template, a module for another version of Python, or a dangling link.
                yield package, BadDocument("unparsable modules", str(module), "")
                continue
            new = [text for text in dict.fromkeys(found) if text not in seen]
            seen.update(new)
            yield from ((package, text) for text in _join(new))


def stamp(wanted: Sequence[str]) -> str:
    """Digest that changes when one of the packages is reinstalled.

    Raises:
        StageError: a wanted package is not installed.
    """
    roots = [(str(root), root.stat().st_mtime_ns) for roots in _select(wanted).values() for root in roots]
    return hashlib.sha256(repr((sys.version, roots)).encode()).hexdigest()


def _select(wanted: Sequence[str]) -> dict[str, list[Path]]:
    installed = packages()
    if unknown := sorted({*wanted} - installed.keys()):
        raise StageError(f"package {unknown[0]} is not installed: name top-level import packages, or {STDLIB!r}")
    return {package: installed[package] for package in sorted(wanted) or installed}


def packages() -> dict[str, list[Path]]:
    """Top-level import names, sorted, and their files or folders; ``stdlib`` is the whole standard library."""
    found = {STDLIB: [Path(sysconfig.get_path("stdlib"))]}
    for folder in sorted({Path(sysconfig.get_path("purelib")), Path(sysconfig.get_path("platlib"))}):
        for entry in sorted(folder.iterdir()):
            is_package = entry.is_dir() and entry.name.isidentifier()
            if is_package or (entry.suffix == ".py" and entry.stem.isidentifier()):
                found.setdefault(entry.stem, []).append(entry)
    return dict(sorted(found.items()))


def modules(root: Path) -> Iterator[Path]:
    """Python files of a package, sorted, without tests, caches and vendored packages."""
    if root.is_file():
        yield root
        return
    for entry in sorted(root.iterdir()):
        if entry.is_dir() and entry.name not in _SKIPPED | _VENDORED:
            yield from modules(entry)
        elif entry.suffix == ".py" and not entry.name.startswith("test_"):
            yield entry


def docstrings(source: bytes) -> Iterator[str]:
    """Dedented docstrings of a module and of its classes and functions, in the order of the file.

    Raises:
        SyntaxError: not a module of this version of Python.
        ValueError: null bytes, or not in the declared encoding.
    """
    with warnings.catch_warnings(action="ignore"):
        stack: list[ast.AST] = [ast.parse(source)]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield text
        inner = [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt | ast.ExceptHandler)]
        stack.extend(reversed(inner))


def _join(texts: list[str]) -> Iterator[str]:
    """Paragraphs joined to documents of about :data:`MAX_CHARACTERS`, without cutting a paragraph."""
    group: list[str] = []
    for text in texts:
        if group and sum(map(len, group)) + len(text) > MAX_CHARACTERS:
            yield "\n\n".join(group)
            group = []
        group.append(text)
    if group:
        yield "\n\n".join(group)


def paragraphs(docstring: str) -> list[str]:
    """The paragraphs of a dedented docstring that are English prose, without markup, one line each."""
    lines = _without_code(docstring.expandtabs().splitlines())
    return [text for text in map(plain, _candidates(lines)) if reads_as_prose(text)]


def plain(text: str) -> str:
    """The text without inline markup: roles, literals, emphasis, links, HTML tags."""
    for pattern, replacement in _INLINE:
        text = pattern.sub(replacement, text)
    return text.strip()


def reads_as_prose(text: str) -> bool:
    """Whether a paragraph consists of English sentences.

    It starts with a capital, ends like a sentence, has at least six words and no web address; nearly all words are
    plain words (no identifiers, operators or paths), and enough of them are function words.
    """
    words = text.split()
    if len(words) < MIN_WORDS or "://" in text or not _OPENING.match(text) or not _CLOSING.search(text):
        return False
    if sum(_WORD.match(word) is not None for word in words) < MIN_WORD_SHARE * len(words):
        return False
    bare = (word.strip("\"'()[].,;:!?").lower() for word in words)
    return sum(FUNCTION_WORD.fullmatch(word) is not None for word in bare) >= MIN_FUNCTION_SHARE * len(words)


def _without_code(lines: list[str]) -> list[str]:
    """The lines; code, directives, tables, headings and example sections become empty lines."""
    kept: list[str] = []
    fenced = skipped_section = False
    block: int | None = None  # indentation of the skipped block's first line; deeper lines belong to it
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
    """Whether the lines indented below this one belong to a directive, a literal block or an example section."""
    return not _ADMONITION.match(text) and (text.endswith("::") or _DIRECTIVE.match(text) is not None)


def _prose_of(line: str) -> str:
    """The part of a line that may be prose: an admonition without its name, nothing of code and directives."""
    text = line.strip()
    if admonition := _ADMONITION.match(text):
        # Its text continues below, indented by three or more columns.
        return " " * (_indent(line) + 3) + admonition[1]
    if _DIRECTIVE.match(text) or _NOT_PROSE.match(text) or _RULE.match(text):
        return ""
    return line[:-1] if text.endswith("::") else line


def _candidates(lines: list[str]) -> Iterator[str]:
    """Neighboring lines of one indentation, joined; a label starts a new run, whose other lines may be indented."""
    run: list[str] = []
    run_indent, hanging = 0, False
    for line in lines:
        text, indent = line.strip(), _indent(line)
        label = _LABEL.match(text)
        continues = indent > run_indent if hanging else indent == run_indent
        if run and (not text or label or not continues):
            yield " ".join(run)
            run = []
        hanging = label is not None
        run_indent = indent
        if text:
            run.append(text[label.end() :] if label else text)
    yield " ".join(run)


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())
