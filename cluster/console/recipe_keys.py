"""The keys of a recipe's tables with defaults and meanings, for ``stillhouse recipes keys``."""

import json
import textwrap
from collections.abc import Iterator, Sequence
from importlib.metadata import entry_points
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from cluster.artifacts import registry
from cluster.artifacts.errors import StageError
from cluster.artifacts.names import find_name, word_of
from cluster.artifacts.recipe import Recipe
from cluster.artifacts.recipe_errors import OF_STAGE, nearest, suggest
from cluster.console import cli

PIPELINE = "distill.launch"
SCHEMAS = "stillhouse.recipes"
"""Group of entry points: the recipe classes of commands that are not stages."""
_WIDTH, _NAME = 112, 24

Tables = Sequence[type[Recipe]]
"""The classes that a table may have: one, or the members of a union."""


def describe(path: str | None) -> list[str]:
    """Lines about the keys of a table such as ``train.loss``; without a path, about the tables of a pipeline.

    Raises:
        StageError: no such table.
    """
    pipeline = _pipeline()
    if path is None or find_name(path, [PIPELINE]):
        lines = [line for tables in (True, False) for line in _keys(pipeline, "", tables)]
        return [*lines, "", "stillhouse recipes keys TABLE lists the keys of one; so does the name of a command."]
    word, *parts = path.split(".")
    if word in pipeline.model_fields:
        found = _below([pipeline], [word, *parts], "")
    else:
        found = _below([_of_command(word)], parts, word)
    if isinstance(found, str):
        return [found]
    return [line for table in found for line in _table(table, path, len(found) > 1)]


def _pipeline() -> type[Recipe]:
    (point,) = entry_points(group=SCHEMAS, name=PIPELINE)
    pipeline: type[Recipe] = point.load()
    return pipeline


def _of_command(word: str) -> type[Recipe]:
    """The recipe class of a command.

    Raises:
        StageError: no such command, or one without a recipe of its own.
    """
    if word in cli.shipped():
        raise StageError(f"{word} is a recipe, not a table: write stillhouse show {word}")
    known = cli.installed()
    name = find_name(word, known)
    if name is None:
        near = nearest(word, [*_pipeline().model_fields, *map(word_of, known)])
        hint = f"did you mean {near}?" if near else "stillhouse recipes keys lists them"
        raise StageError(f"no table {word or '(an empty word)'}: {hint}")
    if name not in registry.entries():
        raise StageError(f"{word} reads no recipe of its own: stillhouse recipes keys lists the tables of a pipeline")
    recipe: type[Recipe] = registry.find(name).recipe
    return recipe


def _below(tables: Tables, parts: Sequence[str], above: str) -> Tables | str:
    """The tables at ``parts`` below others, or a line about the plain key there.

    Names of tables and places in a list are skipped.

    Raises:
        StageError: no such table.
    """
    several = False
    for number, part in enumerate(parts):
        fields = [table.model_fields[part] for table in tables if part in table.model_fields]
        below = [found for field in fields for found in _classes(field)]
        if fields and not below and number == len(parts) - 1:
            return _line(part, _default(fields[0]), fields[0])
        if not below and not several:
            keys = {key: field for table in tables for key, field in table.model_fields.items()}
            known = [*keys] if nearest(part, keys) else sorted(key for key, field in keys.items() if _classes(field))
            prefix = ".".join([above, *parts[:number]]).removeprefix(".")
            raise StageError(f"no table {'.'.join([prefix, *parts[number:]])}{suggest(part, known, prefix)}")
        tables, several = below or tables, any(map(_is_many, fields))
    return tables


def _table(table: type[Recipe], path: str, several: bool) -> Iterator[str]:
    """Plain keys, then tables, which have keys of their own."""
    if several:
        yield from ("", f"{path}: {_plain((table.__doc__ or '').partition(chr(10))[0])}")
    for tables in (False, True):
        yield from _keys(table, f"{path}.", tables)


def _keys(table: type[Recipe], prefix: str, tables: bool) -> Iterator[str]:
    """Lines about the keys that are tables, or about the others; the one that names a member of a union comes first."""
    for name, field in sorted(table.model_fields.items(), key=lambda item: not _is_constant(item[1])):
        below, usual = _classes(field), _default(field)
        may_be_plain = not below or isinstance(field.default, str | int | float)
        if may_be_plain != tables:
            place = f"[{prefix}{name}]"
            yield _line(name, f"{usual} or {place}" if below and may_be_plain else place if below else usual, field)


def _line(name: str, value: str, field: FieldInfo) -> str:
    text = f"{name:{_NAME - 1}} {value}  {_about(field)}"
    return textwrap.fill(text, _WIDTH, subsequent_indent=" " * _NAME, break_on_hyphens=False)


def _about(field: FieldInfo) -> str:
    """What a key or a table is for."""
    text = field.description or " ".join(found.__doc__ or "" for found in _classes(field)[:1])
    return _plain(text)


def _plain(text: str) -> str:
    """A docstring as one line of plain text."""
    return " ".join(text.split()).replace("``", "")


def _default(field: FieldInfo) -> str:
    if _is_constant(field):
        return json.dumps(get_args(field.annotation)[0])
    if field.is_required():
        return "(no default)"
    value = field.get_default(call_default_factory=True)
    return "(not set)" if value is None else json.dumps(value, default=list, ensure_ascii=False)


def _classes(field: FieldInfo) -> list[type[Recipe]]:
    """The recipe classes that a key may hold; none for a plain value."""
    stage = (field.json_schema_extra or {}).get(OF_STAGE) if isinstance(field.json_schema_extra, dict) else None
    waiting: list[Any] = [registry.find(str(stage)).recipe] if stage else [field.annotation, *field.metadata]
    found: list[type[Recipe]] = []
    while waiting:
        kind = waiting.pop(0)
        waiting += get_args(kind)
        if isinstance(kind, type) and issubclass(kind, Recipe) and kind not in found:
            found.append(kind)
    return found


def _is_constant(field: FieldInfo) -> bool:
    """Whether a key has one value, which names the member of a union: ``kind``."""
    return field.is_required() and len(get_args(field.annotation)) == 1 and get_origin(field.annotation) is Literal


def _is_many(field: FieldInfo) -> bool:
    """Whether tables are in a list, or have names: ``sources.0``, ``ablations.no-soft``."""
    return get_origin(field.annotation) in (tuple, dict) and Any not in get_args(field.annotation)
