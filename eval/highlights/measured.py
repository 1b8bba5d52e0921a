"""What was measured, one highlight each: a card on the page and a line in the terminal."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from cluster.telemetry.formatting import NOTHING, amount, megabytes, millions, percent, plural, ratio, signed
from eval.highlights.rows import baselines, losses, models, of_task, scored_rows, title
from eval.highlights.unasked import lost_scores
from eval.results.export_formats import TITLES
from eval.results.schema import STUDENT, TEACHER

Report = Mapping[str, Any]


@dataclass(frozen=True)
class Highlight:
    """One measured thing."""

    label: str
    """What it is about, in the terminal: ``keeps``."""
    value: str
    """The number on the card."""
    text: str
    """What the number is."""
    line: str
    """All of it in one line of text."""
    doubt: str = ""
    """How far to trust it: range, examples, seeds, conditions."""
    paper: str = ""
    verdict: str = ""
    """``passed``, ``missed`` or ``unclear`` of a claim; the word of a comparison; or none."""
    reason: str = ""
    """Of the verdict."""
    card: bool = True
    """Whether it is worth a card."""


def highlights(report: Report) -> list[Highlight]:
    """Everything that was measured: scores, speed, size, what distillation added, and the paper's other claims."""
    found = [*_scores(report), *_unshared(report), *_speed(report), *_size(report), *_added(report)]
    scored = any(each.label in ("keeps", "scores") for each in found)
    found += [replace(each, card=not scored) for each in _heldout(report)]
    return [*found, *_phones(report), *_claims(report)]


def _scores(report: Report) -> Iterator[Highlight]:
    """The mean over GLUE, then every other task that teacher and student share."""
    means = {mean["key"]: mean for mean in report["tables"]["1"]["means"] if mean["kept"] is not None}
    mean = means.get("nine") or means.get("measured")
    if mean is not None:
        tasks = "the nine tasks of GLUE" if mean["key"] == "nine" else f"GLUE ({', '.join(mean['tasks'])})"
        doubt = "on subsets in part" if mean["subset"] else ""
        yield _kept(mean, tasks, doubt, mean["verdict"], mean["paper"]["kept"])
    for row in scored_rows(report):
        if row.get("metric") == "exact":
            continue  # F1 is the headline of SQuAD
        published = row["paper"]["kept"] if row["paper"] else None
        yield _kept(row, title(row), of_task(row), _verdict(row), published)


def _kept(
    row: Mapping[str, Any], on: str, doubt: str, verdict: Mapping[str, str], published: float | None
) -> Highlight:
    teacher, student = (row[side]["score"] if isinstance(row[side], Mapping) else row[side] for side in
                        (TEACHER, STUDENT))  # fmt: skip
    word = "" if published is not None else f"{verdict['state']}; "
    return Highlight(
        label="keeps",
        value=percent(row["kept"]),
        text=f"of the score kept on {on}: {student:.1f} of {teacher:.1f}",
        line=f"{student:.1f} of the teacher's {teacher:.1f} on {on}: {percent(row['kept'])}"
        + (f" ({word}{doubt})" if doubt else ""),
        doubt=doubt,
        paper="" if published is None else f"paper {percent(published)}",
        verdict=verdict["state"],
        reason=verdict["reason"],
    )


def _verdict(row: Mapping[str, Any]) -> Mapping[str, str]:
    """The paper's where it has the task, else the word for student against teacher."""
    if row["paper"]:
        return dict(row["verdict"])
    return {"state": row["versus"][TEACHER]["word"], "reason": ""}


def _unshared(report: Report) -> Iterator[Highlight]:
    """Tasks on which only one of teacher and student has a score, or both on other examples."""
    lost, known = lost_scores(report), models(report)
    tables = report["tables"]
    for row in (*tables["1"]["rows"], *tables["2"]["rows"], *report["other_tasks"]):
        if row["kept"] is not None or row.get("metric") == "exact" or not (row[TEACHER] or row[STUDENT]):
            continue
        asked = [side for side in (STUDENT, TEACHER) if side in known]
        sides = [
            f"{side} {row[side]['score']:.1f}" if row[side] else
            f"{side} {'failed' if (side, row['task']) in lost else 'not scored'}"
            for side in asked
        ]  # fmt: skip
        main = STUDENT if STUDENT in known else TEACHER
        value = f"{row[main]['score']:.1f}" if row[main] else NOTHING
        failed = row[main] is None and (main, row["task"]) in lost
        apart = row[TEACHER] and row[STUDENT] and row[TEACHER]["score"] > 0
        told = f"on {title(row)}: {', '.join(sides)}" + (" (on other examples)" if apart else "")
        yield Highlight("scores", value, told, told, verdict="failed" if failed else "")


def _speed(report: Report) -> Iterator[Highlight]:
    headline = report["headline"]
    fastest, same = headline["fastest"], headline["same_form"]
    if fastest is None:
        return
    how = f"{fastest['how']} ({fastest['p50_ms']:.2f} ms)"
    also = ""
    if same is not None and same["form"] != fastest["form"]:
        also = f", {ratio(same['ratio_same_form'])} in {same['how']} ({same['p50_ms']:.2f} ms)"
    where = f"batch {fastest['batch']}, {fastest['where']}, {plural(fastest['threads'], 'thread')}"
    fit = headline["fit"]
    conditions = where if fit else f"{where}; the machine was not quiet"
    yield Highlight(
        label="is faster" if fastest["ratio_to_teacher"] > 1 else "is slower",
        value=ratio(fastest["ratio_to_teacher"]),
        text=f"as fast as the teacher in PyTorch: {how}",
        line=f"{ratio(fastest['ratio_to_teacher'])} in {how}{also}: {conditions}",
        doubt=conditions,
        verdict=("better" if fastest["ratio_to_teacher"] > 1 else "worse") if fit else "unclear",
    )


