"""Names of stages and commands, and the words that people type for them.

Imports no other module of ours: the listing of commands must answer at once.
"""

from collections.abc import Iterable


def word_of(name: str) -> str:
    """The word that calls a stage or command: the last part of its name, with hyphens."""
    return name.rpartition(".")[2].replace("_", "-")


def find_name(word: str, names: Iterable[str]) -> str | None:
    """The name that a word means: ``onnx-export``, or the whole name ``deploy.onnx_export``."""
    return next((name for name in names if word.replace("-", "_") in (name, name.rpartition(".")[2])), None)
