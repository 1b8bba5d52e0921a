"""Rows of the report that the first screen speaks of: tasks with their range, and the student's baselines."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cluster.telemetry.formatting import plural, signed
from eval.results.schema import STUDENT, TEACHER

Report = Mapping[str, Any]

_TITLES = {"provenance": "“which source is this from?”", "word_order": "“are two words swapped?”"}


def models(report: Report) -> dict[str, Mapping[str, Any]]:
    """The report's models by name."""
    return {model["name"]: model for model in report["models"]}


def title(row: Mapping[str, Any]) -> str:
    """What a task is called in a sentence."""
    return str(_TITLES.get(row["task"], row["title"]))


def scored_rows(report: Report) -> list[Mapping[str, Any]]:
    """Tasks outside GLUE on which teacher and student have a score of the same examples."""
    rows = [*report["tables"]["2"]["rows"], *report["other_tasks"]]
    return [row for row in rows if row["kept"] is not None]


def of_task(row: Mapping[str, Any]) -> str:
    """How far to trust a score: ``difference −8.0 to +9.8, 240 examples, one seed, always one answer 16.7``."""
    against = row["versus"].get(TEACHER) or {}
    seeds = min(row[side]["seeds"] for side in (TEACHER, STUDENT))
    parts = [
        f"difference {span(against)}" if against.get("low") is not None else "",
        f"{plural(row['dev_examples'], 'example')}" if row["dev_examples"] else "",
        "one seed" if seeds == 1 else f"{seeds} seeds",
        "subset" if row["subset"] else "",
        f"always one answer {row['majority']:.1f}" if row["majority"] else "",
        f"bag of words {row['bag_of_words']['score']:.1f}" if row["bag_of_words"] else "",
    ]
    return ", ".join(part for part in parts if part)


def span(against: Mapping[str, Any], form: str = ".1f") -> str:
    """The range of a difference: ``−6.8 to −1.6``; with more decimals where an end beside zero would read as zero."""
    if against["low"] is None:
        return "no range"
    beside = against["low"] * against["high"] > 0
    while beside and 0.0 in (float(f"{against[end]:{form}}") for end in ("low", "high")) and form < ".6f":
        form = f".{int(form[1]) + 1}f"
    return f"{signed(against['low'], form)} to {signed(against['high'], form)}"


@dataclass(frozen=True)
class Comparison:
    """The student against another model of its size."""

    title: str
    value: str
    """What the student has more: ``+25.4``."""
    unit: str
    score: str
    """Of the other."""
    sides: str
    word: str
    """``better``, ``worse``, ``equal`` or ``unclear``; empty where they are not on the same examples."""


def baselines(report: Report) -> list[Comparison]:
    """Other students of the same size, the strongest first: by GLUE, else on held-out text, else by another task.

    Held-out text comes before tasks outside GLUE: thousands of hidden words tell students apart that a thousand
    examples of a task do not.
    """
    return _on_glue(report) or on_heldout(report) or _on_tasks(report, scored_rows(report))


def on_own_tasks(report: Report) -> list[tuple[str, list[Comparison]]]:
    """Other students on tasks outside GLUE, by the title of the task, where :func:`baselines` is on held-out text."""
    if _on_glue(report) or not on_heldout(report):
        return []
    found = [(title(row), _on_tasks(report, [row])) for row in scored_rows(report)]
    return [(name, others) for name, others in found if others]


def _on_glue(report: Report) -> list[Comparison]:
    return _on_tasks(report, report["tables"]["1"]["rows"])


def _on_tasks(report: Report, rows: Sequence[Mapping[str, Any]]) -> list[Comparison]:
    """On the first of the rows that has another student."""
    known, swept = models(report), _swept(report)
    for row in rows:
        own = row["scores"].get(STUDENT)
        others = {
            name: score
            for name, score in row["scores"].items()
            if name in row["comparable"] and name in known and name not in (TEACHER, STUDENT, *swept)
        }
        if own is None or not others:
            continue
        strongest = sorted(others.items(), key=lambda other: -float(other[1]))
        return [
            Comparison(
                name_of(known[name]), signed(own - score), f"points on {title(row)} against", f"{score:.1f}",
                f"{own:.1f} against {score:.1f}",
                str((row["versus"].get(name) or {}).get("word") or ""),
            )
            for name, score in strongest
        ]  # fmt: skip
    return []


def on_heldout(report: Report) -> list[Comparison]:
    """Other students on held-out text, the lowest loss first."""
    found, measured = models(report), losses(report)
    if STUDENT not in measured.nats:
        return []
    # A sweep compares the same models once more, with its own reference.
    compared = {each["model"]: each for each in report["heldout"]["comparisons"] if each["student"] == STUDENT}
    apart = (TEACHER, STUDENT, *_swept(report))
    others = {name: loss for name, loss in measured.nats.items() if name not in apart}
    return [
        _beside(found[STUDENT], found[name], measured, (compared.get(name) or {}).get("loss") or {})
        for name in sorted(others, key=lambda name: others[name])
    ]


def _beside(
    student: Mapping[str, Any], other: Mapping[str, Any], measured: "Losses", paired: Mapping[str, Any]
) -> Comparison:
    """By the share of hidden words where both have it; the word is that of the losses, which need fewer words."""
    own, loss = measured.nats[STUDENT], measured.nats[other["name"]]
    sides = f"{own:.2f} against {loss:.2f} nats {measured.each}" + (f" ({span(paired, '.2f')})" if paired else "")
    word = str(paired.get("word") or "")
    if None in (student["accuracy"], other["accuracy"]):
        unit = f"per {measured.word} word, less is better, against"
        return Comparison(name_of(other), signed(own - loss, ".2f", " nats"), unit, f"{loss:.2f} nats", sides, word)
    first, second = 100 * student["accuracy"], 100 * other["accuracy"]
    score = f"{second:.1f} %, {loss:.2f} nats {measured.each}"
    unit = "points of hidden words right against"
    return Comparison(name_of(other), signed(first - second), unit, score, sides, word)


@dataclass(frozen=True)
class Losses:
    """Losses on held-out text by model, all on the same kind of word."""

    nats: Mapping[str, float]
    word: Literal["hidden", "masked"]

    @property
    def each(self) -> str:
        """``a word`` where hidden words are spoken of, else ``a masked word``."""
        return "a word" if self.word == "hidden" else "a masked word"


def losses(report: Report) -> Losses:
    """Losses on hidden words, or on all masked ones where a model has no others."""
    by_word: dict[Literal["hidden", "masked"], dict[str, float]] = {
        word: {
            name: model[f"{word}_loss"] for name, model in models(report).items() if model[f"{word}_loss"] is not None
        }
        for word in ("hidden", "masked")
    }
    hidden, masked = by_word["hidden"], by_word["masked"]
    return Losses(masked, "masked") if masked.keys() - hidden.keys() else Losses(hidden, "hidden")


def _swept(report: Report) -> set[str]:
    """Students of a sweep with another reference than the main student, which they cannot be compared with."""
    table = report["tables"]["4"]
    if table["reference"] in (None, STUDENT):
        return set()
    return {table["reference"], *(row["student"] for row in table["rows"])}


def name_of(model: Mapping[str, Any]) -> str:
    """What a student is compared for, else its name."""
    return str(model["title"])
