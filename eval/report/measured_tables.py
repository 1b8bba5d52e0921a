"""The report's tables of models, exports, latency, cost, lineage and jobs, from the contents of ``report.json``."""

import datetime
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import PurePath
from typing import Any

from cluster.telemetry.formatting import NOT_MEASURED, NOTHING, amount, megabytes, millions, plain, ratio, signed
from eval.highlights.rows import losses, span
from eval.report.table import Cell, Row, Table, cells
from eval.results.export_formats import TITLES as FORMS
from eval.results.schema import STUDENT, TEACHER
from eval.results.uncertainty import ALIKE_NATS, ALIKE_POINTS

Report = Mapping[str, Any]


def models(report: Report) -> Table:
    """The teacher, the student, and the ablations."""
    rows, measured = [], losses(report)
    for model in report["models"]:
        # The teacher may be trained elsewhere, and its agreement with itself is not a measurement.
        absent = NOTHING if model["name"] == TEACHER else NOT_MEASURED
        about = model["title"] if model["title"] != model["name"] else ""
        texts = (
            model["architecture"] or NOT_MEASURED,
            amount(model["layers"], "d"),
            amount(model["hidden"], "d"),
            millions(model["parameters"]),
            megabytes(model["weight_bytes"]),
            amount(measured.nats.get(model["name"]), ".3f"),
            amount(model["accuracy"], ".1f", " %", 100),
            amount(model["visible_accuracy"], ".1f", " %", 100),
            amount(model["agreement"], ".1f", " %", 100, absent),
            amount(model["steps"], ",d", absent=absent),
            millions(model["tokens"], absent),
            amount(model["device_hours"], ".2f", absent=absent),
        )
        name = Cell(model["name"], PurePath(model["origin"] or "").name or about, model["source"])
        rows.append(Row((name, *cells(texts)), "main" if model["name"] == STUDENT else ""))
    if counts := next((model["counts"] for model in report["models"] if model["counts"]), None):
        loss = counts["hidden_loss" if measured.word == "hidden" else "masked"]
        known = amount(loss, ".3f"), amount(counts["accuracy"], ".1f", " %", 100)
        rows.append(Row(cells(("word counts", *(NOTHING,) * 5, *known, *(NOTHING,) * 5))))
    columns = (
        "Model", "Architecture", "Layers", "Hidden", "Parameters", "Weights", "Loss, nats", "Words right",
        "Visible right", "Agreement", "Steps", "Tokens", "Device hours",
    )  # fmt: skip
    notes = (
        f"Loss: {measured.word} words of held-out text. Words right: hidden ones. The same rows and masks for all runs "
        "with the same seed and validation_rows. Visible right: words that the input still shows. Agreement: hidden "
        "words for which the model's first guess is the teacher's. Word counts: what the counts of the training rows "
        "give on the same words, without reading them.",
    )
    words = frozenset({"Model", "Architecture"})
    caption = "The teacher, its student and other students: shape, size, held-out loss, and what training took"
    return Table(columns, tuple(rows), words, _findings(report), notes if rows else (), caption).dense()


def held_out(report: Report) -> Table:
    """The student minus every other student on the same held-out rows, with errors paired by row."""
    found = report["heldout"]
    rows = []
    for one in found["comparisons"]:
        name = Cell(one["title"], one["model"] if one["model"] != one["title"] else "")
        doubt = "trained on another number of tokens" if one["same_tokens"] is False else ""
        values = _difference(one["loss"], ".3f"), _difference(one["accuracy"], ".2f", worded=True)
        word = Cell(NOTHING) if one["loss"] is None else Cell(one["loss"]["word"], tone=one["loss"]["word"])
        rows.append(Row((Cell(one["student"]), name, *values, replace(word, detail=one["reason"] or doubt))))
    columns = ("Student", "Minus", "Loss, nats", "Accuracy, points", "Student is")
    if not rows:
        return Table(columns, ())
    notes = (
        f"On {found['words']:,} hidden words of the same {found['rows']:,} held-out rows. Below a difference: its "
        "range at 95 %, paired by row, without how another training would end. The last column judges the loss; less "
        f"is better. Equal: the whole range is within {ALIKE_NATS:g} nats of 0; {ALIKE_POINTS:g} point of accuracy.",
    )
    words = frozenset({*columns[:2], columns[-1]})
    return Table(columns, tuple(rows), words, (), notes, "The student minus every other student, on held-out words")


