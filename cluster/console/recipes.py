"""``stillhouse recipes`` lists the shipped recipes and keys; ``stillhouse show RECIPE`` explains every value of one.

``show`` prints TOML that loads as a recipe again. A comment above a value documents it; a comment on its line says what
the default is where the value differs.
"""

import argparse
import json
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from cluster.artifacts import recipe, registry
from cluster.artifacts.cli import RECIPE_HELP, SET_HELP
from cluster.artifacts.errors import StageError
from cluster.artifacts.help_format import HelpFormatter
from cluster.artifacts.names import word_of
from cluster.artifacts.recipe import Recipe
from cluster.artifacts.recipe_errors import nearest, tables_called
from cluster.console import catalogue, cli, recipe_keys
from cluster.console.recipe_keys import SCHEMAS

_WIDTH = 100


def list_recipes(arguments: Sequence[str], prog: str) -> None:
    """Print every shipped recipe with its command and its purpose, or the keys of a table."""
    parser = argparse.ArgumentParser(
        prog=prog,
        formatter_class=HelpFormatter,
        description="List the recipes that ship, or the keys of a table with their defaults.",
        epilog="example: stillhouse recipes keys train.loss",
    )
    what = "list: the recipes that ship; keys: the keys of TABLE (default: list); example: keys"
    parser.add_argument("what", metavar="list|keys", nargs="?", default="list", help=what)
    table = "table of a pipeline, or a command (default: the tables of a pipeline); example: train.placement"
    parser.add_argument("table", metavar="TABLE", nargs="?", help=table)
    options = parser.parse_args(arguments)
    if options.what == "keys":
        print("\n".join(recipe_keys.describe(options.table)))
        return
    if options.what != "list" or options.table:
        parser.error(_instead(options))
    for entry in catalogue.ENTRIES.values():
        for name in entry.recipes:
            print(f"{name:15} {entry.word:18} {purpose(name)}")


def _instead(options: argparse.Namespace) -> str:
    """What to write instead of something that is neither list nor keys."""
    name = options.table or options.what
    if options.what == "show" or name in (each for entry in catalogue.ENTRIES.values() for each in entry.recipes):
        return f"write stillhouse show {'demo' if name == 'show' else name}"
    if near := nearest(options.what, ["list", "keys"]):
        return f"write stillhouse recipes {near}{f' {options.table}' if near == 'keys' and options.table else ''}"
    return f"write stillhouse recipes keys {name}"


def purpose(name: str) -> str:
    """What a shipped recipe is for: its first line, up to the colon."""
    first = recipe.find(name).read_text(encoding="utf-8").partition("\n")[0]
    return first.removeprefix("# ").partition(": ")[0].rstrip(":")


def show(arguments: Sequence[str], prog: str) -> None:
    """Print every resolved value of a recipe with its documentation."""
    parser = argparse.ArgumentParser(
        prog=prog,
        formatter_class=HelpFormatter,
        description="Print every value of a recipe with its documentation.",
        epilog="example: stillhouse show demo#train",
    )
    parser.add_argument("recipe", metavar="RECIPE", help=f"{RECIPE_HELP}demo#train")
    command = "the command that reads your own file (default: the one that a shipped recipe is for); example: tokens"
    parser.add_argument("command", metavar="COMMAND", nargs="?", help=command)
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help=f"{SET_HELP}steps=100")
    options = parser.parse_args(arguments)
    name = reader(options.recipe, options.command)
    text = "\n".join([f"# {options.recipe}: {name}", *explain(read(name, options.recipe, options.set))])
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.syntax import Syntax

        Console().print(Syntax(text, "toml", background_color="default", word_wrap=True))
    else:
        print(text)


def reader(reference: str, command: str | None = None) -> str:
    """Name of the command that reads a recipe; tables of a pipeline have the names of their commands.

    Raises:
        StageError: a file, or a table of another name, without ``command``; a shipped recipe of another command.
        RecipeError: neither a file nor a shipped recipe.
    """
    file, table = recipe.split(reference)
    words = [entry.word for entry in catalogue.ENTRIES.values()]
    owner = next((entry.name for entry in catalogue.ENTRIES.values() if file in entry.recipes), None)
    if not (command or table) and owner:
        return owner
    if owner is None and file in words and not Path(file).is_file():
        raise StageError(f"{file} is a command, not a recipe: write {_example(file)}")
    values = recipe.read_values(reference)
    last = table.rpartition(".")[2].replace("_", "-")
    if command or last in words:
        name = cli.find(command or last).name
        if not table and owner not in (None, name):
            tables = tables_called(word_of(name).replace("-", "_"), values)
            hint = f": write {file}#{tables[0]} for its table" if tables else ""
            raise StageError(f"{file} is a recipe of {word_of(owner)}, not of {word_of(name)}{hint}")
        return name
    raise StageError(f"which command reads {reference}? For example: stillhouse show {reference} tokens")


