"""Whether our results reproduce a claim of the paper: passed, missed, unclear, or not measured, with the reason.

Verdicts compare a share of our own teacher, a ratio on our own machine, or a sign; never points or seconds of other
weights or another processor.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from eval.results import paper
from eval.results.schema import STUDENT, TEACHER

PASSED: Final = "passed"
MISSED: Final = "missed"
UNCLEAR: Final = "unclear"
NOT_MEASURED: Final = "not measured"

NOISE = "within the noise"


@dataclass(frozen=True)
class Verdict:
    """``reason`` says why it is unclear, or what limits it."""

    state: Literal["passed", "missed", "unclear", "not measured"]
    reason: str = ""

    def resolved(self) -> dict[str, str]:
        return asdict(self)


def at_least(value: float | None, aim: float, doubt: str = "", error: float | None = None, limit: str = "") -> Verdict:
    """Whether ``value`` reaches ``aim``; unclear for the reason ``doubt``, or within two standard errors of it."""
    if value is None:
        return Verdict(NOT_MEASURED)
    if doubt or (error is not None and abs(value - aim) < 2 * error):
        return Verdict(UNCLEAR, doubt or NOISE)
    return Verdict(PASSED if value >= aim else MISSED, limit)


def keeps(row: Mapping[str, Any], aim: float) -> Verdict:
    """Whether a student keeps ``aim`` percent of its teacher's score on one task."""
    kept = row["kept"]
    doubts = [f"{model} at chance" for model in _at_chance(row, kept is not None and kept >= aim)]
    doubts += ["fine-tuned with other settings than the teacher"] if row["trained_alike"] is False else []
    return at_least(kept, aim, ", ".join(doubts), row["error"], "one seed" if _once(row) else "")


def keeps_mean(
    kept: float | None, error: float | None, rows: Sequence[Mapping[str, Any]], aim: float = paper.TARGET_PERCENT
) -> Verdict:
    """Whether a student keeps ``aim`` percent of its teacher's mean over the tasks of ``rows``."""
    passes = kept is not None and kept >= aim
    # No model is better than chance on WNLI.
    at_chance = [(row["title"], _at_chance(row, passes)) for row in rows if row["task"] != paper.TRAP]
    doubts = []
    for model in (TEACHER, STUDENT):
        if titles := [title for title, models in at_chance if model in models]:
            doubts.append(f"{model} at chance on {', '.join(titles)}")
    if other := [row["title"] for row in rows if row["trained_alike"] is False]:
        doubts.append(f"fine-tuned with other settings than the teacher on {', '.join(other)}")
    once = [row["title"] for row in rows if _once(row)]
    return at_least(kept, aim, "; ".join(doubts), error, f"one seed on {', '.join(once)}" if once else "")


def _once(row: Mapping[str, Any]) -> bool:
    """Whether teacher or student was fine-tuned with one seed only."""
    return any(row[model] is not None and row[model]["seeds"] == 1 for model in (TEACHER, STUDENT))


def _at_chance(row: Mapping[str, Any], passes: bool) -> list[str]:
    """Which model scores no higher than the most frequent answer; the student matters only where it would pass."""
    if row["at_chance"][TEACHER]:
        return [TEACHER]
    return [STUDENT] if row["at_chance"][STUDENT] and passes else []


def same_sign(change: float | None, published: float, error: float | None) -> Verdict:
    """Whether a change has the sign of the paper's; ``error`` is its standard error over the seeds."""
    if change is None:
        return Verdict(NOT_MEASURED)
    if error is None:
        return Verdict(UNCLEAR, "one seed")
    if abs(change) < 2 * error:
        return Verdict(UNCLEAR, NOISE)
    return Verdict(PASSED if change * published > 0 else MISSED)


def joined(verdicts: Sequence[Mapping[str, str]]) -> Verdict:
    """The verdict of a claim with several parts: missed if one is, passed if all are."""
    states = [verdict["state"] for verdict in verdicts]
    for state in (NOT_MEASURED, PASSED):
        if all(each == state for each in states):
            return Verdict(state)
    return Verdict(MISSED if MISSED in states else UNCLEAR, f"{states.count(PASSED)} of {len(states)} reproduced")


def claims(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The paper's claims with our results, one line each; numbers as in the tables."""
    table = report["tables"]
    scores = {row["key"]: row for row in table["1"]["means"] + table["2"]["rows"]}
    glue = scores["nine"] if scores["nine"]["kept"] is not None else scores.get("measured", scores["nine"])
    squad = scores["squad/f1"]
    gain, promised = _gain(squad), squad["paper"]["second_step"] - squad["paper"]["student"]
    second_step = same_sign(gain, promised, None if gain is None else _error(squad["second_step"], squad["student"]))
    fewer = report["headline"]["parameters_saved"]
    distilled = next(row for row in table["3"]["rows"] if row["key"] == "distilbert")
    ablations = [row["verdict"] for row in table["4"]["rows"] if row["paper"] is not None]
    parts = joined(ablations)
    passed = None if parts.state == NOT_MEASURED else sum(each["state"] == PASSED for each in ablations)
    return [
        _kept("glue", glue) | {"tasks": glue["tasks"]},
        _kept("imdb", scores["imdb"]),
        _kept("squad", squad),
        _claim("second_step", gain, promised, second_step.resolved()),
        _claim(
            "parameters", fewer, report["paper"]["parameters_saved"], at_least(fewer, paper.PARAMETERS_SAVED).resolved()
        ),
        _claim("speed", distilled["ratio"], distilled["paper"]["ratio"], distilled["verdict"]),
        _claim("ablations", passed, len(ablations), parts.resolved()),
    ]


def _kept(name: str, row: Mapping[str, Any]) -> dict[str, Any]:
    return _claim(name, row["kept"], row["paper"]["kept"], row["verdict"])


def _claim(name: str, ours: float | None, paper: float, verdict: Mapping[str, str]) -> dict[str, Any]:
    return {"claim": name, "ours": ours, "paper": paper, "verdict": verdict}


def _gain(row: Mapping[str, Any]) -> float | None:
    """Points that the second step adds to the student's score; None where their fine-tuning differs otherwise."""
    distilled, student = row["second_step"], row["student"]
    if None in (distilled, student, row["kept"], row["kept_second_step"]) or not row["second_step_alike"]:
        return None
    return float(distilled["score"] - student["score"])


def _error(*scores: Mapping[str, Any]) -> float | None:
    """Standard error of a difference of medians; None where one has a single seed."""
    errors = [each["error_seeds"] for each in scores]
    return None if None in errors else math.hypot(*errors)
