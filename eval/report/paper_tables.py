"""The paper's tables 1 to 4 with our values, the paper's, the difference, the share kept, and a verdict."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from cluster.telemetry.formatting import NOT_MEASURED, NOTHING, amount, megabytes, millions, percent, ratio, signed
from eval.highlights.rows import span
from eval.highlights.unasked import lost_scores
from eval.report.table import Cell, Row, Table, cells
from eval.results.paper import PARAMETERS_SAVED
from eval.results.schema import STUDENT
from eval.results.uncertainty import ALIKE_POINTS

Report = Mapping[str, Any]

_SCORES = (
    "Task", "Teacher", "Student", "Student (D)", "Kept", "Verdict", "ELMo (paper)", "BERT-base (paper)",
    "DistilBERT (paper)", "Kept (paper)", "Difference", "Bag of words", "Majority", "Examples",
)  # fmt: skip
BRIEF = ("Task", "Teacher", "Student", "Student (D)", "Kept", "Verdict", "Kept (paper)", "Examples")
"""Columns of tables 1 and 2 that fit a small screen."""
BRIEF_3 = ("Model", "Parameters", "Size", "ms a pair", "× BERT-base", "× BERT-base (paper)", "Verdict")
_DIFFERENCES = ("What", "Paper, or its authors' code", "Here")
_WORDS = frozenset({"Task", "Verdict", "Claim", "Model", "Training", "Weights"})
_CLAIMS = {
    "glue": ("Score kept on GLUE", "{:.1f} %"),
    "imdb": ("Accuracy kept on IMDb", "{:.1f} %"),
    "squad": ("F1 kept on SQuAD 1.1", "{:.1f} %"),
    "second_step": ("Points of F1 that a second distillation adds on SQuAD 1.1", "{:+.1f}"),
    "parameters": (f"Parameters saved (DistilBERT, counted exactly: {PARAMETERS_SAVED} %)", "{:.0f} %"),
    "speed": ("DistilBERT's speed on a CPU, times BERT-base", "{:.2f}×"),
    "ablations": ("Parts of the training found to help", "{:.0f}"),
}


SCORE_NOTE = (
    "Below a score: its range at 95 %, from the number of examples and, with several seeds, their spread; with one "
    "seed the spread is not known. Bag of words: TF-IDF with a linear model on the same examples, what needs no "
    "encoder."
)
WORDS_NOTE = (
    "Below a difference: its range at 95 %, paired where both models have the same examples. Better, worse: the range "
    f"excludes 0. Equal: all of it is within {ALIKE_POINTS:g} point of 0. Unclear: it is wider."
)


def verdict(found: Mapping[str, str] | None) -> Cell:
    """The verdict on a claim; empty without a claim."""
    if found is None:
        return Cell(NOTHING)
    if found["state"] == NOT_MEASURED:
        return Cell(NOT_MEASURED)
    return Cell(found["state"], found["reason"], tone=found["state"])


def differences(report: Report) -> Table:
    """What the training of the main student does otherwise than the paper's; its manifest lists it."""
    found = (model["differences"] for model in report["models"] if model["name"] == STUDENT)
    return differences_of(next(found, []))


def differences_of(found: Sequence[Mapping[str, str]]) -> Table:
    """The differences in the manifest of a student."""
    rows = tuple(Row(cells((one["what"], one["paper"], one["here"]))) for one in found)
    caption = "What the student's training does otherwise than the paper's"
    return Table(_DIFFERENCES, rows, frozenset(_DIFFERENCES), caption=caption)


def claims(report: Report) -> Table:
    """The paper's claims that were measured, a row each."""
    rows = []
    for claim in report["claims"]:
        if claim["ours"] is None:
            continue
        title, form = _CLAIMS[claim["claim"]]
        tasks = claim.get("tasks") or []
        named = "all nine tasks" if len(tasks) == 9 else f"on {', '.join(tasks)}"
        ours, paper = (_minus(form.format(claim[side])) for side in ("ours", "paper"))
        if claim["claim"] == "ablations":
            ours, paper = f"{ours} of {paper}", f"{paper} of {paper}"
        rows.append(Row((Cell(title, named if tasks else ""), Cell(ours), Cell(paper), verdict(claim["verdict"]))))
    caption = "The paper's claims: what was found here, what was published, and the verdict"
    return Table(("Claim", "Here", "Paper", "Verdict"), tuple(rows), _WORDS, caption=caption)


