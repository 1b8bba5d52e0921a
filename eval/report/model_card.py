"""A student's model card, filled from a report, in the format of the Hugging Face Hub.

::

    stillhouse card REPORT --student DIR [--license ID] [--language CODE …] [--base-model ID] [--dataset ID …]

Writes ``README.md`` in the student's folder, whole or not at all: metadata with every score as ``model-index`` results,
and a section "Results". Everything else that the card says stays as it is, also what people wrote into it; run again
with a newer report, it says the newer numbers. The student itself is not touched: a card is no part of its artifact.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from cluster.artifacts import artifact, commit, errors
from cluster.artifacts.commit import CARD, ArtifactError
from cluster.models import model_folder
from cluster.storage import filesystem
from cluster.storage.filesystem import Location
from cluster.telemetry import progress
from eval.report import model_card_text
from eval.report.model_card_text import METRICS, scored_set
from eval.results.schema import TEACHER

UNKNOWN = "unknown"
"""The Hub's own word for a license nobody has stated."""
BEST = "best_"
NO_DATA = "---\n\n---\n"


@dataclass(frozen=True)
class CardNumbers:
    """What only people know; None leaves what the card says, or what the report knows."""

    license: str | None = None
    language: tuple[str, ...] | None = None
    base_model: str | None = None
    datasets: tuple[str, ...] | None = None


def fill(report: Location, student: Location, told: CardNumbers) -> Location:
    """Fill the student's card from the report; returns the card's path.

    Raises:
        ArtifactError: no report or no student there, or the report is not of this student.
    """
    found = artifact.read(report, "report")
    values = filesystem.read_json(found.location / "report.json")
    name = _name(values, student)
    place = student / CARD
    card = ModelCard(_read(place) or NO_DATA, ignore_metadata_errors=True)
    data = _data(values, name, student.name, dict(card.data.to_dict()), told)  # type: ignore[no-untyped-call]
    results = model_card_text.results(values, name, found.identity)
    body = model_card_text.with_section(
        card.text.strip() or model_card_text.opening(values, name), model_card_text.RESULTS, results
    )
    with filesystem.writing(place) as temporary:
        temporary.write_text(f"---\n{data.to_yaml()}\n---\n\n{body}\n", encoding="utf-8")
    for lack in _unsaid(values, data):
        progress.say(f"{place}: {lack}")
    return place


def _read(place: Location) -> str:
    if not filesystem.is_file(place):
        return ""
    text: str = place.read_text(encoding="utf-8")
    return text


def _name(report: Mapping[str, Any], student: Location) -> str:
    """What the report calls this student."""
    if filesystem.is_file(student / commit.MANIFEST):
        identity = artifact.read(student).identity
    elif isinstance(student, Path):
        identity = model_folder.weights_identity(student)
    else:
        raise ArtifactError(f"{student} has no {commit.MANIFEST}: name a student artifact, or a folder of this machine")
    names = [model["name"] for model in report["models"] if model["identity"] == identity]
    if not names:
        known = ", ".join(model["name"] for model in report["models"]) or "no model"
        raise ArtifactError(f"the report is not of {student} (it is of {known}): make one of it with eval.report")
    return str(names[0])


def _data(
    report: Mapping[str, Any], name: str, title: str, before: Mapping[str, Any], told: CardNumbers
) -> ModelCardData:
    """The card's metadata: what people said comes first, then what the card said, then what the report knows."""
    said = {key: value for key, value in before.items() if key != "model-index"}
    results = evaluations(report, name)
    language = said.get("language") or (["en"] if any(_is_english(row) for row in report["scores"]) else None)
    known = said | {
        "library_name": said.get("library_name", "transformers"),
        "pipeline_tag": said.get("pipeline_tag", "fill-mask"),
        "license": told.license or said.get("license", UNKNOWN),
        "language": list(told.language) if told.language else language,
        "base_model": told.base_model or said.get("base_model"),
        "datasets": list(told.datasets) if told.datasets else said.get("datasets") or _datasets(report),
        "metrics": sorted({result.metric_type for result in results}) or None,
    }
    if results:
        known |= {"model_name": title, "eval_results": results}
    return ModelCardData(**{key: value for key, value in known.items() if value})


def evaluations(report: Mapping[str, Any], name: str) -> list[EvalResult]:
    """Every metric on every set of examples as a result of the Hub's ``model-index``, in percent."""
    found = []
    for row in (row for row in report["scores"] if row["model"] == name):
        for metric, spread in row["metrics"].items():
            if metric.startswith(BEST):
                continue  # with a threshold that was chosen on these very examples, and the threshold itself
            known = scored_set(row["task"], metric)
            seeds = f"{len(row['seeds'])} seed{'s' if len(row['seeds']) > 1 else ''}"
            found.append(
                EvalResult(
                    task_type=known.task_type,
                    dataset_name=f"{known.title} (subset)" if row["subset"] else known.title,
                    dataset_type=known.dataset,
                    dataset_config=known.configuration,
                    dataset_split=known.split,
                    metric_type=METRICS.get(known.metric, known.metric),
                    metric_name=f"{known.metric.replace('_', ' ')}, %, median of {seeds}",
                    metric_value=round(spread["median"], 2),
                )
            )
    return found


def _is_english(row: Mapping[str, Any]) -> bool:
    """Every public set of examples there is a task for is in English."""
    return "/" in scored_set(row["task"], row["metric"]).dataset


def _unsaid(report: Mapping[str, Any], data: ModelCardData) -> list[str]:
    """What the card lacks that only people know: whether a name is one of the Hub or of a folder, for one."""
    found = [f"license is {UNKNOWN}: say --license ID"] if data.license == UNKNOWN else []
    if data.base_model is None:
        origin = next((model["origin"] for model in report["models"] if model["name"] == TEACHER), None)
        found.append(f"base_model is not stated: say --base-model ID if the teacher ({origin}) is on the Hub")
    return found


def _datasets(report: Mapping[str, Any]) -> list[str]:
    """Data sets of the Hub that the corpus was made of."""
    recipes = [entry["recipe"] for entry in report["descent"] if entry["kind"] == "corpus"]
    sources: list[Mapping[str, Any]] = [source for recipe in recipes for source in recipe.get("sources", ())]
    return [source["dataset"] for source in sources if source.get("kind") == "hub"]


def main(arguments: Sequence[str] | None = None, prog: str = "stillhouse card") -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog=prog, description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("report", metavar="REPORT", help="what eval.report made")
    parser.add_argument("--student", metavar="DIR", required=True, help="folder of the student")
    parser.add_argument("--license", metavar="ID", help="the Hub's name of a license, apache-2.0")
    parser.add_argument("--language", metavar="CODE", nargs="+", help="languages of the text it was trained on, en")
    parser.add_argument("--base-model", metavar="ID", help="the teacher's name on the Hub")
    parser.add_argument("--dataset", metavar="ID", nargs="+", help="data sets of the Hub it was trained on")
    options = parser.parse_args(arguments)
    told = CardNumbers(
        options.license,
        tuple(options.language) if options.language else None,
        options.base_model,
        tuple(options.dataset) if options.dataset else None,
    )
    with errors.errors_for_people():
        print(fill(filesystem.location(options.report), filesystem.location(options.student), told))
