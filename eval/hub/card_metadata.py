"""Metadata of a student's model card, which the Hub reads: stated by people, or known from the report."""

import re
from collections.abc import Mapping
from typing import Any

from huggingface_hub import ModelCardData
from pydantic import Field, field_validator

from cluster.artifacts import shipped
from cluster.artifacts.recipe import Recipe
from cluster.models import card_text
from eval.hub.card_sections import scored_set
from eval.results.schema import TEACHER

TRAINED_HERE = "trained here"
"""The origin of a teacher that no model of the Hub is the base of."""
OPTIONS = {"license": "--license ID", "language": "--language CODE", "base_model": "--base-model ID"}
"""What only people know, in the order it is named, with its option of ``stillhouse card``."""
_LANGUAGE = re.compile(r"[a-z]{2,3}|multilingual|code")
_REPOSITORY = re.compile(r"[\w-]+(?:\.[\w-]+)*(?:/[\w-]+(?:\.[\w-]+)*)?")


class CardFacts(Recipe):
    """Facts for a model card that no stage can know; None keeps those of the card or the report."""

    name: str | None = Field(None, min_length=1)
    """Title of the card and name of the results: ``tiny-wiki-bert``. Other students than the main one get their own
    name after it. By default the names of the pipeline's folder and of the student's."""
    license: str | None = None
    """License of the student, by its identifier on the Hub: ``apache-2.0``."""
    language: tuple[str, ...] | None = None
    """Languages of the text, as ISO 639 codes; by default those that the corpus was filtered by."""
    base_model: str | None = None
    """The teacher's name on the Hub."""
    datasets: tuple[str, ...] | None = None
    """Names of the training data sets on the Hub; by default those of the corpus."""
    widget: tuple[str, ...] | None = None
    """Sentences with ``[MASK]`` that the Hub offers to try; by default two in English."""

    @field_validator("name")
    @classmethod
    def _one_line(cls, value: str | None) -> str | None:
        if value is not None and (len(value.splitlines()) != 1 or value != value.strip()):
            raise ValueError(f"{value!r} is no title: write one line without spaces around it")
        return value

    @field_validator("language")
    @classmethod
    def _codes(cls, values: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if wrong := [code for code in values or () if not _LANGUAGE.fullmatch(code)]:
            raise ValueError(f"{wrong[0]!r} is no language of the Hub: write its ISO 639 code, such as en or deu")
        return values

    @field_validator("license")
    @classmethod
    def _license(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[a-z0-9.-]+", value):
            raise ValueError(f"{value!r} is no license of the Hub: write its identifier, such as apache-2.0 or other")
        return value

    @field_validator("base_model")
    @classmethod
    def _repository(cls, value: str | None) -> str | None:
        if value is not None and not _REPOSITORY.fullmatch(value):
            raise ValueError(f"{value!r} is no name on the Hub: write owner/name, or leave it out")
        return value

    @field_validator("datasets")
    @classmethod
    def _repositories(cls, values: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for value in values or ():
            cls._repository(value)
        return values

    @field_validator("widget")
    @classmethod
    def _masked(cls, values: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if wrong := [text for text in values or () if text.count(card_text.MASK) != 1]:
            raise ValueError(f"{wrong[0]!r} needs one {card_text.MASK}")
        return values


def of_student(
    report: Mapping[str, Any], name: str, title: str, before: Mapping[str, Any], stated: CardFacts
) -> ModelCardData:
    """The card's metadata: stated facts override those of the card, which override those of the report.

    ``model-index`` has what this model itself was measured at, masked words; scores of fine-tuned models are theirs.
    """
    known = {key: value for key, value in before.items() if key not in ("model-index", "metrics")}
    model = next(model for model in report["models"] if model["name"] == name)
    results = card_text.masked_word_results(model["validation"])
    language = list(stated.language or ()) or known.get("language") or _language(report)
    known |= {
        "library_name": known.get("library_name", "transformers"),
        "pipeline_tag": known.get("pipeline_tag", "fill-mask"),
        "license": stated.license or known.get("license"),
        "language": language,
        "base_model": stated.base_model or known.get("base_model"),
        "datasets": list(stated.datasets) if stated.datasets else known.get("datasets") or _datasets(report),
        "widget": _widget(stated, known, language),
    }
    if results:
        known |= {"model_name": title, "eval_results": results}
        known["metrics"] = sorted({result.metric_type for result in results} & {"accuracy"})
    return ModelCardData(**{key: value for key, value in known.items() if value})


def missing(report: Mapping[str, Any], data: ModelCardData) -> tuple[str, ...]:
    """The keys that only people know, and the card lacks. A teacher that is not on the Hub is no base there."""
    origin = next((model["origin"] for model in report["models"] if model["name"] == TEACHER), None)
    asked = [key for key in OPTIONS if key != "base_model" or origin not in (TRAINED_HERE, *shipped.models())]
    return tuple(key for key in asked if not getattr(data, key))


def _widget(stated: CardFacts, known: Mapping[str, Any], language: Any) -> list[dict[str, str]] | None:
    """Examples with the mask token of the earlier card's, which is the model's own; English ones for English alone."""
    before = known.get("widget") or []
    mask = "<mask>" if any("<mask>" in each.get("text", "") for each in before) else card_text.MASK
    if stated.widget is not None:
        return [{"text": text.replace(card_text.MASK, mask)} for text in stated.widget]
    english = language is None or "en" in language
    ours = [text.replace(card_text.MASK, mask) for text in card_text.EXAMPLES]
    kept = [each for each in before if english or each.get("text") not in ours]
    return kept or ([{"text": text} for text in ours] if english else None)


def _language(report: Mapping[str, Any]) -> list[str] | None:
    """Languages that the corpus was filtered by; English where it was scored on English tasks of the Hub."""
    if corpus := report.get("corpus"):
        return list(corpus["languages"]) or None
    is_english = any("/" in scored_set(row["task"], row["metric"]).dataset for row in report["scores"])
    return ["en"] if is_english else None


def _datasets(report: Mapping[str, Any]) -> list[str]:
    """Data sets of the Hub in the corpus; a source may also be a folder."""
    recipes = [entry["recipe"] for entry in report["descent"] if entry["kind"] == "corpus"]
    sources: list[Mapping[str, Any]] = [source for recipe in recipes for source in recipe.get("sources", ())]
    named = [source["dataset"] for source in sources if source.get("kind") == "hub"]
    return [name for name in named if _REPOSITORY.fullmatch(name)]
