"""Text of a model card: training text, results, the opening of a new card, and the Hub's names of tasks and metrics."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.models import card_text
from cluster.telemetry.formatting import amount, file_size, millions, percent, plural
from eval.report import measured_tables, paper_tables
from eval.report.pages import Page
from eval.report.table import Row, Table, cells
from eval.results.paper import GLUE, key
from eval.results.schema import STUDENT, TEACHER
from eval.tasks.definitions import TASKS

METRICS = {
    "matthews": "matthews_correlation",
    "pearson": "pearsonr",
    "spearman": "spearmanr",
    "exact": "exact_match",
}
"""Our names of metrics to the Hub's, if they differ."""

_MISMATCHED = "mismatched_"


@dataclass(frozen=True)
class ScoredSet:
    """Examples and a metric by the Hub's names; ``dataset`` is the task's name if the Hub has none."""

    task_type: str
    title: str
    dataset: str
    configuration: str | None
    split: str
    metric: str


_TITLES = {row.task: f"GLUE {row.title}" for row in GLUE}
_TITLES |= {"imdb": "IMDb", "squad": "SQuAD 1.1", "squad2": "SQuAD 2.0"}


def opening(report: Mapping[str, Any], name: str, title: str) -> str:
    """The opening of a new card."""
    model = next(model for model in report["models"] if model["name"] == name)
    text = (
        f"# {title}\n\nA {model['architecture'] or 'student'} of {model['layers'] or '?'} layers and "
        f"{millions(model['parameters'])} parameters"
    )
    # Only the manifest of a student that was distilled here says how.
    if not (found := model.get("differences")):
        return f"{text}."
    distilled = f"distilled by the recipe of [DistilBERT]({card_text.PAPER}) with the differences listed below."
    differences = _lines(paper_tables.differences_of(found))
    return (
        f"{text}, {distilled}\n\n## What differs from the paper\n\n{differences}\n\n## Citation\n\n{card_text.CITATION}"
    )


def training_text(corpus: Mapping[str, Any]) -> str:
    """Text of the section: every source with its license and size; ``corpus`` is that of a report."""
    documents, size = plural(corpus["documents"], "document"), file_size(corpus["bytes"])
    sources = corpus["sources"].items()
    weighted = any(each.get("weight") for _, each in sources)
    head = ("source", "license", "documents", "text", *(("weight",) if weighted else ()))
    rows = [
        (
            label,
            each["licence"] or "not stated",
            f"{each['documents']:,}",
            file_size(each["bytes"]),
            *((amount(each.get("weight"), "g", absent="–"),) if weighted else ()),
        )
        for label, each in sources
    ]
    languages = corpus["languages"]
    filtered = f" Only documents in {', '.join(languages)}, as fastText detects it." if languages else ""
    return f"{card_text.table(head, rows)}\n\nTogether {documents}, {size}, without repeats.{filtered}"


def results(report: Mapping[str, Any], name: str, identity: str) -> str:
    """Text of the section: scores of student and teacher, their conditions, and the main student's speed."""
    measured = [*report["tables"]["1"]["rows"], *report["tables"]["2"]["rows"], *report["other_tasks"]]
    rows = [row for row in measured if name in row["scores"]]
    if not rows:
        return f"No task was measured (report `{identity[:12]}`)."
    seeds = sorted({len(row["seeds"]) for row in report["scores"] if row["model"] == name})
    counted = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    conditions = (
        f"Percent on development sets (IMDb: test set), median over {counted} seed{'s' if seeds[-1] > 1 else ''} of "
        "fine-tuning, with the range. Kept: the share of the teacher's score, fine-tuned by the same code on the same "
        f"examples. The report `{identity[:12]}`, the source of this section, has all other numbers, conditions and "
        "origins."
    )
    parts = [_lines(_table(report, rows, name)), conditions]
    if any(row["subset"] for row in rows):
        parts.append(
            "subset: trained or measured on a part of the task's examples; not comparable with published scores."
        )
    if name == STUDENT and report["latency"]:
        parts += ["### Speed", _lines(_speed(report)), _conditions(report["latency"])]
    return "\n\n".join(parts)


def _table(report: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], name: str) -> Table:
    ranges = {row["task"]: row for row in report["scores"] if row["model"] == name}
    found = []
    for row in rows:
        known = next((score for task, score in ranges.items() if row["task"] in (task, task.lower())), None)
        found.append(_row(row, name, known))
    for mean in report["tables"]["1"]["means"]:
        if name in mean["scores"]:
            texts = (mean["title"], f"{len(mean['tasks'])} tasks", f"{mean['scores'][name]:.1f}", "–")
            found.append(Row(cells((*texts, *_teacher(mean, name), "–")), "total"))
    columns = ("Task", "Metric", "Score", "Range", "Teacher", "Kept", "Examples")
    return Table(columns, tuple(found), frozenset({"Task", "Metric"}))


def _row(row: Mapping[str, Any], name: str, score: Mapping[str, Any] | None) -> Row:
    spread = (score["metrics"].get(row["metric"]) or score) if score else None
    low_high = f"{spread['low']:.1f}–{spread['high']:.1f}" if spread and spread["low"] < spread["high"] else "–"
    examples = f"{row['dev_examples']:,}{', subset' if row['subset'] else ''}"
    same = name in row["comparable"]
    texts = (row["title"], row["metric"] or "", f"{row['scores'][name]:.1f}", low_high)
    return Row(cells((*texts, *(_teacher(row, name) if same else ("–", "–")), examples)))


def _teacher(row: Mapping[str, Any], name: str) -> tuple[str, str]:
    """The teacher's score, and the share of it that the student keeps."""
    teacher = row["scores"].get(TEACHER)
    return amount(teacher, ".1f"), percent(100 * row["scores"][name] / teacher if teacher else None)


def _speed(report: Mapping[str, Any]) -> Table:
    shown = (
        "Workload", "Threads", "Model", "Runtime", "p50 ms", "p99 ms", "Memory", "Size", "× same runtime",
        "× PyTorch teacher",
    )  # fmt: skip
    return measured_tables.latency(report).only(*shown)


def _conditions(latency: Mapping[str, Any]) -> str:
    shown = [row.cells for row in measured_tables.conditions(latency).rows]
    return "Measured with: " + "; ".join(f"{key.text} {value.text}" for key, value in shown) + "."


def _lines(table: Table) -> str:
    page = Page({}, (), None)
    rule = "|" + "".join(" :-- |" if column in table.words else " --: |" for column in table.columns)
    return "\n".join([f"| {' | '.join(table.columns)} |", rule, *(page.line(row) for row in table.rows)])


def scored_set(task: str, metric: str) -> ScoredSet:
    """The examples that a task's metric is measured on."""
    known = TASKS.get(key(task))
    plain = metric.removeprefix(_MISMATCHED)
    if known is None or known.hub is None:
        return ScoredSet("text-classification", task, task, None, "dev", plain)
    kind = "text-classification" if known.answers is None else "question-answering"
    dataset, _, configuration = known.hub.partition(":")
    # The last name of a development set is its split on the Hub; the second set has the mismatched examples of MNLI.
    split = known.dev[0 if plain == metric else 1][-1]
    return ScoredSet(kind, _TITLES[known.name], dataset, configuration or None, split, plain)
