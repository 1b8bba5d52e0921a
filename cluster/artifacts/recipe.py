"""Recipes: TOML files read strictly into frozen pydantic models.

The class is schema, default and documentation; the file holds only what differs. An unknown key is refused with the
nearest known name. The table ``placement`` says where a stage runs, not what it makes, and is not part of the recipe's
identity.
"""

import difflib
import functools
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import pydantic

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
            return cls.model_validate_json(json.dumps(values))
        except pydantic.ValidationError as error:
            raise RecipeError(f"{source}: {_explain(cls, values, error)}") from None
        except TypeError as error:
            raise RecipeError(f"{source}: {error}; dates and times have no place in a recipe") from None

    def resolved(self) -> dict[str, Any]:
        """Every value, defaults included, as plain JSON."""
        return self.model_dump(mode="json")

    def tables(self) -> "Mapping[str, Recipe]":
        """The recipes of other stages that this one holds as plain values, by field."""
        return {}

    def identity(self) -> dict[str, Any]:
        """:meth:`resolved` without ``placement``."""
        return {key: value for key, value in self.resolved().items() if key != PLACEMENT}


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
    near = difflib.get_close_matches(name, shipped, n=1)
    hint = f"did you mean {near[0]}?" if near else "stillhouse recipes lists those that ship"
    raise RecipeError(f"recipe {name} is neither a file nor one that ships: {hint}")


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
    for part in table.split(".") if table else []:
        if not isinstance(values, dict) or not isinstance(values.get(part), dict):
            known = [key for key, value in values.items() if isinstance(value, dict)]
            raise RecipeError(f"{path}: no table [{table}]{_suggest(part, known)}")
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

    ``a`` becomes a table if it is none; the recipe's class may refuse that.

    Raises:
        RecipeError: not of the form ``key=value``.
    """
    key, equals, text = setting.partition("=")
    if not equals or not key.strip():
        raise RecipeError(f"--set {setting}: write key=value, for example --set loss.temperature=2.0")
    try:
        value: Any = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    tree: dict[str, Any] = {}
    branch = tree
    *parents, last = key.strip().split(".")
    for part in parents:
        branch[part] = {}
        branch = branch[part]
    branch[last] = value
    return merge(values, tree)


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``changes`` over it, table by table; lists and scalars are replaced whole."""
    merged = dict(base)
    for key, value in changes.items():
        below = merged.get(key)
        merged[key] = merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def _explain(cls: type[Recipe], values: Mapping[str, Any], error: pydantic.ValidationError) -> str:
    """The first error in one line that says where it is and what to write instead."""
    first = error.errors(include_url=False, include_context=True)[0]
    if first["type"] == "missing":
        parents, _ = _written(values, first["loc"][:-1])
        return f"{'.'.join([*map(str, parents), str(first['loc'][-1])])} is missing and has no default"
    if first["type"] == "extra_forbidden":
        parents, table = _written(values, first["loc"][:-1])
        last, prefix = str(first["loc"][-1]), ".".join(map(str, parents))
        place = f"{prefix}.{last}" if prefix else last
        return f"unknown key {place}{_suggest(last, _keys(cls, parents, table), prefix)}"
    place = ".".join(map(str, _written(values, first["loc"])[0]))
    if first["type"] == "value_error":
        return f"{place}: {first['ctx']['error']}" if place else str(first["ctx"]["error"])
    return f"{place}: {first['msg'].lower()}, not {json.dumps(first['input'], default=str)}"


def _written(values: Any, location: Sequence[int | str]) -> tuple[list[int | str], Any]:
    """The keys of a pydantic location that are in the file, and the value there; others name a member of a union."""
    place: list[int | str] = []
    for part in location:
        if isinstance(part, int) or (isinstance(values, Mapping) and part in values):
            values = values[part]
            place.append(part)
    return place, values


def _keys(cls: type[Recipe], parents: Sequence[int | str], table: Mapping[str, Any]) -> list[str]:
    """Keys allowed in ``table`` at ``parents``, according to the JSON schema."""
    schema = cls.model_json_schema()
    node: Any = schema
    for part in parents:
        branches = _resolve(node, schema)
        following = [branch["properties"][part] for branch in branches if part in branch.get("properties", {})]
        inside = [
            branch[key]
            for branch in branches
            for key in ("items", "additionalProperties")
            if isinstance(branch.get(key), dict)
        ]
        node = {"anyOf": following or inside}
    branches = [branch.get("properties", {}) for branch in _resolve(node, schema)]
    return sorted({key for properties in branches if _fits(properties, table) for key in properties})


def _fits(properties: Mapping[str, Any], table: Mapping[str, Any]) -> bool:
    """Whether a table has the constants (``kind``) of this member of a union."""
    fixed = {key: known["const"] for key, known in properties.items() if "const" in known}
    return all(table.get(key, value) == value for key, value in fixed.items())


def _resolve(node: Any, schema: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The object schemas of a JSON-schema node, through references and unions."""
    if "$ref" in node:
        return _resolve(schema["$defs"][node["$ref"].rpartition("/")[2]], schema)
    options = [option for key in ("anyOf", "oneOf", "allOf") for option in node.get(key, [])]
    return [found for option in options for found in _resolve(option, schema)] if options else [node]


def _suggest(wrong: str, known: Sequence[str], prefix: str = "") -> str:
    near = difflib.get_close_matches(wrong, known, n=1, cutoff=0.5)
    full = [f"{prefix}.{key}" if prefix else key for key in (near or known)]
    if near:
        return f"; did you mean {full[0]}?"
    return f"; known here: {', '.join(full)}" if full else ""
