"""Fill a student's model card from a report, in the format of the Hugging Face Hub.

::

    stillhouse card REPORT --student DIR [--license ID] [--language CODE …] [--base-model ID] [--dataset ID …]

Writes ``README.md`` in the student's folder atomically: metadata with every score as ``model-index`` results, and a
section "Results", which replaces an earlier one. All other text of the card stays. The student's identity does not
change, because the card is not part of its artifact.
"""

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from cluster.artifacts import artifact, commit, errors
from cluster.artifacts.commit import CARD, ArtifactError
from cluster.artifacts.recipe import Recipe
from cluster.models import model_check, model_folder
from cluster.storage import filesystem
from cluster.storage.filesystem import Location
from cluster.telemetry import progress
from eval.report import model_card_text
from eval.report.model_card_text import METRICS, scored_set
from eval.results.schema import TEACHER

UNKNOWN = "unknown"
"""The Hub's word for a license that is not stated."""
BEST = "best_"
NO_DATA = "---\n\n---\n"
_OPENED = re.compile(r"\s*---\s*\n\w+:")
"""The beginning of metadata, which the library takes for text where no line ends it."""


class CardFacts(Recipe):
    """Facts for a student's model card that no stage can know; None keeps those of the card or the report."""

    license: str | None = None
    """License of the student, by its identifier on the Hub: ``apache-2.0``."""
    language: tuple[str, ...] | None = None
    """Languages of the text, as ISO 639 codes."""
    base_model: str | None = None
    """The teacher's name on the Hub."""
    datasets: tuple[str, ...] | None = None
    """Names of the training data sets on the Hub."""


def fill(report: Location, student: Location, stated: CardFacts) -> Location:
    """Fill the student's card from the report; returns the card's path.

    Raises:
        ArtifactError: no report or no student there, the report is not of this student, or the card cannot be read.
    """
    found = artifact.read(report, "report")
    values = filesystem.read_json(found.location / "report.json")
    name = _name(values, student)
    place = student / CARD
    card = _earlier(place)
    data = _data(values, name, student.name, dict(card.data.to_dict()), stated)  # type: ignore[no-untyped-call]
    results = model_card_text.results(values, name, found.identity)
    body = model_card_text.with_section(
        card.text.strip() or model_card_text.opening(values, name), model_card_text.RESULTS, results
    )
    with filesystem.writing(place) as temporary:
        temporary.write_text(f"---\n{data.to_yaml()}\n---\n\n{body}\n", encoding="utf-8")
    for missing in _missing(values, data):
        progress.say(f"{place}: {missing}")
    return place


def _earlier(place: Location) -> ModelCard:
    """The card that is there, or an empty one.

    Raises:
        ArtifactError: it is no text, or its metadata is not what YAML allows.
    """
    remedy = "correct it, or delete the file for a new card"
    try:
        text = filesystem.read_bytes(place).decode("utf-8") if filesystem.is_file(place) else ""
        card = ModelCard(text or NO_DATA, ignore_metadata_errors=True)
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{place} is not UTF-8 ({error.reason} at byte {error.start}): {remedy}") from None
    except yaml.MarkedYAMLError as error:
        # Its first line comes after the opening ---.
        line = error.problem_mark.line + 2 if error.problem_mark else 1
        raise ArtifactError(f"{place}: line {line}: the metadata is not YAML ({error.problem}): {remedy}") from None
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise ArtifactError(f"{place}: the metadata is not a list of names and values ({error}): {remedy}") from None
    if _OPENED.match(card.text):
        raise ArtifactError(f"{place}: no line --- ends the metadata: add it, or delete the file for a new card")
    return card


def _name(report: Mapping[str, Any], student: Location) -> str:
    """Name of this student in the report."""
    if not filesystem.exists(student):
        raise ArtifactError(
            f"{student} does not exist: --student takes the folder of a student, as out/students/student"
        )
    if filesystem.is_file(student / commit.MANIFEST):
        made = model_check.unchanged(student) if isinstance(student, Path) else artifact.read(student)
        identity = made.identity
    elif isinstance(student, Path):
        model_check.check(student)
        identity = model_folder.weights_identity(student)
    else:
        raise ArtifactError(f"{student} has no {commit.MANIFEST}: name a student artifact, or a folder of this machine")
    names = [model["name"] for model in report["models"] if model["identity"] == identity]
    if not names:
        known = ", ".join(model["name"] for model in report["models"]) or "no models"
        raise ArtifactError(
            f"{student} is not in the report, which has {known}: make a report of its results with stillhouse report"
        )
    return str(names[0])


