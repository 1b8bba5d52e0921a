"""Recipes: TOML files read strictly into frozen pydantic models.

The class is schema, default and documentation; the file holds only what differs. An unknown key is refused with the
nearest known name. The table ``placement`` says where a stage runs, not what it makes, and is not part of the recipe's
identity.
"""

import functools
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import pydantic

from cluster.artifacts.recipe_errors import explain, nearest, suggest, tables_called

ROOT = Path(__file__).resolve().parents[2]
PLACEMENT = "placement"


class RecipeError(ValueError):
    """A recipe cannot be read, or has a value that is not allowed."""


class Recipe(pydantic.BaseModel):
    """Base of every recipe: immutable, unknown keys refused, no silent conversion of types."""

    model_config = pydantic.ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    @classmethod
    def of(cls, values: Mapping[str, Any], source: str = "recipe") -> Self:
        """The recipe these plain values describe; ``source`` names them in errors.

        Raises:
            RecipeError: an unknown key, a value of another type, or a value out of its range.
        """
        try:
            # Through JSON, because strict models take a list for a tuple only there.
            return cls.model_validate_json(json.dumps(values, default=_refuse_date))
        except pydantic.ValidationError as error:
            raise RecipeError(f"{source}: {explain(cls.model_json_schema(), values, error)}") from None
        except RecipeError as error:
            raise RecipeError(f"{source}: {error}") from None

    def resolved(self) -> dict[str, Any]:
        """Every value, defaults included, as plain JSON."""
        return self.model_dump(mode="json")

    def tables(self) -> "Mapping[str, Recipe]":
        """The recipes of other stages that this one holds as plain values, by field."""
        return {}

    def identity(self) -> dict[str, Any]:
        """:meth:`resolved` without ``placement``."""
        return {key: value for key, value in self.resolved().items() if key != PLACEMENT}


def _refuse_date(value: Any) -> Any:
    """The only values of TOML that JSON does not have are dates and times."""
    raise RecipeError(f'{value} is a date or time, and dates and times have no place in a recipe: write "{value}"')


R = TypeVar("R", bound=Recipe)


def find(name: str) -> Path:
    """The file of a RECIPE argument: a path, or the name of a shipped recipe (``demo``).

    Raises:
        RecipeError: neither a file nor a shipped recipe.
    """
    if Path(name).is_file():
        return Path(name)
    shipped = {path.stem: path for path in sorted(ROOT.glob("*/recipes/*.toml"))}
    if name in shipped:
        return shipped[name]
    raise RecipeError(f"recipe {name} is neither a file nor one that ships: {_hint(name, shipped)}")


def _hint(name: str, shipped: Mapping[str, Path]) -> str:
    """What to write instead of a recipe that does not exist."""
    if near := nearest(name, shipped):
        return f"did you mean {near}?"
    for other, path in shipped.items():
        if tables := tables_called(name, tomllib.loads(path.read_text(encoding="utf-8"))):
            return f"did you mean the table {other}#{tables[0]}?"
    return "stillhouse recipes lists those that ship"


def split(reference: str) -> tuple[str, str]:
    """File and table of ``FILE#table``; a file whose name has a ``#`` in it comes first."""
    cuts = [number for number, letter in enumerate(reference) if letter == "#"]
    for cut in reversed([*cuts, len(reference)]):
        if Path(reference[:cut]).is_file():
            return reference[:cut], reference[cut + 1 :]
    name, _, table = reference.partition("#")
    return name, table


def read_values(reference: str, settings: Sequence[str] = ()) -> dict[str, Any]:
    """Values of ``FILE``, of one table of it (``FILE#table.path``), or of ``default`` (defaults only), with settings
    ``key=value`` applied, later ones over earlier ones.

    Raises:
        RecipeError: no such file or table, not TOML, or a setting that is not ``key=value``.
    """
    return functools.reduce(override, settings, _read(reference))


def _read(reference: str) -> dict[str, Any]:
    if reference == "default":
        return {}
    name, table = split(reference)
    path = find(name)
    try:
        values: Any = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not TOML: {error}") from None
    whole = values
    for part in table.split(".") if table else []:
        if not isinstance(values, dict) or not isinstance(values.get(part), dict):
            known = [key for key, value in values.items() if isinstance(value, dict)]
            below = tables_called(part, whole)
            hint = f"; did you mean {name}#{below[0]}?" if below else suggest(part, known)
            raise RecipeError(f"{path}: no table [{table}]{hint}")
        values = values[part]
    return dict(values)


def load(cls: type[R], reference: str, settings: Sequence[str] = ()) -> R:
    """A recipe that is not a stage's, which :meth:`~cluster.artifacts.stage.Stage.read` also validates.

    Raises:
        RecipeError: as :meth:`Recipe.of` and :func:`read_values`.
    """
    return cls.of(read_values(reference, settings), split(reference)[0])


def override(values: Mapping[str, Any], setting: str) -> dict[str, Any]:
    """``values`` with one ``a.b=value`` applied; the value is TOML where it parses, else a string.

    ``a`` becomes a table if it is a plain value; the recipe's class may refuse that. ``a.0.b`` is in the first table of
    a list.

    Raises:
        RecipeError: not of the form ``key=value``, or a place that a list does not have.
    """
    key, equals, text = setting.partition("=")
    parts = [part.strip() for part in key.split(".")]
    if not equals or not all(parts):
        raise RecipeError(f"--set {setting}: write key=value, for example --set loss.temperature=2.0")
    try:
        value: Any = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    try:
        return dict(_replace(values, parts, value))
    except LookupError as error:
        raise RecipeError(f"--set {setting}: {error.args[0]}") from None


def _replace(values: Any, parts: Sequence[str], value: Any, above: str = "") -> Any:
    """``values`` with another value at the keys ``parts``; a number is the place in a list.

    Raises:
        LookupError: ``parts`` names a place that a list does not have.
    """
    first, *others = parts
    here = f"{above}.{first}".removeprefix(".")
    if isinstance(values, list):
        known = ", ".join(f"{above}.{place}" for place in range(len(values)))
        if not first.isdecimal() or int(first) >= len(values):
            raise LookupError(f"{above} is a list, in which there is {known or 'nothing'}; {above}=[…] replaces it")
        place = int(first)
        return [*values[:place], _replace({first: values[place]}, parts, value, above)[first], *values[place + 1 :]]
    table = values if isinstance(values, Mapping) else {}
    return merge(table, {first: _replace(table.get(first), others, value, here) if others else value})


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``changes`` over it, table by table; lists and scalars are replaced whole."""
    merged = dict(base)
    for key, value in changes.items():
        below = merged.get(key)
        merged[key] = merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged
