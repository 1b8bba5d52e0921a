"""The report's tables of models, exports, latency, cost, lineage and jobs, from the contents of ``report.json``."""

import datetime
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePath
from typing import Any

from cluster.telemetry.formatting import NOT_MEASURED, NOTHING, amount, megabytes, millions, plain, ratio, signed
from eval.report.table import Cell, Row, Table, cells
from eval.results.export_formats import TITLES as FORMS
from eval.results.schema import STUDENT, TEACHER

Report = Mapping[str, Any]


def models(report: Report) -> Table:
    """The teacher, the student, and the ablations."""
    rows = []
    for model in report["models"]:
        # The teacher may be trained elsewhere, and its agreement with itself is not a measurement.
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
        told = PurePath(model["origin"] or "").name or (model["title"] if model["title"] != model["name"] else "")
        name = Cell(model["name"], told, model["source"])
        rows.append(Row((name, *cells(texts)), "main" if model["name"] == STUDENT else ""))
    if counts := next((model["counts"] for model in report["models"] if model["counts"]), None):
        known = amount(counts["masked"], ".3f"), amount(counts["accuracy"], ".1f", " %", 100)
        rows.append(Row(cells(("word counts", *(NOTHING,) * 5, *known, *(NOTHING,) * 4))))
    columns = (
        "Model", "Architecture", "Layers", "Hidden", "Parameters", "Weights", "MLM loss", "MLM accuracy", "Agreement",
        "Steps", "Tokens", "Device hours",
    )  # fmt: skip
    notes = (
        "MLM loss: nats on masked words of held-out text, the same rows and masks for all runs with the same seed and "
        "validation_rows. MLM accuracy: of the hidden ones among them; a tenth of the masked words stays visible in "
        "the input and needs no guess. Agreement: hidden words for which the model's first guess is the teacher's. "
        "Word counts: what the counts of the training rows give on the same words, without reading them.",
    )
    words = frozenset({"Model", "Architecture"})
    return Table(columns, tuple(rows), words, (*_weak(report), *_findings(report)), notes if rows else ())


def _weak(report: Report) -> Iterator[str]:
    """A sentence for a teacher that knows hardly more than word counts."""
    for model in report["models"]:
        if model["name"] == TEACHER and model["hardly_better"]:
            yield (
                f"The teacher knows hardly more than word counts: {model['hidden_loss']:.2f} nats on hidden words, "
                f"counts alone have {model['counts']['hidden_loss']:.2f}. Take this run as a test of the machinery, "
                "not of distillation."
            )


def held_out(report: Report) -> Table:
    """The student minus every other student on the same held-out rows, with errors paired by row."""
    found = report["heldout"]
    rows = []
    for one in found["comparisons"]:
        name = Cell(one["title"], one["model"] if one["model"] != one["title"] else "")
        doubt = "trained on another number of tokens" if one["same_tokens"] is False else ""
        values = _difference(one["loss"], ".3f"), _difference(one["accuracy"], ".2f")
        rows.append(Row((Cell(one["student"]), name, *values, Cell(_surely(one), one["reason"] or doubt))))
    columns = ("Student", "Minus", "Loss, nats", "Accuracy, points", "Better by more than 2 SE")
    if not rows:
        return Table(columns, ())
    notes = (
        f"On {found['words']:,} hidden words of the same {found['rows']:,} held-out rows. ±: standard error (SE), "
        "paired by row; it does not include how another training would end. Yes: the loss is lower by more than twice "
        "the error.",
    )
    return Table(columns, tuple(rows), frozenset({*columns[:2], columns[-1]}), notes=notes)


def _difference(found: Mapping[str, Any] | None, form: str) -> Cell:
    if found is None:
        return Cell(NOTHING)
    return Cell(signed(found["difference"], form), f"± {found['error']:{form}}")


def _surely(one: Mapping[str, Any]) -> str:
    if one["loss"] is None:
        return NOTHING if one["reason"] else NOT_MEASURED
    return "yes" if one["loss"]["better"] else f"no: {one['loss']['word']}"


def _findings(report: Report) -> tuple[str, ...]:
    """A sentence for each other student that compares it with the main one; table 4 has the students of a sweep."""
    sweep = report["tables"]["4"]
    swept = {row["student"] for row in sweep["rows"]} | {sweep["reference"]}
    excluded = swept if sweep["reference"] not in (None, STUDENT) else set()
    found = {model["name"]: model for model in report["models"] if model["name"] not in excluded}
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
    """Every export: size, differences from its model, and score."""
    rows = []
    for export in report["exports"]:
        parity, score = export["parity"], export["score"] or {}
        texts = (
            FORMS.get(export["format"], export["format"]),
            export["task"] or NOTHING,
            megabytes(export["bytes"]),
            amount(parity.get("max_abs"), ".2g"),
            amount(parity.get("relative"), ".2g"),
            amount(parity.get("agreement"), ".1f", " %", 100),
            amount(score.get("export"), ".1f"),
            signed(score.get("difference"), ".2f"),
        )
        rows.append(Row((Cell(export["model"], source=export["source"]), *cells(texts))))
    columns = (
        "Model", "Format", "Task", "Size", "Largest difference", "Relative difference", "Same answer", "Score",
        "Change",
    )  # fmt: skip
    notes = (
        "Differences of the exported model's outputs from PyTorch's on the same inputs. "
        "Same answer: positions where both rank the same answer first. Change: of the score in points, against the "
        "model on the same examples.",
    )
    return Table(columns, tuple(rows), frozenset({"Model", "Format", "Task"}), notes=notes)