def _example(word: str) -> str:
    """What to write to see a recipe of a command."""
    shipped = next(entry.recipes for entry in catalogue.ENTRIES.values() if entry.word == word)
    if shipped:
        return f"stillhouse show {shipped[0]}"
    return f"stillhouse show {f'demo#{word}' if word in recipe.read_values('demo') else f'default {word}'}"


def read(name: str, reference: str, settings: Sequence[str] = ()) -> Recipe:
    """A recipe of a stage or command.

    Raises:
        StageError: the command reads no recipe.
        RecipeError: the recipe cannot be read.
    """
    if name in registry.entries():
        found: Recipe = registry.find(name).load(reference, settings)
        return found
    for entry in entry_points(group=SCHEMAS, name=name):
        schema: type[Recipe] = entry.load()
        return recipe.load(schema, reference, settings)
    raise StageError(f"{name} reads no recipe")


def explain(shown: Recipe, default: Recipe | None = None, path: str = "", only: Any = None) -> Iterator[str]:
    """Lines of TOML, plain values before tables; ``default`` is the default that the class above gives this table.

    ``only`` leaves out what is not in these plain values.
    """
    plain, tables = shown.resolved(), []
    opened = shown.tables()
    for name, field in type(shown).model_fields.items():
        if only is not None and name not in only:
            continue
        value = opened.get(name, getattr(shown, name))
        usual = getattr(default, name) if default else field.get_default(call_default_factory=True)
        if _is_table(value):
            tables.append((name, value, usual, field.description))
            continue
        yield from _comment(field.description)
        mark = "  # no default" if field.is_required() and not default else ""
        if not mark and value != usual and not (only is not None and usual is None):
            mark = f"  # default: {_inline(getattr(default, name) if default else usual)}"
        yield f"# {name} is not set" if value is None else f"{name} = {_inline(plain[name])}{mark}"
    for name, value, usual, description in tables:
        yield from _table(f"{path}{_key(name)}", value, usual, description, None if only is None else only[name])


def _is_table(value: Any) -> bool:
    members = list(value.values() if isinstance(value, Mapping) else value if isinstance(value, tuple) else [value])
    kinds = (Recipe, Mapping) if isinstance(value, Mapping) else Recipe
    return bool(members) and all(isinstance(member, kinds) for member in members)


def _table(path: str, value: Any, usual: Any, description: str | None, only: Any = None) -> Iterator[str]:
    if isinstance(value, Recipe):
        yield from _comment(description or type(value).__doc__)
        yield f"[{path}]"
        yield from explain(value, usual if isinstance(usual, type(value)) else None, f"{path}.", only)
        return
    yield from _comment(description)
    named = isinstance(value, Mapping)
    for number, (key, member) in enumerate(value.items() if named else enumerate(value)):
        here = f"{path}.{_key(str(key))}" if named else path
        yield f"[{here}]" if named else f"[[{here}]]"
        if isinstance(member, Recipe):
            yield from explain(member, path=f"{here}.", only=None if only is None else only[key])
        else:
            yield from (f"{_key(inner)} = {_inline(plain)}" for inner, plain in member.items())
            yield from [""] if number < len(value) - 1 else []


def _comment(text: str | None) -> list[str]:
    """A blank line and the text; nothing where there is none."""
    lines = textwrap.wrap(" ".join((text or "").split()).replace("``", ""), _WIDTH - 2)
    return ["", *(f"# {line}" for line in lines)] if lines else []


def _key(name: str) -> str:
    return name if re.fullmatch(r"[\w-]+", name, re.ASCII) else json.dumps(name, ensure_ascii=False)


def _inline(value: Any) -> str:
    """A plain value as TOML: JSON's scalars are TOML's."""
    if value is None:
        return "not set"
    if isinstance(value, Recipe):
        return _inline(value.resolved())
    if isinstance(value, Mapping):
        inside = ", ".join(f"{_key(key)} = {_inline(inner)}" for key, inner in value.items())
        return f"{{ {inside} }}" if inside else "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_inline, value))}]"
    return json.dumps(value, ensure_ascii=False)
