"""Fill the model card of a student or a fine-tuned model from a report, in the format of the Hugging Face Hub.

::

    stillhouse card REPORT --student DIR [--name NAME] [--license ID] [--language CODE …] [--base-model ID] …

Writes ``README.md`` in the model's folder atomically: metadata, how to use it, the sources of its training text, and a
section "Results". Earlier sections of these names are replaced; all other text of the card stays. The identity of the
folder does not change, because the card is no part of the artifact. What is unknown is left out of the metadata and
named on stderr.
"""

import argparse
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.artifacts import artifact, commit, errors
from cluster.artifacts.artifact import Artifact
from cluster.artifacts.commit import CARD, ArtifactError
from cluster.artifacts.help_format import HelpFormatter
from cluster.models import card_text, model_check, model_folder
from cluster.storage import filesystem
from cluster.storage.filesystem import Location
from cluster.telemetry import progress
from eval.hub import card_file, card_metadata, card_sections, finetuned_card
from eval.hub.card_metadata import OPTIONS, CardFacts


@dataclass(frozen=True)
class FilledCard:
    """A card that was written, and the keys of :class:`CardFacts` that only people know and nobody has stated."""

    place: Location
    missing: tuple[str, ...]


def fill(report: Location, folder: Location, stated: CardFacts) -> FilledCard:
    """Fill the card of a student or a fine-tuned model from the report.

    Raises:
        ArtifactError: no report or no model there, the report is not of this model, or the card cannot be read.
    """
    found = artifact.read(report, "report")
    values = filesystem.read_json(found.location / "report.json")
    place = folder / CARD
    card = card_file.read(place)
    before = dict(card.data.to_dict())  # type: ignore[no-untyped-call]
    earlier = card.data.get("model_name")
    # A new export is called like its folder, which says little.
    title = stated.name or (earlier if earlier and earlier != folder.name else default_name(folder))
    if (tuned := _finetuned(folder, values)) is not None:
        body = card.text.strip() or finetuned_card.opening(tuned, title, card_text.shown(folder))
        data = finetuned_card.metadata(tuned, title, before, stated)
    else:
        name = _name(values, folder)
        data = card_metadata.of_student(values, name, title, before, stated)
        body = card.text.strip() or card_sections.opening(values, name, title)
        body = _student_sections(body, values, name, found.identity, folder, data.to_dict())  # type: ignore[no-untyped-call]
    if stated.name or re.match(rf"# (?:{re.escape(folder.name)}|{re.escape(earlier or title)})\n", body):
        body = re.sub(r"\A# .*", lambda _: f"# {title}", body)
    with filesystem.writing(place) as temporary:
        temporary.write_text(f"---\n{data.to_yaml()}\n---\n\n{body}\n", encoding="utf-8")
    return FilledCard(place, card_metadata.missing(values, data))


def default_name(folder: Location) -> str:
    """``demo-student`` for ``demo/students/student``, ``demo-student-rte`` for ``demo/finetune/student/rte``."""
    parts = [part for part in folder.parts if part not in (".", "/")]
    for kind, below in (("students", 1), ("finetune", 2)):
        if kind in parts[-below - 1 : -below]:
            return "-".join([*parts[-below - 2 : -below - 1], *parts[-below:]])
    return folder.name


def _finetuned(folder: Location, report: Mapping[str, Any]) -> Artifact | None:
    """The fine-tuned model in the folder; None for a student.

    Raises:
        ArtifactError: it was changed, or is not in the report.
    """
    if not filesystem.is_file(folder / commit.MANIFEST) or artifact.read(folder).kind != "finetune":
        return None
    made = model_check.unchanged(folder) if isinstance(folder, Path) else artifact.read(folder)
    if made.identity not in {entry["identity"] for entry in report["descent"]}:
        raise _absent(folder, (entry["path"] for entry in report["descent"] if entry["kind"] == "finetune"))
    return made


def _student_sections(
    body: str, report: Mapping[str, Any], name: str, identity: str, folder: Location, data: Mapping[str, Any]
) -> str:
    """The text of a student's card with its sections about use, training text and results."""
    example = next((each["text"] for each in data.get("widget") or []), card_text.EXAMPLES[0])
    use = card_text.use(card_text.shown(folder), "masked-words", example=example.replace("<mask>", card_text.MASK))
    body = card_text.with_section(body, card_text.USE, use, before="What differs from the paper")
    if corpus := report.get("corpus"):
        sources = card_sections.training_text(corpus)
        body = card_text.with_section(body, card_text.TEXT, sources, before="Training")
    return card_text.with_section(body, card_text.RESULTS, card_sections.results(report, name, identity))


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
        raise _absent(student, (model["name"] for model in report["models"]))
    return str(names[0])


def _absent(folder: Location, known: Iterable[str]) -> ArtifactError:
    have = ", ".join(known) or "no models"
    return ArtifactError(
        f"{folder} is not in the report, which has {have}: make a report of its results with stillhouse report"
    )


def say_missing(cards: Sequence[FilledCard]) -> None:
    """Name the facts that the cards lack, once for all of them."""
    lacking = [key for key in OPTIONS if any(key in card.missing for card in cards)]
    if lacking:
        what = "the model card lacks" if len(cards) == 1 else f"{len(cards)} model cards lack"
        options = " ".join(OPTIONS[key] for key in lacking)
        progress.say(
            f"{what} {', '.join(lacking)}: write them in [suite.card] of the pipeline and run it again, or give "
            f"stillhouse card {options}"
        )


def main(arguments: Sequence[str] | None = None, prog: str = "stillhouse card") -> None:
    """The command line."""
    epilog = f"example: {prog} out/report --student out/students/student --license apache-2.0"
    parser = argparse.ArgumentParser(
        prog=prog, formatter_class=HelpFormatter, description=(__doc__ or "").partition("\n")[0], epilog=epilog
    )
    parser.add_argument("report", metavar="REPORT", help="report that stillhouse report made; example: out/report")
    student = "folder of the student or fine-tuned model, whose README.md is filled; example: out/students/student"
    parser.add_argument("--student", metavar="DIR", required=True, help=student)
    name = "title of the card (default: that of the card); example: tiny-wiki-bert"
    parser.add_argument("--name", metavar="NAME", help=name)
    licence = "the Hub's name of a license (default: that of the card); example: apache-2.0"
    parser.add_argument("--license", metavar="ID", help=licence)
    language = "languages of its training text (default: those of the card); example: en de"
    parser.add_argument("--language", metavar="CODE", nargs="+", help=language)
    base = "the teacher's name on the Hub (default: that of the card); example: google-bert/bert-base-uncased"
    parser.add_argument("--base-model", metavar="ID", help=base)
    dataset = "data sets of the Hub in its training text (default: those of the corpus); example: wikimedia/wikipedia"
    parser.add_argument("--dataset", metavar="ID", nargs="+", help=dataset)
    widget = "example sentences with [MASK] (default: those of the card); example: 'The [MASK] is open.'"
    parser.add_argument("--widget", metavar="TEXT", nargs="+", help=widget)
    options = parser.parse_args(arguments)
    with errors.errors_for_people():
        values = {
            "name": options.name,
            "license": options.license,
            "language": options.language,
            "base_model": options.base_model,
            "datasets": options.dataset,
            "widget": options.widget,
        }
        stated = CardFacts.of({key: value for key, value in values.items() if value is not None}, prog)
        filled = fill(filesystem.location(options.report), filesystem.location(options.student), stated)
        say_missing([filled])
        print(filled.place)
