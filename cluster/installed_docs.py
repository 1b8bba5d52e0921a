"""Documents from the docstrings of the standard library and of the installed packages.

Every machine that can run this project carries some megabytes of edited English in its Python packages, each passage
labelled with the package it comes from. The files are parsed, never imported.
"""

import ast
import hashlib
import sys
import sysconfig
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from cluster.faults import Fault
from cluster.prose import paragraphs
from cluster.stage import StageError

STDLIB = "stdlib"
MAX_CHARACTERS = 20_000
"""About the longest document; a module with more prose than that becomes several."""

_SKIPPED = frozenset({"__pycache__", "test", "tests", "idle_test", "site-packages", "dist-packages"})
# Copies of other packages: their prose would carry the wrong label.
_VENDORED = frozenset({"vendor", "_vendor", "vendored", "_vendored", "third_party", "thirdparty", "thirdparty_files"})


def documents(wanted: Sequence[str]) -> Iterator[tuple[str, str | Fault]]:
    """Package and text of each document: the prose of one module, no paragraph twice.

    Packages repeat themselves (generated classes share whole docstrings), so of equal paragraphs the first stays.
    ``wanted`` names packages, none means all.

    Raises:
        StageError: a wanted package is not installed.
    """
    seen: set[str] = set()
    for package, roots in _chosen(wanted).items():
        for module in (module for root in roots for module in modules(root)):
            found = _paragraphs_of(module)
            if isinstance(found, Fault):
                yield package, found
                continue
            fresh = [text for text in found if text not in seen]
            seen.update(fresh)
            yield from ((package, text) for text in _split(list(dict.fromkeys(fresh))))


def stamp(wanted: Sequence[str]) -> str:
    """What changes when one of the packages is installed anew.

    Raises:
        StageError: a wanted package is not installed.
    """
    roots = [(str(root), root.stat().st_mtime_ns) for roots in _chosen(wanted).values() for root in roots]
    return hashlib.sha256(repr((sys.version, roots)).encode()).hexdigest()


def _chosen(wanted: Sequence[str]) -> dict[str, list[Path]]:
    installed = packages()
    if unknown := sorted({*wanted} - installed.keys()):
        raise StageError(f"package {unknown[0]} is not installed: name top-level import packages, or {STDLIB!r}")
    return {package: installed[package] for package in sorted(wanted) or installed}


def packages() -> dict[str, list[Path]]:
    """Top-level import names, sorted, and their files or folders; the whole standard library is ``stdlib``."""
    found = {STDLIB: [Path(sysconfig.get_path("stdlib"))]}
    for folder in sorted({Path(sysconfig.get_path("purelib")), Path(sysconfig.get_path("platlib"))}):
        for entry in sorted(folder.iterdir()):
            is_package = entry.is_dir() and entry.name.isidentifier()
            if is_package or (entry.suffix == ".py" and entry.stem.isidentifier()):
                found.setdefault(entry.stem, []).append(entry)
    return dict(sorted(found.items()))


def modules(root: Path) -> Iterator[Path]:
    """Python files of a package, sorted; tests, caches and vendored copies of other packages left out."""
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
        ValueError: null bytes, or not of the encoding it declares.
    """
    with warnings.catch_warnings(action="ignore"):
        tree = ast.parse(source)
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield text
        inner = [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt | ast.ExceptHandler)]
        waiting.extend(reversed(inner))


def _paragraphs_of(module: Path) -> list[str] | Fault:
    try:
        return [text for docstring in docstrings(module.read_bytes()) for text in paragraphs(docstring)]
    except (SyntaxError, ValueError, RecursionError):
        # Packages carry templates and files for other versions of Python; a dangling link is no module either.
        return Fault("unparsable modules", str(module), "")


def _split(texts: list[str]) -> Iterator[str]:
    """Paragraphs joined to documents of about :data:`MAX_CHARACTERS` at most, never cutting one."""
    gathered: list[str] = []
    for text in texts:
        if gathered and sum(map(len, gathered)) + len(text) > MAX_CHARACTERS:
            yield "\n\n".join(gathered)
            gathered = []
        gathered.append(text)
    if gathered:
        yield "\n\n".join(gathered)