def _difference(found: Mapping[str, Any] | None, form: str, worded: bool = False) -> Cell:
    if found is None:
        return Cell(NOTHING)
    return Cell(signed(found["difference"], form), f"{span(found, form)}{', ' + found['word'] if worded else ''}")


BRIEF = ("Model", "Layers", "Parameters", "Weights", "Loss, nats", "Words right", "Agreement", "Tokens")
"""Columns of the models that fit a small screen."""


def _findings(report: Report) -> tuple[str, ...]:
    """A sentence for each other student that no table compares with the main one, on held-out rows or in a sweep."""
    sweep = report["tables"]["4"]
    swept = {row["student"] for row in sweep["rows"]} | {sweep["reference"]}
    excluded = swept if sweep["reference"] not in (None, STUDENT) else set()
    excluded |= {each["model"] for each in report["heldout"]["comparisons"] if each["loss"]}
    found = {model["name"]: model for model in report["models"] if model["name"] not in excluded}
    student, measured = found.get(STUDENT), losses(report)
    if student is None or STUDENT not in measured.nats:
        return ()
    own = measured.nats[STUDENT]
    findings = []
    for name, other in found.items():
        loss = measured.nats.get(name)
        if name in (TEACHER, STUDENT) or loss is None:
            continue
        gain = loss - own
        sides = f"{own:.3f} against {loss:.3f} nats"
        word = "lower" if gain >= 0 else "higher"
        finding = f"The student's held-out loss is {abs(gain):.3f} {word} than that of {name} ({sides}"
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
    caption = "Every export: size, differences from its model, and score"
    return Table(columns, tuple(rows), frozenset({"Model", "Format", "Task"}), (), notes, caption).dense()


def latency(report: Report) -> Table:
    """Time, memory, size and energy of every model in every runtime, by workload and number of threads."""
    found = report["latency"] or {"rows": [], "wins": [], "unfit": None, "energy": None}
    rows: list[Row] = []
    for row in found["rows"]:
        own = NOT_MEASURED if row["model"] == STUDENT else NOTHING
        weights = "random weights" if row["weights"] == "random" else ""
        place = Cell(row["where"]), Cell(f"{row['threads']}")
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
        starts = bool(rows) and rows[-1].cells[2:4] != place
        rows.append(Row((named, linked[0], *place, *linked[1:]), "group" if starts else ""))
    columns = (
        "Model", "Runtime", "Workload", "Threads", "p50 ms", "× PyTorch teacher", "× BERT-base", "× same runtime",
        "Size", "Memory", "Joules a call", "All inputs, s", "Tokenize, s", "p90 ms", "p99 ms", "Mean ms", "First ms",
        "Load s",
    )  # fmt: skip
    findings = [_winners(found["wins"])] if found["wins"] else []
    findings += [f"Unfit: {found['unfit']}. Do not rely on these times."] if found["unfit"] else []
    words = frozenset({"Workload", "Model", "Runtime"})
    caption = "Time, memory, size and energy of every model in every runtime"
    return Table(columns, tuple(rows), words, tuple(findings), _latency_notes(found), caption).dense("Threads")


MANY = 24
"""Rows that are too many to be read without unfolding."""


