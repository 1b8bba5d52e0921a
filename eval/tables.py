"""The report's tables: each is a function of ``report.json``'s contents, in the order a reader meets them."""

import datetime
from collections.abc import Iterable, Mapping
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
    plain,
    ratio,
)
from eval.records import STUDENT, TEACHER

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
        name = Cell(model["name"], PurePath(model["origin"] or "").name, model["source"])
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
    return Table(columns, tuple(rows), words, _findings(report), notes if rows else ())


def _findings(report: Report) -> tuple[str, ...]:
    """The main student against each other one, in a sentence; those of a sweep are compared with its reference."""
    sweep = report["tables"]["4"]
    swept = {row["student"] for row in sweep["rows"]} | {sweep["reference"]}
    apart = swept if sweep["reference"] not in (None, STUDENT) else set()
    found = {model["name"]: model for model in report["models"] if model["name"] not in apart}
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


def exports(report: Report) -> Table:
    """What was exported, how large, and how far from the model it came from."""
    rows = []
    for export in report["exports"]:
        parity = export["parity"] or {}
        texts = (
            export["format"],
            megabytes(export["bytes"]),
            amount(parity.get("max_abs"), ".2g"),
            amount(parity.get("relative"), ".2g"),
            amount(parity.get("agreement"), ".1f", " %", 100),
        )
        rows.append(Row((Cell(export["model"], source=export["source"]), *cells(texts))))
    columns = ("Model", "Format", "Size", "Largest difference", "Relative difference", "Same answer")
    notes = (
        "Differences of the exported model's outputs from PyTorch's on the same inputs. "
        "Same answer: positions at which both give the same most likely one.",
    )
    return Table(columns, tuple(rows), frozenset({"Model", "Format"}), notes=notes)


def latency(report: Report) -> Table:
    """Milliseconds a call, by length."""
    found = report["latency"] or {"rows": [], "unfit": None}
    rows: list[Row] = []
    for row in found["rows"]:
        own = NOTHING if row["who"] == TEACHER else NOT_MEASURED
        texts = (
            amount(row["length"], "d"), row["who"], row["form"],
            *(amount(row[key], ".2f") for key in ("p50_ms", "p90_ms", "p99_ms", "mean_ms", "first_ms")),
            amount(row["load_seconds"], ".2f"), millions(row["parameters"]), megabytes(row["bytes"]),
            ratio(row["ratio_same_form"], own), ratio(row["ratio_to_teacher"]),
        )  # fmt: skip
        linked = [Cell(text, source="latency" if place == 3 else None) for place, text in enumerate(texts)]
        rows.append(Row(tuple(linked), "group" if rows and rows[-1].cells[0].text != texts[0] else ""))
    columns = (
        "Tokens", "Model", "Runtime", "p50 ms", "p90 ms", "p99 ms", "mean ms", "first ms", "load s", "Parameters",
        "Size", "× same runtime", "× PyTorch teacher",
    )  # fmt: skip
    notes = (
        "× same runtime: the teacher's p50 in the same runtime and precision over this one. × PyTorch teacher: the "
        "teacher's p50 in PyTorch over this one; it holds what the runtime brings, too.",
    )
    findings = (f"Unfit: {found['unfit']}. The times are shown and prove nothing.",) if found["unfit"] else ()
    return Table(columns, tuple(rows), frozenset({"Model", "Runtime"}), findings, notes)


def conditions(measured: Mapping[str, Any] | None) -> Table:
    """The machine and settings that times were measured with."""
    found = {key: (measured or {}).get(key) or {} for key in ("machine", "settings")}
    pairs = [*found["machine"].items(), *found["settings"].items()]
    if pairs and measured is not None:
        pairs.append(("quiet machine", "yes" if measured["fit"] else f"no: {measured['unfit']}"))
    rows = tuple(Row(cells((key.replace("_", " "), plain(value)))) for key, value in pairs)
    return Table(("Condition", "Value"), rows, frozenset({"Condition", "Value"}))


