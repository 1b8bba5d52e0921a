"""Bar lists of scores and times: every bar starts at zero."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from eval.highlights.rows import models, name_of, scored_rows, title
from eval.results.schema import STUDENT, TEACHER

Report = Mapping[str, Any]

_MOST = 8


@dataclass(frozen=True)
class Bar:
    """``tone`` is teacher, student or other; ``tick`` is the paper's value, as a share of the whole."""

    name: str
    text: str
    share: float
    """Length as a share of the whole, in percent."""
    tone: str
    main: bool = False
    tick: float | None = None


@dataclass(frozen=True)
class BarList:
    """Bars with one unit."""

    title: str
    bars: tuple[Bar, ...]


def first_bars(report: Report) -> list[BarList]:
    """Hidden words where GLUE was not measured, a score, and a time, for the first screen."""
    on_glue = any(mean["kept"] is not None for mean in report["tables"]["1"]["means"])
    found = (None if on_glue else _hidden_words(report), _scores(report), _times(report))
    return [each for each in found if each is not None]


def shares(report: Report) -> BarList | None:
    """The share of the teacher's score that every task of the paper keeps, with the paper's share as a tick."""
    tables = report["tables"]
    rows = [row for row in (*tables["1"]["means"], *tables["1"]["rows"], *tables["2"]["rows"]) if row["kept"]]
    if not rows:
        return None
    whole = max(100.0, *(row["kept"] for row in rows), *(row["paper"]["kept"] for row in rows))
    bars = [
        Bar(
            row["title"], f"{row['kept']:.1f} %", 100 * row["kept"] / whole, "student", "key" in row and "tasks" in row,
            100 * row["paper"]["kept"] / whole,
        )
        for row in rows
    ]  # fmt: skip
    return BarList("Share of the teacher's score kept; the mark is the paper's", tuple(bars))


def _scores(report: Report) -> BarList | None:
    known = models(report)
    means = [mean for mean in reversed(report["tables"]["1"]["means"]) if mean["kept"] is not None]
    rows = scored_rows(report)
    if means:
        mean = next((each for each in means if each["key"] in ("nine", "measured")), means[0])
        named, scores = f"Mean of {len(mean['tasks'])} tasks of GLUE", mean["scores"]
    elif rows:
        named, scores = title(rows[0]).strip("“”").capitalize(), rows[0]["scores"]
    else:
        return None
    scores = {name: score for name, score in scores.items() if name in known}
    bag = rows[0]["bag_of_words"] if rows and not means else None
    return _list(named, scores, known, "a bag of words", bag and bag["score"])


def _hidden_words(report: Report) -> BarList | None:
    known = models(report)
    right = {name: 100 * model["accuracy"] for name, model in known.items() if model["accuracy"] is not None}
    if len(right) < 2:
        return None
    counts = (known[STUDENT]["counts"] or {}).get("accuracy") if STUDENT in known else None
    return _list("Hidden words guessed right, %", right, known, "word counts", counts and 100 * counts)


def _list(
    named: str, values: Mapping[str, float], known: Mapping[str, Any], baseline: str, reached: float | None
) -> BarList:
    """Percentages, on a scale from 0 to 100, with what a baseline reached as the last."""
    bars = [
        Bar(name_of(known[name]) if tone(name) == "other" else name, f"{value:.1f}", value, tone(name), name == STUDENT)
        for name, value in sorted(values.items(), key=_first)[:_MOST]
    ]
    if reached is not None:
        bars.append(Bar(baseline, f"{reached:.1f}", reached, "other"))
    return BarList(named, tuple(bars))


def _first(named: tuple[str, float]) -> tuple[bool, bool, float]:
    """Sort key: the teacher, the student, then the highest."""
    return named[0] != TEACHER, named[0] != STUDENT, -named[1]


def tone(name: str) -> str:
    return name if name in (TEACHER, STUDENT) else "other"


def _times(report: Report) -> BarList | None:
    """The teacher in PyTorch, and every form of the student, the fastest last."""
    latency = report["latency"]
    if not latency:
        return None
    rows = [
        row
        for row in latency["first"]
        if row["model"] == STUDENT or (row["model"] == TEACHER and row["form"] == "pytorch")
    ]
    longest = max((row["p50_ms"] for row in rows), default=0.0)
    ordered = sorted(rows, key=lambda row: -row["p50_ms"])
    ordered = [row for row in ordered if row["model"] == TEACHER] + [row for row in ordered if row["model"] == STUDENT][
        1 - _MOST :
    ]
    bars = [
        Bar(
            f"{row['model']}, {row['how']}", f"{row['p50_ms']:.2f}", 100 * row["p50_ms"] / longest, row["model"],
            row is ordered[-1],
        )
        for row in ordered
    ]  # fmt: skip
    where = latency["first"][0]
    return BarList(f"One call, milliseconds ({where['where']}, one core)" if where["threads"] == 1 else
                   f"One call, milliseconds ({where['where']}, {where['threads']} threads)", tuple(bars))  # fmt: skip
