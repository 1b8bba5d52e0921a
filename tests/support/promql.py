"""The series that a PromQL expression reads."""

import re

_WORDS = {
    "by",
    "without",
    "on",
    "ignoring",
    "group_left",
    "group_right",
    "and",
    "or",
    "unless",
    "offset",
    "bool",
    "inf",
}
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_LABELS = re.compile(r"\{[^{}]*\}|\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^()]*\)|\[[^\[\]]*\]")
_NAME = re.compile(r"(?<![\w.:$])([a-zA-Z_:][\w:]*)\b(?!\s*\()")
_HISTOGRAM = re.compile(r"_(bucket|sum|count)$")


def series(expr: str) -> set[str]:
    """Names of the series in an expression; a histogram's parts count as the histogram."""
    plain = _LABELS.sub(" ", _STRING.sub('""', expr))
    found = {name for name in _NAME.findall(plain) if name not in _WORDS}
    return {_HISTOGRAM.sub("", name) if name.startswith("stillhouse_") else name for name in found}