def _size(report: Report) -> Iterator[Highlight]:
    known = models(report)
    student, teacher = known.get(STUDENT), known.get(TEACHER, {})
    if student is None or student["parameters"] is None:
        return
    layers = f"{student['layers']} of {teacher['layers']} layers" if teacher.get("layers") else ""
    of = f" of {millions(teacher['parameters'])}" if teacher.get("parameters") else ""
    counted = f"{millions(student['parameters'])}{of} parameters"
    exports = [each for each in report["exports"] if each["model"] == STUDENT and each["bytes"]]
    smallest = min(exports, key=lambda each: int(each["bytes"]), default=None)
    size = student["weight_bytes"] if smallest is None else smallest["bytes"]
    form = "as safetensors" if smallest is None else f"in {TITLES.get(smallest['format'], smallest['format'])}"
    against = f"; the teacher takes {megabytes(teacher['weight_bytes'])}" if teacher.get("weight_bytes") else ""
    if size is None:
        value = millions(student["parameters"])
        yield Highlight("distilled", value, "parameters", _listed(layers, counted), layers)
        return
    yield Highlight(
        label="distilled",
        value=megabytes(size),
        text=f"on disk {form}{against}",
        line=_listed(
            layers, counted, f"{megabytes(size)} {form}{against.replace('; ', ' (') + ')' if against else ''}"
        ),
        doubt=_listed(layers, counted),
    )


def _added(report: Report) -> Iterator[Highlight]:
    """The student against others of the same size: without a teacher, untrained, on masked words only."""
    for number, other in enumerate(baselines(report)):
        yield Highlight(
            label="without it" if number == 0 else "",
            value=other.value,
            text=f"{other.unit} {other.title}",
            line=f"{other.score}: {other.title}" + (f" ({other.word})" if other.word else ""),
            doubt=other.sides,
            verdict=other.word,
            card=number == 0,
        )


def _heldout(report: Report) -> Iterator[Highlight]:
    known = models(report)
    student, teacher = known.get(STUDENT), known.get(TEACHER, {})
    if student is None:
        return
    measured = losses(report)
    if (loss := measured.nats.get(STUDENT)) is not None:
        against, word = measured.nats.get(TEACHER), measured.word
        sides = f"{loss:.2f} nats" + ("" if against is None else f" (teacher {against:.2f})")
        own, of = (amount(each.get("accuracy"), ".1f", " %", 100, "") for each in (student, teacher))
        guessed = f"{own} of hidden words guessed right" if own else ""
        guessed += f", teacher {of}" if own and of else ""
        yield Highlight(
            label="loses",
            value=f"{loss:.2f} nats",
            text=f"lost per {word} word of held-out text" + ("" if against is None else f"; teacher {against:.2f}"),
            line=f"{sides} per {word} word of held-out text" + (f"; {guessed}" if guessed else ""),
            doubt=guessed,
        )
    if student["agreement"] is not None:
        share = f"{100 * student['agreement']:.0f} %"
        yield Highlight(
            "agrees", share, "of hidden words have the teacher's first guess",
            f"{share} of hidden words have the teacher's first guess",
        )  # fmt: skip


def _claims(report: Report) -> Iterator[Highlight]:
    """Claims of the paper that are no score, size or speed of the student."""
    found = {claim["claim"]: claim for claim in report["claims"] if claim["ours"] is not None}
    texts: dict[str, tuple[str, str, Callable[[float], str]]] = {
        "second_step": ("adds", "points of F1 on SQuAD from a second distillation", signed),
        "ablations": ("needs", "parts of the training found to help", str),
        "speed": ("DistilBERT", "as fast as BERT-base on this CPU", ratio),
    }
    for name, (label, text, form) in texts.items():
        if name not in found:
            continue
        claim = found[name]
        of = f" of {claim['paper']}" if name == "ablations" else ""
        value, verdict = f"{form(claim['ours'])}{of}", claim["verdict"]
        paper = "" if name == "ablations" else f"paper {form(claim['paper'])}"
        yield Highlight(
            label, value, text, f"{value} {text}", paper=paper, verdict=verdict["state"], reason=verdict["reason"]
        )


def _phones(report: Report) -> Iterator[Highlight]:
    for phone in report["phones"]["measured"]:
        own = [row for row in phone["rows"] if row["model"] == STUDENT]
        if not own or phone["proxy"]:
            continue
        best = min(own, key=lambda row: (-row["length"], row["p50_ms"]))
        gain = "" if best["ratio_to_teacher"] is None else f", {ratio(best['ratio_to_teacher'])} as fast as the teacher"
        value = f"{best['p50_ms']:.0f} ms"
        yield Highlight(
            label="on a phone",
            value=value,
            text=f"an answer on {phone['title']}{gain}",
            line=f"{value} an answer on {phone['title']}{gain}",
            doubt=f"{best['length']} tokens, {plural(best['threads'], 'thread')}",
            verdict="unclear" if phone["unfit"] else "",
            reason="slowed down" if phone["unfit"] else "",
        )


def _listed(*parts: str) -> str:
    return ", ".join(part for part in parts if part)
