"""The report's tables: each is a function of ``report.json``'s contents, in the order a reader meets them."""

import datetime
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from eval.cells import (
    NOT_MEASURED,
    NOTHING,
    Cell,
    Row,
    Table,
    amount,
    cells,
    megabytes,
    millions,
    percent,
    plain,
    ratio,
)
from eval.results import STUDENT, TEACHER

Report = Mapping[str, Any]


def models(report: Report) -> Table:
    """What was made: the teacher, the student, and the ablations."""
    rows = []
    for model in report["models"]:
        # A teacher from elsewhere was not trained here, and agrees with itself: nothing to measure.
        absent = NOTHING if model["name"] == TEACHER else NOT_MEASURED
        texts = (
            model["architecture"] or NOT_MEASURED,
            amount(model["layers"], "d"),
            amount(model["hidden"], "d"),
            millions(model["parameters"]),
            megabytes(model["weight_bytes"]),
            amount(model["masked_loss"], ".3f"),
            amount(model["accuracy"], ".1f", " %", 100),
            amount(model["agreement"], ".1f", " %", 100, absent),
            amount(model["steps"], ",d", absent=absent),
            millions(model["tokens"], absent),
            amount(model["device_hours"], ".2f", absent=absent),
        )
        name = Cell(model["name"], PurePath(model["source"] or "").name)
        rows.append(Row((name, *cells(texts)), "main" if model["name"] == STUDENT else ""))
    columns = (
        "Model", "Architecture", "Layers", "Hidden", "Parameters", "Weights", "MLM loss", "MLM accuracy", "Agreement",
        "Steps", "Tokens", "Device hours",
    )  # fmt: skip
    notes = (
        "MLM loss (nats) and accuracy: masked words of held-out text, the same rows and masks for all runs with the "
        "same seed and validation_rows. Agreement: masked words for which the model's first guess is the teacher's.",
    )
    words = frozenset({"Model", "Architecture"})
    return Table(columns, tuple(rows), words, _findings(report["models"]), notes if rows else ())