def cost(report: Report) -> Table:
    """Device hours here beside the published ones."""
    published = report["paper"]["costs"]
    of = published[0]["gpu_hours"]
    rows = [_training_row(run, of) for run in report["runs"]]
    rows += [_tuning_row(tuning) for tuning in report["tuning"]]
    for spent in published:
        texts = (spent["gpu"], f"{spent['gpus']:,}", *(NOTHING,) * 5, f"≈ {spent['gpu_hours']:,.0f}")
        share = _share(spent["gpu_hours"], of)
        rows.append(Row((Cell(f"{spent['model']} (paper)"), *cells((*texts, share))), "paper"))
    columns = (
        "Work", "Device", "Workers", "Precision", "Rows a step", "Steps", "Tokens", "Tokens/s", "Device hours",
        "Of DistilBERT's",
    )  # fmt: skip
    notes = (
        f"{report['paper']['source']}, section 3: {published[0]['gpus']} × {published[0]['gpu']} for about "
        f"{published[0]['hours']:.0f} hours on English Wikipedia and the Toronto Book Corpus; how many passes was "
        "never published. Hours of other devices on other amounts of text are no measure of efficiency. Tokens/s is "
        "the median over the logged steps; a device is a GPU, or a worker on a CPU.",
    )
    return Table(columns, tuple(rows), frozenset({"Work", "Device", "Precision"}), notes=notes)


def _training_row(run: Mapping[str, Any], of: float) -> Row:
    texts = (
        run["device"] or NOT_MEASURED, amount(run["workers"], "d"), run["precision"] or NOT_MEASURED,
        _rows_a_step(run), amount(run["steps"], ",d"), millions(run["tokens"]),
        amount(run["tokens_per_second"], ",.0f"), amount(run["device_hours"], ".2f"), _share(run["device_hours"], of),
    )  # fmt: skip
    name = Cell(f"training {run['name']}", source=run["source"])
    return Row((name, *cells(texts)), "main" if run["name"] == STUDENT else "")


def _tuning_row(tuning: Mapping[str, Any]) -> Row:
    name = Cell("fine-tuning", f"{tuning['runs']} models and tasks, all seeds")
    hours = (amount(tuning["hours"], ".2f"), NOTHING)
    return Row((name, *cells((tuning["device"] or NOT_MEASURED, *(NOTHING,) * 6, *hours))))


def _share(hours: float | None, of: float) -> str:
    if hours is None:
        return NOT_MEASURED
    return f"{100 * hours / of:.2g} %" if hours < 0.1 * of else f"{hours / of:.2g}×"


def _rows_a_step(run: Mapping[str, Any]) -> str:
    """Phase by phase, where a run has phases."""
    sizes = [phase["rows_per_step"] or run["rows_per_step"] for phase in run["recipe"].get("phases", ())]
    return " → ".join(amount(size, ",d") for size in sizes or [run["rows_per_step"]])


def descent(entries: Iterable[Mapping[str, Any]]) -> Table:
    """What each artifact was made from, by which code, when."""
    rows = []
    for entry in entries:
        inputs = ", ".join(
            f"{given['role']}: {given['path'] or given['name'] or given['identity'][:12]}" for given in entry["inputs"]
        )
        code = f"{entry['code']['version']} {entry['code']['commit'][:12]}".strip()
        made = datetime.datetime.fromtimestamp(entry["made_at"], datetime.UTC)
        texts = (
            entry["kind"], entry["identity"][:12], inputs or NOTHING, code,
            f"{made:%Y-%m-%d %H:%M}", f"{entry['seconds']:.1f}",
        )  # fmt: skip
        rows.append(Row((Cell(entry["path"], source=entry["path"]), *cells(texts))))
    columns = ("Path", "Kind", "Identity", "Made from", "Code", "Made at (UTC)", "Seconds")
    return Table(columns, tuple(rows), frozenset(columns[:4]))


def jobs(report: Report) -> Table:
    """What was done, failed jobs first."""
    ended = ("failed", "cancelled")
    ordered = sorted(report["jobs"], key=lambda job: job["state"] not in ended)
    rows = []
    for job in ordered:
        texts = (
            job["name"], job["state"], amount(job["attempts"], "d", absent=NOTHING), amount(job["seconds"], ".1f"),
            job["error"] or NOTHING,
        )  # fmt: skip
        rows.append(Row(cells(texts), "failed" if job["state"] in ended else ""))
    return Table(("Job", "State", "Attempts", "Seconds", "Error"), tuple(rows), frozenset({"Job", "State", "Error"}))
