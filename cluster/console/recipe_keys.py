"""The keys of a recipe's tables with defaults and meanings, for ``stillhouse recipes keys``."""

import json
import textwrap
from collections.abc import Iterator
from typing import Any, get_args

from pydantic.fields import FieldInfo

from cluster.artifacts import registry
from cluster.artifacts.errors import StageError
from cluster.artifacts.recipe import Recipe
from cluster.artifacts.recipe_errors import suggest
from cluster.console import cli

PIPELINE = ("corpus", "tokens", "teacher", "train", "suite")
"""Tables of a pipeline, which have the names of their commands."""
_WIDTH, _NAME = 112, 24


def describe(path: str | None) -> list[str]:
    """Lines about the keys of a table such as ``train.loss``; without a path, about the tables of a pipeline.

    Raises:
        StageError: no such table.
    """
    if path is None:
        lines = [
            f"{table:{_NAME}}{(registry.find(table).recipe.__doc__ or '').partition(chr(10))[0]}" for table in PIPELINE
        ]
        return [*lines, "", "stillhouse recipes keys TABLE lists the keys of one; so does the name of a command."]
    word, *parts = path.split(".")
    name = cli.find("train" if word == "ablations" else word).name
    if name not in registry.entries():
        raise StageError(f"{word} reads no recipe of its own: stillhouse recipes keys lists the tables of a pipeline")
    members: list[type[Recipe]] = [registry.find(name).recipe]
    for number, part in enumerate(parts):
        known = sorted({key for member in members for key, field in member.model_fields.items() if _classes(field)})
        if part not in known:
            prefix = ".".join([word, *parts[:number]])
            raise StageError(f"no table {path}{suggest(part, known, prefix)}")
        fields = [member.model_fields[part] for member in members if part in member.model_fields]
        members = [found for field in fields for found in _classes(field)]
    return [line for member in members for line in _keys(member, path, len(members) > 1)]


def _keys(table: type[Recipe], path: str, several: bool) -> Iterator[str]:
    """Plain keys, then tables, which have keys of their own."""
    if several:
        yield from ("", f"{path}: {(table.__doc__ or '').partition(chr(10))[0]}")
    for plain in (True, False):
        for name, field in table.model_fields.items():
            if plain == bool(_classes(field)):
                continue
            value = _default(field) if plain else f"[{path}.{name}]"
            text = f"{name:{_NAME}}{value}  {_about(field)}"
            yield textwrap.fill(text, _WIDTH, subsequent_indent=" " * _NAME, break_on_hyphens=False)


def _about(field: FieldInfo) -> str:
    """What a key or a table is for."""
    text = field.description or " ".join(found.__doc__ or "" for found in _classes(field)[:1])
    return " ".join(text.split()).replace("``", "")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "(no default)"
    value = field.get_default(call_default_factory=True)
    return "(not set)" if value is None else json.dumps(value, default=list, ensure_ascii=False)


def _classes(field: FieldInfo) -> list[type[Recipe]]:
    """The recipe classes that a key may hold; none for a plain value."""
    waiting: list[Any] = [field.annotation, *field.metadata]
    found: list[type[Recipe]] = []
    while waiting:
        kind = waiting.pop(0)
        waiting += get_args(kind)
        if isinstance(kind, type) and issubclass(kind, Recipe) and kind not in found:
            found.append(kind)
    return found
