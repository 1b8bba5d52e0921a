"""Validate custom resources against their definitions, as an API server does.

Drop null values, fill in defaults, validate against the schema, refuse unknown fields and evaluate the CEL rules. Rules
about an update (``oldSelf``) need two objects and are left out.

The upstream definitions are in a folder next to the checkout; without them, tests that need them are skipped.
"""

import functools
from collections.abc import Iterator
from typing import Any

import celpy
import paths
from jsonschema import Draft4Validator
from manifests import Document, label, parsed

SCHEMAS = paths.SHARED / "schemas"
ALWAYS = {"apiVersion", "kind", "metadata"}

VERSIONS = {"ray.io": "v1", "kueue.x-k8s.io": "v1beta2", "monitoring.coreos.com": "v1"}
"""The versions that the manifests may use. Definitions still serve older ones."""


def is_custom(document: Document) -> bool:
    return document["apiVersion"].partition("/")[0] in VERSIONS


def problems(document: Document) -> Iterator[str]:
    """Errors with which an API server would refuse a custom resource."""
    group, _, version = document["apiVersion"].partition("/")
    if version != VERSIONS[group]:
        yield f"{label(document)}: apiVersion {document['apiVersion']}: only {VERSIONS[group]} is accepted"
        return
    names, schema = _definition(group, document["kind"])
    if (names == "Namespaced") != ("namespace" in document["metadata"]):
        yield f"{label(document)}: metadata.namespace: the kind is {names}"
    found = _defaulted(_without_nulls(document), schema)
    for error in Draft4Validator(schema).iter_errors(found):
        yield f"{label(document)}: {'.'.join(map(str, error.absolute_path))}: {error.message[:200]}"
    for problem in _deeper(found, schema, ""):
        yield f"{label(document)}: {problem}"


@functools.cache
def _definition(group: str, kind: str) -> tuple[str, Document]:
    """Scope and schema of a kind."""
    plural = {"Topology": "topologies", "WorkloadPriorityClass": "workloadpriorityclasses"}.get(
        kind, f"{kind.lower()}s"
    )
    (path,) = SCHEMAS.glob(f"*/{group}_{plural}.yaml")
    (definition,) = parsed(path.read_text(encoding="utf-8"))
    spec = definition["spec"]
    assert spec["names"]["kind"] == kind
    (version,) = [found for found in spec["versions"] if found["name"] == VERSIONS[group]]
    assert version["served"]
    return spec["scope"], version["schema"]["openAPIV3Schema"]


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(inner) for name, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value


def _defaulted(value: Any, schema: Document) -> Any:
    if isinstance(value, list):
        return [_defaulted(inner, schema.get("items", {})) for inner in value]
    if not isinstance(value, dict):
        return value
    known = schema.get("properties", {})
    absent = {name: inner["default"] for name, inner in known.items() if "default" in inner and name not in value}
    rest = schema.get("additionalProperties")
    other = rest if isinstance(rest, dict) else {}
    return {name: _defaulted(inner, known.get(name, other)) for name, inner in {**value, **absent}.items()}


def _deeper(value: Any, schema: Document, path: str) -> Iterator[str]:
    """Unknown fields and broken CEL rules, everywhere below."""
    yield from _broken_rules(value, schema, path)
    if isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _deeper(inner, schema.get("items", {}), f"{path}[{number}]")
    if not isinstance(value, dict):
        return
    known, rest = schema.get("properties"), schema.get("additionalProperties")
    for name, inner in value.items():
        below = f"{path}.{name}".lstrip(".")
        if known is not None and name in known:
            yield from _deeper(inner, known[name], below)
        elif isinstance(rest, dict):
            yield from _deeper(inner, rest, below)
        elif _is_closed(schema) and not (path == "" and name in ALWAYS) and not path.startswith("metadata"):
            yield f"{below}: unknown field"


def _is_closed(schema: Document) -> bool:
    return "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields")


def _broken_rules(value: Any, schema: Document, path: str) -> Iterator[str]:
    for found in schema.get("x-kubernetes-validations", []):
        if "oldSelf" in found["rule"]:
            continue
        try:
            holds = _program(found["rule"]).evaluate({"self": celpy.json_to_cel(value)})
        except celpy.CELEvalError as error:
            holds, found = False, {**found, "message": f"{found['rule']} cannot be evaluated: {error}"}
        if not holds:
            yield f"{path}: {found.get('message', found['rule'])}"


@functools.cache
def _program(rule: str) -> Any:
    environment = celpy.Environment()
    return environment.program(environment.compile(rule))
