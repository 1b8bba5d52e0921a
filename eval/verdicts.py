"""Whether a claim of the paper was reproduced: passed, missed, unclear, or not measured, with the reason.

A verdict is about what is comparable: a share of one's own teacher, a ratio on one's own machine, a sign. Never about
points or seconds that were measured with other weights or on another processor.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from eval import paper

PASSED: Final = "passed"
MISSED: Final = "missed"
UNCLEAR: Final = "unclear"
NOT_MEASURED: Final = "not measured"


@dataclass(frozen=True)
class Verdict:
    """``reason`` says what makes it unclear, or what it rests on."""

    state: Literal["passed", "missed", "unclear", "not measured"]
    reason: str = ""

    def resolved(self) -> dict[str, str]:
        return asdict(self)


def at_least(value: float | None, aim: float, doubt: str = "", rests_on: str = "") -> Verdict:
    """Whether ``value`` reaches ``aim``; unclear for the reason ``doubt`` where there is one."""
    if value is None:
        return Verdict(NOT_MEASURED)
    return Verdict(UNCLEAR, doubt) if doubt else Verdict(PASSED if value >= aim else MISSED, rests_on)


def same_sign(change: float | None, published: float, error: float | None) -> Verdict:
    """Whether a change goes the way it went in the paper; ``error`` is its standard error over the seeds."""
    if change is None:
        return Verdict(NOT_MEASURED)
    if error is None:
        return Verdict(UNCLEAR, "one seed")
    if abs(change) < 2 * error:
        return Verdict(UNCLEAR, "within the noise")
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
    """What the second step adds to the student's score, in points; None where either was scored on other examples."""
    taught, student = row["second_step"], row["student"]
    if None in (taught, student, row["kept"], row["kept_second_step"]):
        return None
    return float(taught["score"] - student["score"])


def _error(*measured: Mapping[str, Any]) -> float | None:
    """Standard error of a difference of medians; None where one of them is of a single seed."""
    errors = [each["error"] for each in measured]
    return None if None in errors else math.hypot(*errors)
