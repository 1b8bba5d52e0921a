"""Whether our results reproduce a claim of the paper: passed, missed, unclear, or not measured, with the reason.

Verdicts compare a share of our own teacher, a ratio on our own machine, or a sign; never points or seconds of other
weights or another processor.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from eval.results import paper
from eval.results.schema import STUDENT, TEACHER

PASSED: Final = "passed"
MISSED: Final = "missed"
UNCLEAR: Final = "unclear"
NOT_MEASURED: Final = "not measured"

AROUND_AIM = "the range includes the paper's"
AROUND_ZERO = "the range includes zero"
NO_RANGE = "no range is known"


@dataclass(frozen=True)
class Verdict:
    """``reason`` says why it is unclear, or what limits it."""

    state: Literal["passed", "missed", "unclear", "not measured"]
    reason: str = ""

    def resolved(self) -> dict[str, str]:
        return asdict(self)


def at_least(value: float | None, aim: float, doubt: str = "") -> Verdict:
    """Whether ``value`` reaches ``aim``; unclear for the reason ``doubt``."""
    if value is None:
        return Verdict(NOT_MEASURED)
    return Verdict(UNCLEAR, doubt) if doubt else Verdict(PASSED if value >= aim else MISSED)


def _kept(against: Mapping[str, Any], doubt: str, limit: str) -> Verdict:
    """Whether a share reaches the paper's; ``against`` is the score minus the paper's share of the teacher's."""
    if doubt or against["word"] in ("equal", "unclear"):
        return Verdict(UNCLEAR, doubt or (NO_RANGE if against["error"] is None else AROUND_AIM))
    return Verdict(PASSED if against["word"] == "better" else MISSED, limit)


def keeps(row: Mapping[str, Any], against: Mapping[str, Any] | None) -> Verdict:
    """Whether a student keeps the paper's share of its teacher's score on one task.

    ``against`` is its score minus that share, as of :class:`eval.results.uncertainty.Difference`; None without it.
    """
    if against is None:
        return Verdict(NOT_MEASURED)
    doubts = [f"{model} at chance" for model in _at_chance(row, against["difference"] >= 0)]
    doubts += ["fine-tuned with other settings than the teacher"] if row["trained_alike"] is False else []
    return _kept(against, ", ".join(doubts), "one seed" if _once(row) else "")


def keeps_mean(rows: Sequence[Mapping[str, Any]], against: Mapping[str, Any] | None) -> Verdict:
    """Whether a student keeps the share that is aimed at of its teacher's mean over the tasks of ``rows``."""
    if against is None:
        return Verdict(NOT_MEASURED)
    passes = against["difference"] >= 0
    # No model is better than chance on WNLI.
    at_chance = [(row["title"], _at_chance(row, passes)) for row in rows if row["task"] != paper.TRAP]
    doubts = []
    for model in (TEACHER, STUDENT):
        if titles := [title for title, models in at_chance if model in models]:
            doubts.append(f"{model} at chance on {', '.join(titles)}")
    if other := [row["title"] for row in rows if row["trained_alike"] is False]:
        doubts.append(f"fine-tuned with other settings than the teacher on {', '.join(other)}")
    once = [row["title"] for row in rows if _once(row)]
    return _kept(against, "; ".join(doubts), f"one seed on {', '.join(once)}" if once else "")


def _once(row: Mapping[str, Any]) -> bool:
    """Whether teacher or student was fine-tuned with one seed only."""
    return any(row[model] is not None and row[model]["seeds"] == 1 for model in (TEACHER, STUDENT))


def _at_chance(row: Mapping[str, Any], passes: bool) -> list[str]:
    """Which model scores no higher than the most frequent answer; the student matters only where it would pass."""
    if row["at_chance"][TEACHER]:
        return [TEACHER]
    return [STUDENT] if row["at_chance"][STUDENT] and passes else []


def same_sign(against: Mapping[str, Any] | None, published: float) -> Verdict:
    """Whether a change has the sign of the paper's; None without a change."""
    if against is None:
        return Verdict(NOT_MEASURED)
    if against["one_seed"]:
        return Verdict(UNCLEAR, "one seed")
    if against["word"] in ("equal", "unclear"):
        return Verdict(UNCLEAR, NO_RANGE if against["error"] is None else AROUND_ZERO)
    return Verdict(PASSED if against["difference"] * published > 0 else MISSED)


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
    fewer = report["headline"]["parameters_saved"]
    distilled = next(row for row in table["3"]["rows"] if row["key"] == "distilbert")
    ablations = [row["verdict"] for row in table["4"]["rows"] if row["paper"] is not None]
    parts = joined(ablations)
    passed = None if parts.state == NOT_MEASURED else sum(each["state"] == PASSED for each in ablations)
    return [
        _share("glue", glue) | {"tasks": glue["tasks"]},
        _share("imdb", scores["imdb"]),
        _share("squad", squad),
        _claim(
            "second_step", None if gain is None else gain["difference"], promised, same_sign(gain, promised).resolved()
        ),
        _claim(
            "parameters", fewer, report["paper"]["parameters_saved"], at_least(fewer, paper.PARAMETERS_SAVED).resolved()
        ),
        _claim("speed", distilled["ratio"], distilled["paper"]["ratio"], distilled["verdict"]),
        _claim("ablations", passed, len(ablations), parts.resolved()),
    ]


def _share(name: str, row: Mapping[str, Any]) -> dict[str, Any]:
    return _claim(name, row["kept"], row["paper"]["kept"], row["verdict"])


def _claim(name: str, ours: float | None, paper: float, verdict: Mapping[str, str]) -> dict[str, Any]:
    return {"claim": name, "ours": ours, "paper": paper, "verdict": verdict}


def _gain(row: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What the second step adds to the student's score; None where their fine-tuning differs otherwise."""
    if None in (row["kept"], row["kept_second_step"]) or not row["second_step_alike"]:
        return None
    gain: Mapping[str, Any] | None = row["second_step_versus"]
    return gain