def latency(report: Report) -> Table:
    """Time, memory, size and energy of every model in every runtime, by workload and number of threads."""
    found = report["latency"] or {"rows": [], "wins": [], "unfit": None, "energy": None}
    rows: list[Row] = []
    for row in found["rows"]:
        own = NOT_MEASURED if row["model"] == STUDENT else NOTHING
        weights = "random weights" if row["weights"] == "random" else ""
        place = (row["where"], f"{row['threads']}")
        rest = (
            row["how"], amount(row["p50_ms"], ".2f"),
            ratio(row["ratio_to_teacher"]), ratio(row["ratio_to_bert_base"], NOTHING),
            ratio(row["ratio_same_form"], own), megabytes(row["bytes"]), megabytes(row["peak_memory_bytes"]),
            amount(row["joules"], ".3g", absent=NOTHING if found["energy"] else NOT_MEASURED),
            amount(row["seconds"], ".2f"), amount(row["tokenise_seconds"], ".2f", absent=NOTHING),
            *(amount(row[key], ".2f") for key in ("p90_ms", "p99_ms", "mean_ms", "first_ms")),
            amount(row["load_seconds"], ".2f"),
        )  # fmt: skip
        named = Cell(row["title"] or row["model"], weights)
        linked = [Cell(text, source="latency" if number == 1 else None) for number, text in enumerate(rest)]
        linked[6] = Cell(rest[6], amount(row["model_memory_bytes"], ".0f", " MB the model", 1e-6, ""))
        starts = bool(rows) and [cell.text for cell in rows[-1].cells[:2]] != [*place]
        rows.append(Row((*cells(place), named, *linked), "group" if starts else ""))
    columns = (
        "Workload", "Threads", "Model", "Runtime", "p50 ms", "× PyTorch teacher", "× BERT-base", "× same runtime",
        "Size", "Memory", "J a call", "all, s", "tokens, s", "p90 ms", "p99 ms", "mean ms", "first ms", "load s",
    )  # fmt: skip
    findings = [_winners(found["wins"])] if found["wins"] else []
    findings += [f"Unfit: {found['unfit']}. Do not rely on these times."] if found["unfit"] else []
    words = frozenset({"Workload", "Model", "Runtime"})
    return Table(columns, tuple(rows), words, tuple(findings), _latency_notes(found))


def _winners(wins: Iterable[Mapping[str, Any]]) -> str:
    """A sentence with the fastest runtime of each workload."""
    parts = []
    for row in wins:
        on = f"{row['threads']} thread{'' if row['threads'] == 1 else 's'}"
        against = [("the teacher", row["ratio_to_teacher"]), ("BERT-base", row["ratio_to_bert_base"])]
        gains = [f"{ratio(value)} {name}" for name, value in against if value is not None]
        more = f", {' and '.join(gains)} in PyTorch" if gains else ""
        parts.append(f"{row['how']} for {row['where']} on {on} ({row['p50_ms']:.2f} ms{more})")
    return f"The student is fastest in {'; in '.join(parts)}."


def _latency_notes(found: Mapping[str, Any]) -> tuple[str, ...]:
    notes = [
        "The models of a group take turns, input by input, each in its own process on the same cores. × PyTorch "
        "teacher, × BERT-base: the time of these in eager fp32 PyTorch over this time, so that runtimes count too. "
        "× same runtime: the teacher's time in the same runtime and precision over this time. Ratios compare the "
        "seconds of all texts, at a fixed length p50. Memory: the peak of the process, and the model's part of it; the "
        "rest is Python and the runtime, with PyTorch in the case of ExecuTorch. all, s: all inputs, without "
        "tokenization (tokens, s). load s: from the start of the process, including imports. Random weights take as "
        "long as trained ones."
    ]
    if found["energy"]:
        notes.append(f"Energy: {NOT_MEASURED}, {found['energy']}.")
    return tuple(notes)


def conditions(measured: Mapping[str, Any] | None) -> Table:
    """The machine and settings that times were measured with."""
    found = {key: (measured or {}).get(key) or {} for key in ("machine", "settings")}
    pairs = [*found["machine"].items(), *found["settings"].items()]
    if pairs and measured is not None:
        pairs.append(("quiet machine", "yes" if measured["fit"] else f"no: {measured['unfit']}"))
    rows = tuple(Row(cells((key.replace("_", " "), plain(value)))) for key, value in pairs)
    return Table(("Condition", "Value"), rows, frozenset({"Condition", "Value"}))


def cost(report: Report) -> Table:
    """Device hours here and in the paper."""
    published = report["paper"]["costs"]
    of = published[0]["gpu_hours"]
    rows = [_training_row(run, of) for run in report["runs"]]
    for tuning in report["tuning"]:
        name = Cell("fine-tuning", f"{tuning['runs']} models and tasks, all seeds")
        hours = amount(tuning["hours"], ".2f")
        rows.append(Row((name, *cells((tuning["device"] or NOT_MEASURED, *(NOTHING,) * 6, hours, NOTHING)))))
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
        "never published. Device hours do not compare efficiency across devices and amounts of text. Tokens/s is "
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


def _share(hours: float | None, of: float) -> str:
    if hours is None:
        return NOT_MEASURED
    return f"{100 * hours / of:.2g} %" if hours < 0.1 * of else f"{hours / of:.2g}×"


def _rows_a_step(run: Mapping[str, Any]) -> str:
    """Rows per step of each phase of a run."""
    sizes = [phase["rows_per_step"] or run["rows_per_step"] for phase in run["recipe"].get("phases", ())]
    return " → ".join(amount(size, ",d") for size in sizes or [run["rows_per_step"]])


def descent(entries: Iterable[Mapping[str, Any]]) -> Table:
    """Inputs, code and time of each artifact."""
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
    """All jobs, failed ones first."""
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
