"""Whether a claim of the paper was reproduced: passed, missed, unclear, or not measured, with the reason.

A verdict is about what is comparable: a share of one's own teacher, a ratio on one's own machine, a sign. Never about
points or seconds that were measured with other weights or on another processor.
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
    """``reason`` says what makes it unclear, or what it rests on."""

    state: Literal["passed", "missed", "unclear", "not measured"]
    reason: str = ""

    def resolved(self) -> dict[str, str]:
        return asdict(self)


def at_least(
    value: float | None, aim: float, doubt: str = "", error: float | None = None, rests_on: str = ""
) -> Verdict:
    """Whether ``value`` reaches ``aim``; unclear for the reason ``doubt``, or less than two standard errors from it."""
    if value is None:
        return Verdict(NOT_MEASURED)
    if doubt or (error is not None and abs(value - aim) < 2 * error):
        return Verdict(UNCLEAR, doubt or NOISE)
    return Verdict(PASSED if value >= aim else MISSED, rests_on)


def keeps(row: Mapping[str, Any], aim: float) -> Verdict:
    """Whether a student keeps ``aim`` percent of its teacher's score on one task."""
    kept = row["kept"]
    doubts = [f"{model} at chance" for model in _at_chance(row, kept is not None and kept >= aim)]
    doubts += ["fine-tuned otherwise than the teacher"] if row["trained_alike"] is False else []
    return at_least(kept, aim, ", ".join(doubts), row["error"], "one seed" if _once(row) else "")


def keeps_mean(
    kept: float | None, error: float | None, rows: Sequence[Mapping[str, Any]], aim: float = paper.TARGET_PERCENT
) -> Verdict:
    """Whether a student keeps ``aim`` percent of its teacher's mean over the tasks of ``rows``."""
    passes = kept is not None and kept >= aim
    # Nobody is better than chance on the task that is a trap.
    judged = [(row, _at_chance(row, passes)) for row in rows if row["task"] != paper.TRAP]
    doubts = []
    for model in (TEACHER, STUDENT):
        if lost := [row["title"] for row, found in judged if model in found]:
            doubts.append(f"{model} at chance on {', '.join(lost)}")
    if other := [row["title"] for row in rows if row["trained_alike"] is False]:
        doubts.append(f"fine-tuned otherwise than the teacher on {', '.join(other)}")
    once = [row["title"] for row in rows if _once(row)]
    return at_least(kept, aim, "; ".join(doubts), error, f"one seed on {', '.join(once)}" if once else "")


def _once(row: Mapping[str, Any]) -> bool:
    """Whether teacher or student was fine-tuned with one seed only."""
    return any(row[model] is not None and row[model]["seeds"] == 1 for model in (TEACHER, STUDENT))


def _at_chance(row: Mapping[str, Any], passes: bool) -> list[str]:
    """Who scores no higher than always giving the commonest answer; the student matters where it would pass."""
    if row["at_chance"][TEACHER]:
        return [TEACHER]
    return [STUDENT] if row["at_chance"][STUDENT] and passes else []


def same_sign(change: float | None, published: float, error: float | None) -> Verdict:
    """Whether a change goes the way it went in the paper; ``error`` is its standard error over the seeds."""
    if change is None:
        return Verdict(NOT_MEASURED)
    if error is None:
        return Verdict(UNCLEAR, "one seed")
    if abs(change) < 2 * error:
        return Verdict(UNCLEAR, NOISE)
    return Verdict(PASSED if change * published > 0 else MISSED)


def joined(verdicts: Sequence[Mapping[str, str]]) -> Verdict:
    """Of a claim with several parts: missed when one is missed, passed when all are."""
    states = [verdict["state"] for verdict in verdicts]
    if MISSED in states:
        return Verdict(MISSED, f"{states.count(PASSED)} of {len(states)} reproduced")
    if all(state == NOT_MEASURED for state in states):
        return Verdict(NOT_MEASURED)
    if all(state == PASSED for state in states):
        return Verdict(PASSED)
    return Verdict(UNCLEAR, f"{states.count(PASSED)} of {len(states)} reproduced")


def claims(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The paper's claims beside what was measured here, one line each; numbers as in the tables they stand in."""
    table = report["tables"]
    scores = {row["key"]: row for row in table["1"]["means"] + table["2"]["rows"]}
    glue = scores["nine"] if scores["nine"]["kept"] is not None else scores.get("measured", scores["nine"])
    squad = scores["squad/f1"]
    gain, promised = _gain(squad), squad["paper"]["second_step"] - squad["paper"]["student"]
    taught = same_sign(gain, promised, None if gain is None else _error(squad["second_step"], squad["student"]))
    fewer = report["headline"]["parameters_saved"]
    distilled = next(row for row in table["3"]["rows"] if row["key"] == "distilbert")
    ablations = [row["verdict"] for row in table["4"]["rows"] if row["paper"] is not None]
    return [
        _claim("glue", glue["kept"], glue["paper"]["kept"], glue["verdict"], tasks=glue["tasks"]),
        _claim("imdb", scores["imdb"]["kept"], scores["imdb"]["paper"]["kept"], scores["imdb"]["verdict"]),
        _claim("squad", squad["kept"], squad["paper"]["kept"], squad["verdict"]),
        _claim("second_step", gain, promised, taught.resolved()),
        _claim(
            "parameters", fewer, report["paper"]["parameters_saved"], at_least(fewer, paper.PARAMETERS_SAVED).resolved()
        ),
        _claim("speed", distilled["ratio"], distilled["paper"]["ratio"], distilled["verdict"]),
        _claim(
            "ablations",
            None if joined(ablations).state == NOT_MEASURED else sum(each["state"] == PASSED for each in ablations),
            len(ablations),
            joined(ablations).resolved(),
        ),
    ]


def _claim(name: str, ours: float | None, paper: float, verdict: Mapping[str, str], **more: Any) -> dict[str, Any]:
    return {"claim": name, "ours": ours, "paper": paper, "verdict": verdict, **more}


def _gain(row: Mapping[str, Any]) -> float | None:
    """What the second step adds to the student's score, in points; None where they differ in more than that."""
    taught, student = row["second_step"], row["student"]
    if None in (taught, student, row["kept"], row["kept_second_step"]) or not row["second_step_alike"]:
        return None
    return float(taught["score"] - student["score"])


def _error(*measured: Mapping[str, Any]) -> float | None:
    """Standard error of a difference of medians; None where one of them is of a single seed."""
    errors = [each["error"] for each in measured]
    return None if None in errors else math.hypot(*errors)
