"""What was measured, one highlight each: a card on the page and a line in the terminal."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from cluster.telemetry.formatting import NOTHING, megabytes, millions, percent, plural, ratio, signed
from eval.highlights.rows import baselines, losses, models, of_task, on_own_tasks, scored_rows, title
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
    """Everything that was measured: what the student knows, whom it owes it, scores, speed, size, the paper's claims.

    A run with GLUE begins with that, any other with held-out text, which tells students apart best.
    """
    scores, heldout, added = [*_scores(report), *_unshared(report)], [*_heldout(report)], [*_added(report)]
    others = [*_speed(report), *_size(report)]
    if _glue(report) is not None:
        first = [*scores, *others, *added, *(replace(each, card=False) for each in heldout)]
    else:
        first = [*heldout, *added, *scores, *others]
    return [*first, *_phones(report), *_claims(report)]


def _glue(report: Report) -> Mapping[str, Any] | None:
    """The mean over GLUE: all nine tasks, else those measured."""
    means = {mean["key"]: mean for mean in report["tables"]["1"]["means"] if mean["kept"] is not None}
    return means.get("nine") or means.get("measured")


def _scores(report: Report) -> Iterator[Highlight]:
    """The mean over GLUE, then every other task that teacher and student share."""
    mean = _glue(report)
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
            line=f"{other.score}: {other.title}" + (f" (student {other.word})" if other.word else ""),
            doubt=other.sides,
            verdict=other.word,
            card=number == 0,
        )
    for task, others in on_own_tasks(report):
        sides = "; ".join(f"{other.score} {other.title}" + (f" (student {other.word})" if other.word else "")
                          for other in others)  # fmt: skip
        yield Highlight(
            "", others[0].value, f"{others[0].unit} {others[0].title}", f"on {task}: {sides}", others[0].sides,
            card=False,
        )  # fmt: skip


def _heldout(report: Report) -> Iterator[Highlight]:
    known = models(report)
    student, teacher = known.get(STUDENT), known.get(TEACHER, {})
    if student is None:
        return
    measured, counts = losses(report), student["counts"] or {}
    if (loss := measured.nats.get(STUDENT)) is not None:
        by_counts = counts.get("hidden_loss") if measured.word == "hidden" else None
        own, sides = f"{loss:.2f} nats", _sides(measured.nats.get(TEACHER), by_counts, ".2f")
        if student["accuracy"] is None:
            text = f"lost per {measured.word} word of held-out text{sides}"
            yield Highlight("loses", own, text, f"{own} {text}")
        else:
            right, counted = (None if (of := each.get("accuracy")) is None else 100 * of for each in (teacher, counts))
            words = f"{report['heldout']['words']:,} " if report["heldout"]["words"] else ""
            share, text = f"{100 * student['accuracy']:.1f} %", f"of {words}hidden words of held-out text"
            guesses = _sides(right, counted, ".1f", " %")
            yield Highlight(
                "guesses", share, f"{text} guessed right{guesses}",
                f"{share} {text} right{guesses}; loses {own} {measured.each}{sides}",
                f"{own} lost {measured.each}{sides}",
            )  # fmt: skip
    if student["agreement"] is not None:
        share = f"{100 * student['agreement']:.0f} %"
        yield Highlight(
            "agrees", share, "of hidden words have the teacher's first guess",
            f"{share} of hidden words have the teacher's first guess",
        )  # fmt: skip


def _sides(teacher: float | None, counts: float | None, form: str, unit: str = "") -> str:
    """`` (teacher 42.7 %, word counts 6.0 %)``."""
    named = [("teacher ", teacher), ("word counts ", counts)]
    others = [f"{name}{value:{form}}{unit}" for name, value in named if value is not None]
    return f" ({', '.join(others)})" if others else ""


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