def _data(
    report: Mapping[str, Any], name: str, title: str, before: Mapping[str, Any], stated: CardFacts
) -> ModelCardData:
    """The card's metadata: stated facts override those of the card, which override those of the report."""
    known = {key: value for key, value in before.items() if key != "model-index"}
    results = evaluations(report, name)
    # All data sets of our tasks on the Hub are in English.
    is_english = any("/" in scored_set(row["task"], row["metric"]).dataset for row in report["scores"])
    language = known.get("language") or (["en"] if is_english else None)
    known |= {
        "library_name": known.get("library_name", "transformers"),
        "pipeline_tag": known.get("pipeline_tag", "fill-mask"),
        "license": stated.license or known.get("license", UNKNOWN),
        "language": list(stated.language) if stated.language else language,
        "base_model": stated.base_model or known.get("base_model"),
        "datasets": list(stated.datasets) if stated.datasets else known.get("datasets") or _datasets(report),
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
                continue  # uses a threshold that was chosen on the same examples
            named = scored_set(row["task"], metric)
            seeds = f"{len(row['seeds'])} seed{'s' if len(row['seeds']) > 1 else ''}"
            found.append(
                EvalResult(
                    task_type=named.task_type,
                    dataset_name=f"{named.title} (subset)" if row["subset"] else named.title,
                    dataset_type=named.dataset,
                    dataset_config=named.configuration,
                    dataset_split=named.split,
                    metric_type=METRICS.get(named.metric, named.metric),
                    metric_name=f"{named.metric.replace('_', ' ')}, %, median of {seeds}",
                    metric_value=round(spread["median"], 2),
                )
            )
    return found


def _missing(report: Mapping[str, Any], data: ModelCardData) -> list[str]:
    """Missing facts that only people know, for example whether a name is one of the Hub or a folder."""
    found = [f"license is {UNKNOWN}: give --license ID"] if data.license == UNKNOWN else []
    if data.base_model is None:
        origin = next((model["origin"] for model in report["models"] if model["name"] == TEACHER), None)
        found.append(f"base_model is not stated: give --base-model ID if the teacher ({origin}) is on the Hub")
    return found


def _datasets(report: Mapping[str, Any]) -> list[str]:
    """Data sets of the Hub in the corpus."""
    recipes = [entry["recipe"] for entry in report["descent"] if entry["kind"] == "corpus"]
    sources: list[Mapping[str, Any]] = [source for recipe in recipes for source in recipe.get("sources", ())]
    return [source["dataset"] for source in sources if source.get("kind") == "hub"]


def main(arguments: Sequence[str] | None = None, prog: str = "stillhouse card") -> None:
    """The command line."""
    epilog = f"example: {prog} out/report --student out/students/student --license apache-2.0"
    parser = argparse.ArgumentParser(prog=prog, description=(__doc__ or "").partition("\n")[0], epilog=epilog)
    parser.add_argument("report", metavar="REPORT", help="report that stillhouse report made; example: out/report")
    student = "folder of the student, whose README.md is filled; example: out/students/student"
    parser.add_argument("--student", metavar="DIR", required=True, help=student)
    licence = "the Hub's name of a license (default: that of the card, else unknown); example: apache-2.0"
    parser.add_argument("--license", metavar="ID", help=licence)
    language = "languages of its training text (default: those of the card); example: en de"
    parser.add_argument("--language", metavar="CODE", nargs="+", help=language)
    base = "the teacher's name on the Hub (default: that of the card); example: google-bert/bert-base-uncased"
    parser.add_argument("--base-model", metavar="ID", help=base)
    dataset = "data sets of the Hub in its training text (default: those of the corpus); example: wikimedia/wikipedia"
    parser.add_argument("--dataset", metavar="ID", nargs="+", help=dataset)
    options = parser.parse_args(arguments)
    stated = CardFacts(
        license=options.license,
        language=tuple(options.language) if options.language else None,
        base_model=options.base_model,
        datasets=tuple(options.dataset) if options.dataset else None,
    )
    with errors.errors_for_people():
        print(fill(filesystem.location(options.report), filesystem.location(options.student), stated))