def _findings(models: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """The main student against each other one, in a sentence."""
    found = {model["name"]: model for model in models}
    student = found.get(STUDENT)
    if student is None or student["masked_loss"] is None:
        return ()
    findings = []
    for name, other in found.items():
        if name in (TEACHER, STUDENT) or other["masked_loss"] is None:
            continue
        gain = other["masked_loss"] - student["masked_loss"]
        sides = f"{student['masked_loss']:.3f} against {other['masked_loss']:.3f} nats"
        word = "lower" if gain >= 0 else "higher"
        finding = f"The student's MLM loss is {abs(gain):.3f} {word} than that of {name} ({sides}"
        if None not in (student["accuracy"], other["accuracy"]):
            finding += f"; accuracy {100 * student['accuracy']:.1f} % against {100 * other['accuracy']:.1f} %"
        findings.append(f"{finding}), {_same_training(student, other)}.")
    return tuple(findings)


def _same_training(student: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    if None in (student["tokens"], other["tokens"]):
        return "the tokens seen were not recorded for both"
    if student["tokens"] == other["tokens"]:
        return f"both after {millions(student['tokens'])} tokens"
    return f"after {millions(student['tokens'])} tokens against {millions(other['tokens'])}"


def scores(report: Report) -> Table:
    """Tasks against models: medians over seeds with their range, and the paper's numbers beside them."""
    found = report["scores"]
    others = [name for name in found["models"] if name not in (TEACHER, STUDENT)]
    columns = (
        "Task", "Metric", "Teacher", "Student", "Kept", *others, "Majority", "Examples",
        "BERT-base (paper)", "DistilBERT (paper)", "Kept (paper)",
    )  # fmt: skip
    rows = [_score_row(task, others) for task in found["tasks"]]
    if found["macro"]:
        rows.append(_macro_row(found["macro"], others))
    return Table(columns, tuple(rows), frozenset({"Task", "Metric"}), notes=_score_notes(found))


def _score_row(task: Mapping[str, Any], others: Sequence[str]) -> Row:
    published = task["paper"] or {}
    cells = (
        Cell(task["title"]),
        Cell(task["metric"]),
        _score(task["scores"].get(TEACHER)),
        _score(task["scores"].get(STUDENT)),
        Cell(percent(task["kept"].get(STUDENT))),
        *(_score(task["scores"].get(name)) for name in others),
        Cell(amount(task["majority"], ".1f")),
        Cell(f"{task['dev_examples']:,}", "subset" if task["subset"] else ""),
        *_paper_cells(published),
    )
    return Row(cells)


def _macro_row(macro: Mapping[str, Any], others: Sequence[str]) -> Row:
    means = macro["scores"]
    cells = (
        Cell("Mean"),
        Cell(f"{len(macro['tasks'])} tasks" if len(macro["tasks"]) > 1 else macro["tasks"][0]),
        *(Cell(amount(means.get(name), ".1f")) for name in (TEACHER, STUDENT)),
        Cell(percent(macro["kept"][STUDENT])),
        *(Cell(amount(means.get(name), ".1f")) for name in others),
        Cell(NOTHING),
        Cell(NOTHING),
        *_paper_cells(macro["paper"] or {}),
    )
    return Row(cells, "total")


def _paper_cells(published: Mapping[str, Any]) -> tuple[Cell, ...]:
    texts = [amount(published.get(key), ".1f", absent=NOTHING) for key in ("bert_base", "distilbert")]
    return cells((*texts, percent(published.get("kept"), NOTHING)))


def _score(score: Mapping[str, Any] | None) -> Cell:
    if score is None:
        return Cell(NOT_MEASURED)
    spread = f"{score['low']:.1f}–{score['high']:.1f}" if len(score["seeds"]) > 1 else "one seed"
    return Cell(f"{score['score']:.1f}", spread)


def _score_notes(found: Mapping[str, Any]) -> tuple[str, ...]:
    if not found["tasks"]:
        return ()
    counts = {len(score["seeds"]) for task in found["tasks"] for score in task["scores"].values()}
    notes = [
        f"Percent on the development set: median over {_spread(counts)} and, in smaller letters, the range. "
        "Kept: the student's share of the teacher's score; both were fine-tuned by the same code. "
        "Majority: the score of always giving the commonest answer; a share kept means little close to it.",
        "The paper's columns are BERT-base and DistilBERT trained on whole training sets: they are the scale, not "
        "the same experiment.",
    ]
    if any(task["subset"] for task in found["tasks"]):
        notes.append("subset: trained or measured on a part of the task's examples, not comparable with the paper.")
    notes += [
        f"{task['title']}: {task['paper']['note']}." for task in found["tasks"] if (task["paper"] or {}).get("note")
    ]
    if found["unmeasured"]:
        notes.append(f"Of the paper's tasks, not measured here: {', '.join(found['unmeasured'])}.")
    return tuple(notes)


def _spread(counts: set[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low} seed{'s' if low > 1 else ''}" if low == high else f"{low} to {high} seeds"


def exports(report: Report) -> Table:
    """What was exported, how large, and how far from the model it came from."""
    rows = []
    for export in report["exports"]:
        parity = export["parity"] or {}
        texts = (
            export["model"],
            export["format"],
            megabytes(export["bytes"]),
            amount(parity.get("max_abs"), ".2g"),
            amount(parity.get("relative"), ".2g"),
            amount(parity.get("agreement"), ".1f", " %", 100),
        )
        rows.append(Row(cells(texts)))
    columns = ("Model", "Format", "Size", "Largest difference", "Relative difference", "Same answer")
    notes = (
        "Differences of the exported model's outputs from PyTorch's on the same inputs. "
        "Same answer: positions at which both give the same most likely one.",
    )
    return Table(columns, tuple(rows), frozenset({"Model", "Format"}), notes=notes)


def latency(report: Report) -> Table:
    """Milliseconds a call, by length."""
    rows: list[Row] = []
    for row in (report["latency"] or {"rows": []})["rows"]:
        own = NOTHING if row["who"] == TEACHER else NOT_MEASURED
        texts = (
            amount(row["length"], "d"), row["who"], row["form"],
            *(amount(row[key], ".2f") for key in ("p50_ms", "p90_ms", "p99_ms", "mean_ms", "first_ms")),
            amount(row["load_seconds"], ".2f"), millions(row["parameters"]), megabytes(row["bytes"]),
            ratio(row["ratio_same_form"], own), ratio(row["ratio_to_teacher"]),
        )  # fmt: skip
        rows.append(Row(cells(texts), "group" if rows and rows[-1].cells[0].text != texts[0] else ""))
    columns = (
        "Tokens", "Model", "Runtime", "p50 ms", "p90 ms", "p99 ms", "mean ms", "first ms", "load s", "Parameters",
        "Size", "× same runtime", "× PyTorch teacher",
    )  # fmt: skip
    notes = (
        "× same runtime: the teacher's p50 in the same runtime and precision over this one. × PyTorch teacher: the "
        "teacher's p50 in PyTorch over this one; it holds what the runtime brings, too.",
    )
    return Table(columns, tuple(rows), frozenset({"Model", "Runtime"}), notes=notes)


def paper_speed(report: Report) -> Table:
    """The paper's own seconds, in the same units and with the ratio it calls "60 % faster"."""
    speeds = report["paper"]["speeds"]
    bert = next(speed["seconds"] for speed in speeds if speed["model"] == "BERT-base")
    rows = tuple(
        Row(
            cells(
                (
                    speed["model"],
                    millions(speed["parameters"]),
                    f"{speed['seconds']:.0f}",
                    f"{speed['pair_ms']:.2f}",
                    ratio(bert / speed["seconds"]),
                )
            ),
            "paper",
        )
        for speed in speeds
    )
    notes = (
        f"{report['paper']['source']}, table 3: {report['paper']['speed_conditions']}. Another processor, other "
        "library versions and lengths than above: compare the ratios, not the seconds.",
    )
    columns = ("Model (paper)", "Parameters", "Seconds a pass", "ms a pair", "× BERT-base")
    return Table(columns, rows, frozenset({"Model (paper)"}), notes=notes)


def conditions(report: Report) -> Table:
    """The machine and settings latency was measured with."""
    found = report["latency"] or {"machine": {}, "settings": {}}
    pairs = [*found["machine"].items(), *found["settings"].items()]
    rows = tuple(Row(cells((key.replace("_", " "), plain(value)))) for key, value in pairs)
    return Table(("Condition", "Value"), rows, frozenset({"Condition", "Value"}))


def cost(report: Report) -> Table:
    """Device hours here beside the paper's."""
    rows = []
    for run in report["runs"]:
        texts = (
            run["name"], run["device"] or NOT_MEASURED, amount(run["workers"], "d"), run["precision"] or NOT_MEASURED,
            _rows_a_step(run), amount(run["steps"], ",d"), millions(run["tokens"]),
            amount(run["tokens_per_second"], ",.0f"), amount(run["device_hours"], ".2f"),
        )  # fmt: skip
        rows.append(Row(cells(texts), "main" if run["name"] == STUDENT else ""))
    spent = report["paper"]["cost"]
    unknown = (NOTHING,) * 4
    texts = ("DistilBERT (paper)", spent["gpu"], f"{spent['gpus']}", NOTHING, *unknown, f"≈ {spent['gpu_hours']}")
    rows.append(Row(cells(texts), "paper"))
    columns = (
        "Run", "Device", "Workers", "Precision", "Rows a step", "Steps", "Tokens", "Tokens/s", "Device hours",
    )  # fmt: skip
    notes = (
        f"{report['paper']['source']}, section 3: {spent['gpus']} × {spent['gpu']} for about {spent['hours']} hours on "
        "English Wikipedia and the Toronto Book Corpus. Tokens/s is the median over the logged steps.",
    )
    return Table(columns, tuple(rows), frozenset({"Run", "Device", "Precision"}), notes=notes)


def _rows_a_step(run: Mapping[str, Any]) -> str:
    """Phase by phase, where a run has phases."""
    sizes = [phase["rows_per_step"] or run["rows_per_step"] for phase in run["recipe"].get("phases", ())]
    return " → ".join(amount(size, ",d") for size in sizes or [run["rows_per_step"]])


def descent(report: Report) -> Table:
    """Every artifact: what it was made from, by which code, when."""
    rows = []
    for entry in report["descent"]:
        inputs = ", ".join(f"{given['role']}: {given['path'] or given['identity'][:12]}" for given in entry["inputs"])
        code = f"{entry['code']['version']} {entry['code']['commit'][:12]}".strip()
        made = datetime.datetime.fromtimestamp(entry["made_at"], datetime.UTC)
        texts = (
            entry["path"], entry["kind"], entry["identity"][:12], inputs or NOTHING, code,
            f"{made:%Y-%m-%d %H:%M}", f"{entry['seconds']:.1f}",
        )  # fmt: skip
        rows.append(Row(cells(texts)))
    columns = ("Path", "Kind", "Identity", "Made from", "Code", "Made at (UTC)", "Seconds")
    return Table(columns, tuple(rows), frozenset(columns[:-1]))


def jobs(report: Report) -> Table:
    """What the pipeline did, failed jobs first."""
    ordered = sorted(report["jobs"], key=lambda job: job["state"] != "failed")
    rows = tuple(
        Row(
            cells((job["name"], job["state"], amount(job["seconds"], ".1f"), job["error"] or NOTHING)),
            "failed" if job["state"] == "failed" else "",
        )
        for job in ordered
    )
    return Table(("Job", "State", "Seconds", "Error"), rows, frozenset({"Job", "State", "Error"}))