def glue(report: Report) -> Table:
    """Table 1: GLUE development sets."""
    found, lost = report["tables"]["1"], lost_scores(report)
    asked = [row for row in found["rows"] if _asked(row, lost)]
    rows = [_score_row(row, lost) for row in asked]
    rows += [_mean_row(mean) for mean in found["means"] if mean["student"] is not None]
    notes = [
        "Percent on the development set: the median over the seeds, and the range. Kept: the student's share of its "
        "teacher's score, both fine-tuned by the same code on the same examples. Passed: at least the share of "
        "BERT-base's score that DistilBERT keeps in the paper; for a mean, at least "
        f"{report['paper']['target_percent']:.0f} %. Difference: student minus DistilBERT, in points.",
        SCORE_NOTE,
        "Unclear: teacher or student scores no higher than the most common answer (Majority), so that the share means "
        "nothing; or the range of the share includes the paper's.",
    ]
    caption = "GLUE development sets: teacher, student, share kept, and the paper's"
    return _table(asked, rows, (*notes, *_row_notes(asked)), caption)


def downstream(report: Report) -> Table:
    """Table 2: IMDb and SQuAD 1.1, with the second distillation."""
    lost = lost_scores(report)
    rows = [row for row in report["tables"]["2"]["rows"] if _asked(row, lost)]
    notes = ("Student (D): distilled again during fine-tuning, from the fine-tuned teacher (paper, section 4).",)
    caption = "IMDb and SQuAD 1.1: teacher, student, share kept, and the paper's"
    return _table(rows, [_score_row(row, lost) for row in rows], (*notes, *_row_notes(rows)), caption)


def _asked(row: Mapping[str, Any], lost: Collection[tuple[str, str]]) -> bool:
    """Whether a task was scored, or its fine-tuning failed."""
    return bool(row["scores"]) or any(row["task"] == task for _, task in lost)


def _table(found: Sequence[Mapping[str, Any]], rows: Sequence[Row], notes: tuple[str, ...], caption: str) -> Table:
    """The table without columns that have no value; without rows where nothing was asked for."""
    return Table(_SCORES, tuple(rows) if found else (), _WORDS, (), notes, caption).dense("Verdict")


def _score_row(row: Mapping[str, Any], lost: Collection[tuple[str, str]]) -> Row:
    ours, paper = _ours(row, lost), row["paper"]
    misprint = paper["teacher"] != paper["teacher_in_means"]
    published = (
        Cell(_printed(paper["elmo"])),
        Cell(_printed(paper["teacher"]), f"{paper['teacher_in_means']:.1f} meant" if misprint else ""),
        Cell(_printed(paper["student"]), "" if paper["second_step"] is None else f"(D) {paper['second_step']:.1f}"),
        Cell(percent(paper["kept"])),
        Cell(signed(row["difference"], absent=NOTHING)),
    )
    return Row((*ours[:5], verdict(row["verdict"]), *published, *ours[5:]))


def _printed(score: float | None) -> str:
    """A published score with its published decimals."""
    return NOTHING if score is None else f"{score:.2f}".removesuffix("0")


def _ours(row: Mapping[str, Any], lost: Collection[tuple[str, str]]) -> tuple[Cell, ...]:
    """Task, teacher, student, second distillation, share kept, majority, examples."""
    taught = row["kept_second_step"]
    # The verdict already says that a row has no measurement.
    absent = NOT_MEASURED if row["scores"] else NOTHING
    return (
        Cell(row["title"], row["metric"] if row["metric"] and row.get("key") == row["task"] else ""),
        *(score_cell(row[side], absent, (side, row["task"]) in lost) for side in ("teacher", "student", "second_step")),
        _kept(row, absent, taught),
        score_cell(row["bag_of_words"], NOTHING),
        Cell(amount(row["majority"], ".1f", absent=NOTHING)),
        Cell(amount(row["dev_examples"], ",d", absent=NOTHING), "subset" if row["subset"] else ""),
    )


def _kept(row: Mapping[str, Any], absent: str, taught: float | None) -> Cell:
    """The share that the student keeps with its range, and that of the second distillation."""
    told = [] if row["kept_low"] is None else [f"{row['kept_low']:.1f}–{row['kept_high']:.1f}"]
    told += [] if taught is None else [f"(D) {percent(taught)}"]
    return Cell(percent(row["kept"], absent), ", ".join(told))


