"""The headline of a report, and how far to trust it, in sentences about measured things only."""

from collections.abc import Iterator, Mapping
from typing import Any

from cluster.telemetry.formatting import percent, ratio
from eval.highlights.rows import baselines, losses, models, on_heldout, scored_rows, span, title
from eval.results.comparison import failed
from eval.results.schema import STUDENT, TEACHER

Report = Mapping[str, Any]


def sentence(report: Report) -> str:
    """What the student is, how fast, and what it kept."""
    if STUDENT not in models(report):
        lost = any(job["name"] == f"runs/{STUDENT}" for job in failed(report))
        return "No student was made: its training failed." if lost else "No student was made."
    return " ".join(part for part in (f"{_shape(report)}.", _score(report)) if part)


def _shape(report: Report) -> str:
    headline, fastest = report["headline"], report["headline"]["fastest"]
    own, of = headline["student_layers"], headline["teacher_layers"]
    parts = []
    if own is not None:
        parts.append("Half the layers" if of == 2 * own else f"{own} of {of} layers" if of else f"{own} layers")
    if fastest is not None:
        quiet = "" if headline["fit"] else " (on a machine that was not quiet)"
        parts.append(f"{ratio(fastest['ratio_to_teacher'])} as fast as its teacher in {fastest['how']}{quiet}")
    elif headline["parameter_share"] is not None:
        parts.append(f"{headline['parameter_share']:.0f} % of the parameters")
    return ", ".join(parts) or "A student"


def _score(report: Report) -> str:
    headline = report["headline"]
    if headline["kept"] is not None:
        named = headline["tasks"]
        tasks = "the nine tasks of GLUE" if len(named) == 9 else ", ".join(named)
        subset = " (in part on subsets)" if headline["subset"] else ""
        return f"It keeps {percent(headline['kept'])} of the teacher's score on {tasks}{subset}."
    rows = scored_rows(report)
    task = _task(next((row for row in rows if row["metric"] != "exact"), rows[0])) if rows else ""
    return " ".join(part for part in (_heldout(report), task) if part)


def _task(row: Mapping[str, Any]) -> str:
    sides = f"On {title(row)} it scores {row[STUDENT]['score']:.1f} against {row[TEACHER]['score']:.1f}"
    against = row["versus"].get(TEACHER)
    if against is None:
        return f"{sides}: {percent(row['kept'])} of the teacher's score."
    return f"{sides}: {against['word']} ({span(against)} points)."


def _heldout(report: Report) -> str:
    found = models(report)
    student = found[STUDENT]
    measured = losses(report)
    loss, of = measured.nats.get(STUDENT), measured.nats.get(TEACHER)
    if loss is None:
        return ""
    if student["accuracy"] is None:
        against = "" if of is None else f" against {of:.2f} of its teacher"
        return f"It loses {loss:.2f} nats per {measured.word} word of held-out text{against}."
    right = found.get(TEACHER, {}).get("accuracy")
    against = "" if right is None else f" (teacher {100 * right:.1f} %)"
    said = f"It guesses {100 * student['accuracy']:.1f} % of the hidden words of held-out text{against}"
    others = on_heldout(report)
    if not others or any(other.word != "better" for other in others):
        return f"{said}."
    return f"{said}, and loses less than any other student (the next: {others[0].score})."


def trust(report: Report) -> list[str]:
    """How far to trust the report: what limits it, in sentences; empty where nothing is known to."""
    return [*_teacher(report), *_ranges(report), *_conditions(report)]


def _teacher(report: Report) -> Iterator[str]:
    teacher = models(report).get(TEACHER, {})
    if teacher.get("hardly_better"):
        yield (
            f"The teacher knows little: it loses {teacher['hidden_loss']:.2f} nats per hidden word, where word counts "
            f"alone lose {teacher['counts']['hidden_loss']:.2f}. Take this run as a test of the machinery."
        )
    for row in report["other_tasks"]:
        if (row["teacher_versus_bag"] or {}).get("word") == "worse":
            yield (
                f"A bag of words scores {row['bag_of_words']['score']:.1f} on {title(row)}, more than the teacher: the "
                "task does not show what the teacher knows."
            )


def _ranges(report: Report) -> Iterator[str]:
    rows = scored_rows(report)
    if any(row["kept"] is not None for row in report["tables"]["1"]["rows"]):
        rows = [*report["tables"]["1"]["rows"], *rows]
    seeds = [row[side]["seeds"] for row in rows for side in (TEACHER, STUDENT) if row[side]]
    if seeds and max(seeds) == 1:
        yield "One seed of fine-tuning: ranges are those of the examples, and another seed may score otherwise."
    elif seeds and min(seeds) == 1:
        yield "Some tasks have one seed of fine-tuning: another seed may score otherwise."
    if chance := [title(row) for row in rows if row["at_chance"][STUDENT] or row["at_chance"][TEACHER]]:
        yield f"At chance on {', '.join(chance)}: shares there mean nothing."
    if STUDENT in models(report) and not baselines(report) and report["tables"]["4"]["score"] is None:
        yield (
            "No student was made without the teacher, or from its untrained layers: what distillation added is not "
            "known."
        )


def _conditions(report: Report) -> Iterator[str]:
    latency = report["latency"]
    if latency and latency["unfit"]:
        yield f"Times are unreliable: {latency['unfit']}."
    if latency and any(row["weights"] == "random" for row in latency["rows"]):
        yield "Published architectures are timed with random weights, which take as long."