def latency_brief(report: Report) -> Table:
    """The six columns of :func:`latency` that most readers want, of many rows those of the first workload.

    The notes stay with the whole table.
    """
    whole = latency(report)
    if not whole.rows:
        return whole
    if len(whole.rows) > MANY:
        second = next(number for number, row in enumerate(whole.rows) if row.kind == "group")
        whole = replace(whole, rows=whole.rows[:second])
    threads = whole.columns.index("Threads")
    rows = []
    for row in whole.rows:
        on = "1 thread" if row.cells[threads].text == "1" else f"{row.cells[threads].text} threads"
        rows.append(Row(tuple(replace(cell, detail=on) if number == 2 else cell for number, cell in
                              enumerate(row.cells)), row.kind))  # fmt: skip
    shown = ("Model", "Runtime", "Workload", "p50 ms", "× PyTorch teacher", "Size")
    caption = "Median time of one call, against the teacher in PyTorch, and size"
    return replace(whole, rows=tuple(rows), notes=(), caption=caption).only(*shown)


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
        "rest is Python and the runtime, with PyTorch in the case of ExecuTorch. All inputs: without tokenization "
        "(Tokenize). Load: from the start of the process, including imports. Random weights take as "
        "long as trained ones."
    ]
    if found["energy"]:
        notes.append(f"Energy: {NOT_MEASURED}, {found['energy']}.")
    return tuple(notes)


def conditions(measured: Mapping[str, Any] | None) -> Table:
    """The machine and settings that times were measured with, without settings of what was not run."""
    found = {key: (measured or {}).get(key) or {} for key in ("machine", "settings")}
    # Rows of table 3 hold what was measured beside what was published.
    timed = [row.get("measured", row) for row in (measured or {}).get("rows", ())]
    run = {row[key] for row in timed if row for key in ("model", "workload")}
    unused = {name for name in ("elmo", "questions", "pairs") if run and name not in run}
    pairs = [
        (_CONDITIONS.get(key, key.replace("_", " ")), plain(value))
        for key, value in [*found["machine"].items(), *found["settings"].items()]
        if value not in (None, [], (), "") and key not in unused
    ]
    if pairs and measured is not None:
        pairs.append(("quiet machine", "yes" if measured["fit"] else f"no: {measured['unfit']}"))
    rows = tuple(Row(cells(pair)) for pair in pairs)
    caption = "The machine and the settings of the measurement"
    return Table(("Condition", "Value"), rows, frozenset({"Condition", "Value"}), caption=caption)


_CONDITIONS = {
    "others_share_of_machine": "other processes, of the whole machine (quiet: at most a tenth)",
    "others_share_of_pinned_cores": "other processes, of the pinned cores (quiet: at most a twentieth)",
}
"""Conditions whose key does not say what they are."""


def cost(report: Report) -> Table:
    """Device hours here and in the paper."""
    published = report["paper"]["costs"]
    of = published[0]["gpu_hours"]
    rows = [*_teacher_row(report, of), *(_training_row(run, of) for run in report["runs"])]
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
    caption = "Device hours of training and fine-tuning, here and in the paper"
    return Table(columns, tuple(rows), frozenset({"Work", "Device", "Precision"}), (), notes, caption)


def _teacher_row(report: Report, of: float) -> Iterator[Row]:
    """The teacher's training, where it was trained here."""
    for model in report["models"]:
        if model["name"] == TEACHER and model["device_hours"] is not None:
            hours = model["device_hours"]
            rate = model["tokens"] / (3600 * hours / (model["workers"] or 1)) if model["tokens"] and hours else None
            texts = (
                model["device"] or NOT_MEASURED, amount(model["workers"], "d"), NOTHING, NOTHING,
                amount(model["steps"], ",d"), millions(model["tokens"]), amount(rate, ",.0f"), amount(hours, ".2f"),
                _share(hours, of),
            )  # fmt: skip
            yield Row((Cell("training teacher", source=model["source"]), *cells(texts)))


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
    caption = "Inputs, code and time of each artifact"
    return Table(columns, tuple(rows), frozenset(columns[:5]), caption=caption)


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
    columns = ("Job", "State", "Attempts", "Seconds", "Error")
    caption = "Jobs of the queue, failed ones first"
    return Table(columns, tuple(rows), frozenset({"Job", "State", "Error"}), caption=caption)
