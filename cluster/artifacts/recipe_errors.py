"""One line for what is wrong in a recipe: where, and what to write instead."""

import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pydantic

from cluster.telemetry.formatting import plural

EXAMPLE = "example"
"""Key of ``json_schema_extra``: what to write for a field without default, printed where it is missing."""

OF_STAGE = "stage"
"""Key of ``json_schema_extra``: the stage whose recipe a table of plain values holds, or changes."""

_QUOTED = re.compile(r"'([^']*)'")
_JSON_WORDS = re.compile(r"an? (?:valid )?(array|object|dictionary|tuple|list)\b")
_TOML_WORDS = {"array": "list", "tuple": "list", "list": "list", "object": "table", "dictionary": "table"}


def explain(schema: Mapping[str, Any], values: Mapping[str, Any], error: pydantic.ValidationError) -> str:
    """The first error; ``schema`` is the JSON schema of the recipe and ``values`` what was written."""
    first, alternatives = _telling(values, error.errors(include_url=False, include_context=True))
    kind, context = first["type"], first.get("ctx", {})
    if kind == "missing":
        return _missing(schema, values, first["loc"])
    if kind == "extra_forbidden":
        parents, table = _written(values, first["loc"][:-1])
        last, prefix = str(first["loc"][-1]), ".".join(map(str, parents))
        place = f"{prefix}.{last}" if prefix else last
        return f"unknown key {place}{suggest(last, _keys(schema, parents, table), prefix)}"
    place = ".".join(map(str, _written(values, first["loc"])[0]))
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        return _wrong_member(schema, values, first, place)
    if kind == "value_error":
        return f"{place}: {context['error']}" if place else str(context["error"])
    expected = _expected([_message(each) for each in alternatives])
    written = json.dumps(first["input"], default=str, ensure_ascii=False)
    return f"{place}: {expected}, not {written}{_hint(schema, values, first, expected)}"


def nearest(wrong: str, known: Iterable[str]) -> str | None:
    """The known name that resembles a wrong one."""
    found = difflib.get_close_matches(wrong, [*known], n=1)
    return found[0] if found else None


def suggest(wrong: str, known: Sequence[str], prefix: str = "") -> str:
    """The known key that resembles a wrong one, else all of them."""
    near = difflib.get_close_matches(wrong, known, n=1, cutoff=0.5)
    full = [f"{prefix}.{key}" if prefix else key for key in (near or known)]
    if near:
        return f"; did you mean {full[0]}?"
    return f"; known here: {', '.join(full)}" if full else ""


def tables_called(name: str, values: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Paths of the tables of this name, the outermost first: ``finetune`` is ``suite.finetune`` in a pipeline."""
    tables = {key: value for key, value in values.items() if isinstance(value, Mapping)}
    found = [f"{prefix}{name}"] if name in tables else []
    return found + [path for key, value in tables.items() for path in tables_called(name, value, f"{prefix}{key}.")]


def _telling(values: Mapping[str, Any], errors: Sequence[Any]) -> tuple[Any, list[Any]]:
    """The error to report, and the errors of other types that its value might have.

    A table among several allowed types is compared with the type that is a table.
    """
    first = errors[0]
    place = _written(values, first["loc"])[0]
    alike = [each for each in errors if _written(values, each["loc"])[0][: len(place)] == place]
    if isinstance(first["input"], Mapping) and first["type"] not in ("missing", "extra_forbidden"):
        inside = [each for each in alike if len(each["loc"]) > len(first["loc"]) or each["type"] == "value_error"]
        if inside:
            return inside[0], inside[:1]
    same = [each for each in alike if each["input"] is first["input"] or each["input"] == first["input"]]
    return first, [each for each in same if each["type"] not in ("missing", "extra_forbidden", "value_error")] or [
        first
    ]


def _message(error: Any) -> str:
    """What pydantic says, in the words of TOML."""
    if error["type"] == "too_short":
        return f"Input should be a list of at least {plural(error['ctx']['min_length'], 'value')}"
    if error["type"] == "too_long":
        return f"Input should be a list of at most {plural(error['ctx']['max_length'], 'value')}"
    return _JSON_WORDS.sub(lambda found: f"a {_TOML_WORDS[found[1]]}", error["msg"])


def _hint(schema: Mapping[str, Any], values: Mapping[str, Any], error: Any, expected: str) -> str:
    """A value that resembles the wrong one, or that the wrong one belongs into a list."""
    wrong = error["input"]
    if isinstance(wrong, str) and (near := nearest(wrong, _QUOTED.findall(expected))):
        return f"; did you mean {near}?"
    parents, _ = _written(values, error["loc"])
    members = {branch.get("type") for branch in _branches(schema, [*parents, 0])}
    kinds = {"string": str, "integer": int, "number": int | float, "object": Mapping}
    fits = any(isinstance(wrong, kinds[name]) for name in members if name in kinds)
    return "; put it in [ ]" if fits and "a list" in expected else ""


def _expected(messages: Sequence[str]) -> str:
    """What the types of a union expect: ``input should be a valid integer or 'auto'``."""
    begin = "Input should be "
    if all(message.startswith(begin) for message in messages):
        return begin.lower() + " or ".join(dict.fromkeys(message.removeprefix(begin) for message in messages))
    return messages[0][:1].lower() + messages[0][1:]


def _missing(schema: Mapping[str, Any], values: Mapping[str, Any], location: Sequence[int | str]) -> str:
    parents, _ = _written(values, location[:-1])
    last = str(location[-1])
    place = ".".join([*map(str, parents), last])
    examples = [
        branch["properties"][last].get(EXAMPLE)
        for branch in _branches(schema, parents)
        if last in branch.get("properties", {})
    ]
    example = next((text for text in examples if text), None)
    return f"{place} is missing and has no default" + (f": write {example}" if example else "")


def _wrong_member(schema: Mapping[str, Any], values: Mapping[str, Any], error: Any, place: str) -> str:
    """A table whose ``kind`` is missing or unknown."""
    key = _QUOTED.findall(error["ctx"]["discriminator"])[0]
    parents, _ = _written(values, error["loc"])
    constants = [branch.get("properties", {}).get(key, {}).get("const") for branch in _branches(schema, parents)]
    known = [str(name) for name in constants if name is not None]
    if error["type"] == "union_tag_not_found":
        return f"{place}.{key} is missing: write {key} = one of {', '.join(map(json.dumps, known))}"
    wrong = str(error["ctx"]["tag"])
    near = nearest(wrong, known)
    hint = f"did you mean {near}?" if near else f"write one of {', '.join(map(json.dumps, known))}"
    return f"{place}.{key}: no {key} is called {wrong}; {hint}"


def _written(values: Any, location: Sequence[int | str]) -> tuple[list[int | str], Any]:
    """The keys of a pydantic location that are in the file, and the value there; others name a member of a union."""
    place: list[int | str] = []
    for part in location:
        if isinstance(part, int) or (isinstance(values, Mapping) and part in values):
            values = values[part]
            place.append(part)
    return place, values


def _keys(schema: Mapping[str, Any], parents: Sequence[int | str], table: Mapping[str, Any]) -> list[str]:
    """Keys allowed in ``table`` at ``parents``."""
    branches = [branch.get("properties", {}) for branch in _branches(schema, parents)]
    return sorted({key for properties in branches if _fits(properties, table) for key in properties})


def _branches(schema: Mapping[str, Any], parents: Sequence[int | str]) -> list[dict[str, Any]]:
    """The object schemas that may be at ``parents``."""
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
    return _resolve(node, schema)


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
