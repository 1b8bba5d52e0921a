"""Rows of the report that the first screen speaks of: tasks with their range, and the student's baselines."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.telemetry.formatting import plural, signed
from eval.results.schema import STUDENT, TEACHER

Report = Mapping[str, Any]

_TITLES = {"provenance": "“which source is this from?”"}


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
    """How far to trust a score: ``±6 points, 240 examples, one seed, always one answer 16.7``."""
    against = row["versus"].get(TEACHER) or {}
    seeds = min(row[side]["seeds"] for side in (TEACHER, STUDENT))
    parts = [
        f"±{2 * against['error']:.1f} points" if against.get("error") is not None else "",
        f"{plural(row['dev_examples'], 'example')}" if row["dev_examples"] else "",
        "one seed" if seeds == 1 else f"{seeds} seeds",
        "subset" if row["subset"] else "",
        f"always one answer {row['majority']:.1f}" if row["majority"] else "",
        f"bag of words {row['bag_of_words']['score']:.1f}" if row["bag_of_words"] else "",
    ]
    return ", ".join(part for part in parts if part)


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
    """``better``, ``worse`` or ``equal``; empty where the doubt is not known."""


def baselines(report: Report) -> list[Comparison]:
    """Other students of the same size, the strongest first: on the first task that all share, else on held-out text.

    Held-out text comes before tasks of one's own: thousands of hidden words tell students apart that a thousand
    examples of a task do not. GLUE comes before both.
    """
    on_glue = _on_tasks(report, report["tables"]["1"]["rows"])
    return on_glue or _on_heldout(report) or _on_tasks(report, scored_rows(report))


def on_own_tasks(report: Report) -> list[tuple[str, list[Comparison]]]:
    """Titles of tasks outside GLUE, and there the students of :func:`baselines` where that is about another measure."""
    if _on_tasks(report, report["tables"]["1"]["rows"]) or not _on_heldout(report):
        return []
    found = [(title(row), _on_tasks(report, [row])) for row in scored_rows(report)]
    return [(name, others) for name, others in found if others]


def _on_tasks(report: Report, rows: Sequence[Mapping[str, Any]]) -> list[Comparison]:
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


def _on_heldout(report: Report) -> list[Comparison]:
    found = models(report)
    own = nats(found.get(STUDENT))
    if own is None:
        return []
    # A sweep compares the same models once more, with its own reference.
    compared = {each["model"]: each for each in report["heldout"]["comparisons"] if each["student"] == STUDENT}
    others = {name: nats(model) for name, model in found.items() if name not in (TEACHER, STUDENT, *_swept(report))}
    losses = {name: loss for name, loss in others.items() if loss is not None}
    return [
        _heldout_comparison(found[STUDENT], found[name], compared.get(name))
        for name, _ in sorted(losses.items(), key=lambda other: other[1])
    ]


def _heldout_comparison(
    student: Mapping[str, Any], other: Mapping[str, Any], compared: Mapping[str, Any] | None
) -> Comparison:
    """By the share of hidden words where both have it, with the paired difference of the losses where it is known."""
    own, loss = nats(student), nats(other)
    assert own is not None
    assert loss is not None
    paired = (compared or {}).get("loss") or {}
    word = str(paired.get("word") or "")
    doubt = f" ± {2 * paired['error']:.2f}" if paired.get("error") is not None else ""
    more = f"{abs(own - loss):.2f}{doubt} nats a word {'worse' if loss > own else 'better'}"
    sides = f"{own:.2f} against {loss:.2f} nats{doubt}"
    if None in (student.get("accuracy"), other.get("accuracy")):
        value = signed(own - loss, ".2f", " nats")
        return Comparison(
            name_of(other), value, "per hidden word, less is better, against", f"{loss:.2f} nats", sides, word
        )
    first, second = 100 * student["accuracy"], 100 * other["accuracy"]
    value = signed(first - second)
    score = f"{second:.1f} %, {more}"
    return Comparison(name_of(other), value, "points of hidden words right against", score, sides, word)


def nats(model: Mapping[str, Any] | None) -> float | None:
    """Loss on hidden words of held-out text, or on all masked ones where these were not measured apart."""
    if model is None:
        return None
    found = model["masked_loss"] if model["hidden_loss"] is None else model["hidden_loss"]
    return None if found is None else float(found)


def _swept(report: Report) -> set[str]:
    """Students of a sweep with another reference than the main student, which they cannot be compared with."""
    table = report["tables"]["4"]
    if table["reference"] in (None, STUDENT):
        return set()
    return {table["reference"], *(row["student"] for row in table["rows"])}


def name_of(model: Mapping[str, Any]) -> str:
    """What a student is compared for, else its name."""
    return str(model["title"])