def score_cell(found: Mapping[str, Any] | None, absent: str, failed: bool = False) -> Cell:
    """A score with its range; a failed fine-tuning is no score that nobody asked for."""
    if found is None:
        return Cell("failed", tone="failed") if failed else Cell(absent)
    known = found["range_low"] is not None
    told = [f"{found['range_low']:.1f}–{found['range_high']:.1f}"] if known else []
    told += [f"seeds {found['low']:.1f}–{found['high']:.1f}"] if found["seeds"] > 1 and not known else []
    told += ["one seed"] if found["one_seed"] else []
    return Cell(f"{found['score']:.1f}", ", ".join(told), found["source"])


def _mean_row(mean: Mapping[str, Any]) -> Row:
    paper = mean["paper"]
    tasks = mean["tasks"] if mean["key"] == "measured" else ()
    taught = mean["kept_second_step"]
    found = (
        Cell(mean["title"], ", ".join(tasks)),
        *(Cell(amount(mean[side], ".1f", absent=NOTHING)) for side in ("teacher", "student", "second_step")),
        _kept(mean, NOTHING, taught),
        verdict(mean["verdict"]),
        *(Cell(amount(paper[side], ".1f", absent=NOTHING)) for side in ("elmo", "teacher", "student")),
        Cell(percent(paper["kept"])),
        Cell(signed(mean["difference"], absent=NOTHING)),
        Cell(NOTHING),
        Cell(NOTHING),
        Cell(NOTHING, "subset" if mean["subset"] and mean["student"] is not None else ""),
    )
    return Row(found, "total")


