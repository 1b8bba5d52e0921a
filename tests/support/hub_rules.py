"""Rules of the Hugging Face Hub for the metadata of a model card, as its documentation and its answers state them.

The Hub checks every ``README.md`` that is committed (``POST /api/validate-yaml``). A value it does not accept fails the
commit; see https://huggingface.co/docs/hub/model-cards and https://github.com/huggingface/hub-docs (modelcard.md).
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

_LICENSES = """
apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd
bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-
sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-
nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 ecl-2.0 epl-1.0 epl-2.0 eupl-1.1 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0
lgpl lgpl-2.1 lgpl-3.0 isc lppl-1.3c ms-pl mpl-2.0 odc-by odbl osl-3.0 ofl-1.1 unlicense wtfpl zlib pddl ncsa
unknown other
"""
LICENSES = frozenset(_LICENSES.split())
REPOSITORY = re.compile(r"(?:[\w-]+(?:\.[\w-]+)*/)?[\w-]+(?:\.[\w-]+)*")
TASKS = ("fill-mask", "text-classification", "question-answering", "feature-extraction")


def problems(data: Mapping[str, Any]) -> list[str]:
    """What the Hub would refuse in the metadata of a model card."""
    return [*_names(data), *_widget(data), *_model_index(data.get("model-index", []))]


def _names(data: Mapping[str, Any]) -> Iterator[str]:
    if "license" in data and data["license"] not in LICENSES:
        yield f'"license" must be one of the known licenses, not {data["license"]!r}'
    if "pipeline_tag" in data and data["pipeline_tag"] not in TASKS:
        yield f'"pipeline_tag" {data["pipeline_tag"]!r} is unknown'
    for code in _list(data.get("language")):
        if not re.fullmatch(r"[a-z]{2,3}|multilingual|code", code):
            yield f'"language" must be ISO 639 codes, not {code!r}'
    for key in ("base_model", "datasets"):
        for name in _list(data.get(key)):
            if not REPOSITORY.fullmatch(name):
                yield f'"{key}" must match owner/name, not {name!r}'
    for key in ("tags", "metrics"):
        if not all(isinstance(each, str) for each in _list(data.get(key))):
            yield f'"{key}" must be strings'
    if None in data.values() or [] in data.values() or "" in data.values():
        yield "an empty value"


def _widget(data: Mapping[str, Any]) -> Iterator[str]:
    for each in data.get("widget", []):
        if not isinstance(each, dict) or not isinstance(each.get("text"), str):
            yield '"widget" must be a list of texts'
        elif data.get("pipeline_tag") == "fill-mask" and not re.search(r"\[MASK\]|<mask>", each["text"]):
            yield "a widget text without a mask token"


def _model_index(index: Any) -> Iterator[str]:
    for model in index:
        if not isinstance(model.get("name"), str) or not model.get("results"):
            yield '"model-index" needs a name and results'
            continue
        for number, result in enumerate(model["results"]):
            place = f"model-index[0].results[{number}]"
            if result["task"]["type"] not in TASKS:
                yield f"{place}.task.type"
            # The Hub's message: "fails to match the required pattern: /^(?:[\w-]+\/)?[\w-.]+$/".
            if not re.fullmatch(r"(?:[\w-]+/)?[\w.-]+", result["dataset"]["type"]) or not result["dataset"]["name"]:
                yield f"{place}.dataset"
            for metric in result["metrics"]:
                if not isinstance(metric["value"], int | float) or not metric["type"]:
                    yield f"{place}.metrics"
                if metric["type"] in ("accuracy", "matthews_correlation", "pearsonr") and abs(metric["value"]) > 1:
                    yield f"{place}: {metric['type']} is a share of 1"


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]