def _row_notes(rows: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    notes = [f"{row['title']}: {row['note']}." for row in rows if row.get("note")]
    if any(row["subset"] for row in rows):
        notes.append("subset: trained or measured on a part of the task's examples, not comparable with the paper.")
    return tuple(notes)


def size_and_speed(report: Report) -> Table:
    """Table 3: parameters, and one pass over the development set of STS-B."""
    found = report["tables"]["3"]
    rows = tuple(_speed_row(row, found) for row in found["rows"]) if found["source"] is not None else ()
    columns = (
        "Model", "Weights", "Parameters", "Size", "Pass, s", "ms a pair", "p99 ms", "× BERT-base", "Verdict",
        "Parameters (paper)", "Pass, s (paper)", "× BERT-base (paper)", "Difference",
    )  # fmt: skip
    own = found["own"]
    findings = []
    if own["ratio"] is not None:
        judged = verdict(own["verdict"])
        aim = next(row["paper"]["ratio"] for row in found["rows"] if row["key"] == "distilbert")
        findings.append(
            f"The student passes {ratio(own['ratio'])} as fast as its own teacher ({judged.text}; the paper's pair: "
            f"{ratio(aim)})."
        )
    if found["unfit"]:
        findings.append(f"Unfit: {found['unfit']}. Do not rely on these times.")
    notes = (
        f"One pass over {found['pairs']:,} pairs of STS-B, one at a time; a shorter pass states its number of pairs "
        "and is not extrapolated: compare milliseconds a pair. Tokenization is separate (+). Passed: at least the "
        "paper's ratio. Random weights take as long as trained ones. "
        f"Paper: {report['paper']['speed_conditions']}; the processor differs, so compare ratios, not seconds.",
    )
    caption = "Parameters, and one pass over the development set of STS-B, here and in the paper"
    return Table(columns, rows, _WORDS, tuple(findings), notes, caption)


def _speed_row(row: Mapping[str, Any], found: Mapping[str, Any]) -> Row:
    ours, paper = row["measured"], row["paper"] or {}
    if ours is None:
        measured = (*(Cell(NOTHING) for _ in range(3)), Cell(NOT_MEASURED), *(Cell(NOTHING) for _ in range(3)))
    else:
        counted = f"{ours['pairs']:,} pairs" if ours["pairs"] != found["pairs"] else ""
        separate = "" if ours["tokenise_seconds"] is None else f"+ {ours['tokenise_seconds']:.1f} s tokens"
        measured = (
            Cell(ours["weights"]),
            Cell(millions(ours["parameters"])),
            Cell(megabytes(ours["bytes"])),
            Cell(amount(ours["seconds"], ".1f"), counted or separate, found["source"]),
            Cell(amount(ours["pair_ms"], ".1f")),
            Cell(amount(ours["p99_ms"], ".1f")),
            Cell(ratio(row["ratio"])),
        )
    published = (
        Cell(millions(paper.get("parameters"), NOTHING)),
        Cell(
            amount(paper.get("seconds"), ".0f", absent=NOTHING),
            amount(paper.get("pair_ms"), ".0f", " ms a pair", absent=""),
        ),
        Cell(ratio(paper.get("ratio"), NOTHING)),
        Cell(signed(row["difference"], ".2f", absent=NOTHING)),
    )
    return Row((Cell(row["model"]), *measured, verdict(row["verdict"]), *published))


def ablations(report: Report) -> Table:
    """Table 4: what each part of the training contributes, in points of the mean score."""
    found = report["tables"]["4"]
    rows = tuple(
        Row(
            (
                Cell(row["title"], row["student"] if row["title"] != row["student"] else ""),
                Cell(amount(row["score"], ".1f", absent=NOTHING)),
                Cell(
                    signed(row["change"], ".2f", absent=NOTHING),
                    "" if row["versus"] is None else f"{span(row['versus'], '.2f')}, {row['versus']['word']}",
                ),
                Cell(signed(row["paper"], ".2f", absent=NOTHING)),
                Cell(signed(row["difference"], ".2f", absent=NOTHING)),
                verdict(row["verdict"]),
                Cell(signed(row["masked_change"], ".3f", absent=NOTHING)),
            )
        )
        for row in found["rows"]
        if row["score"] is not None or row["masked_change"] is not None
    )
    columns = ("Training", "Score", "Change", "Change (paper)", "Difference", "Verdict", "MLM loss, change")
    caption = "What each part of the training contributes, in points of the mean score"
    return Table(columns, rows, _WORDS, _ablation_findings(found), _ablation_notes(found), caption).dense()


def _ablation_findings(found: Mapping[str, Any]) -> tuple[str, ...]:
    judged = [row for row in found["rows"] if row["same_sign"] is not None]
    if not judged:
        return ()
    same = [row["title"] for row in judged if row["same_sign"]]
    sure = [row["title"] for row in judged if row["verdict"]["state"] == "passed"]
    signs = f"{len(same)} of {len(judged)} changes have the paper's sign"
    signs += f" ({', '.join(same)})" if same else ""
    signs += f"; {len(sure)} of them clearly: several seeds, and a range without zero."
    order = "the same order as in the paper" if found["order"] == found["paper_order"] else "not the paper's order"
    return (signs, f"From worst to best: {', '.join(found['order'])}; {order} ({', '.join(found['paper_order'])}).")


def _ablation_notes(found: Mapping[str, Any]) -> tuple[str, ...]:
    if not found["tasks"]:
        return ()
    return (
        f"Mean over {', '.join(found['tasks'])}, minus that of {found['reference']} ({found['score']:.1f}), which was "
        "trained with all parts for as long. Below a change: its range at 95 %, over examples and seeds of "
        "fine-tuning, without the variation of training the student again, and the word for it. Passed: the paper's "
        "sign, with several seeds and a range without zero. MLM loss: nats on held-out words, more is worse.",
    )


def metrics(report: Report) -> Table:
    """Every model, task and metric."""
    rows: list[Row] = []
    for score in report["scores"]:
        settings = ", ".join(f"{key} {score['settings'][key]:g}" for key in ("epochs", "learning_rate", "batch")
                         if score["settings"].get(key) is not None).replace("_", " ")  # fmt: skip
        texts = (
            Cell(score["task"]),
            Cell(score["model"], source=score["source"]),
            Cell("; ".join(_metric(name, spread) for name, spread in score["metrics"].items())),
            Cell(f"{len(score['seeds'])}"),
            Cell(amount(score["train_examples"], ",d", absent=NOTHING)),
            Cell(f"{score['dev_examples']:,}", "subset" if score["subset"] else ""),
            Cell(settings or NOTHING),
        )
        rows.append(Row(texts, "group" if rows and rows[-1].cells[0].text != score["task"] else ""))
    columns = ("Task", "Model", "Metrics", "Seeds", "Training", "Examples", "Settings")
    caption = "Every metric of every model on every task"
    return Table(columns, tuple(rows), frozenset({"Task", "Model", "Metrics", "Settings"}), caption=caption)


def _metric(name: str, spread: Mapping[str, float]) -> str:
    span = f" ({spread['low']:.1f}–{spread['high']:.1f})" if spread["low"] != spread["high"] else ""
    return f"{name.replace('_', ' ')} {spread['median']:.1f}{span}"


def _minus(text: str) -> str:
    return text.replace("-", "\N{MINUS SIGN}")
