"""How models are opened, warmed up, and timed in turns."""

import time
from pathlib import Path
from typing import Any

import models_with_heads
import pytest

from deploy.ask import side_by_side
from deploy.ask.found_models import Comparison, find
from deploy.ask.side_by_side import MOST_OPEN, ROUNDS, SECONDS, WARM_UP, Models, StoppedError


@pytest.fixture
def two(tmp_path: Path) -> Comparison:
    folders = [
        models_with_heads.model_folder(tmp_path / name, family, "classification")
        for name, family in (("teacher", "bert"), ("student", "distilbert"))
    ]
    (comparison,) = find(folders)
    return comparison


class Recorder:
    """A model that notes its calls, and moves a clock by the seconds that it takes."""

    def __init__(self, name: str, calls: list[str], clock: Any) -> None:
        self.name, self.calls, self.clock = name, calls, clock

    def __call__(self, text: str, second: str | None, top: int) -> str:
        self.calls.append(self.name)
        self.clock.now += self.clock.seconds[self.name]
        return f"{self.name} on {text}"


class Clock:
    def __init__(self) -> None:
        self.now = 0.0
        self.seconds = {"teacher": 0.2, "student": 0.1}


@pytest.fixture
def recorded(two: Comparison, monkeypatch: pytest.MonkeyPatch) -> tuple[Models, list[str], Clock]:
    """Models that record their calls."""
    calls: list[str] = []
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", lambda: clock.now)
    monkeypatch.setattr(
        side_by_side,
        "_open",
        lambda found, threads: side_by_side.OpenModel(found, Recorder(found.role, calls, clock), ""),  # type: ignore[arg-type]
    )
    return Models(1), calls, clock


def test_models_are_warm_before_the_first_question_and_take_turns(
    recorded: tuple[Models, list[str], Clock], two: Comparison
) -> None:
    models, calls, _ = recorded
    models.open(two)
    assert calls == ["teacher", "student"] * WARM_UP
    calls.clear()
    answers = models.ask(two, "text", None)
    rounds = list(zip(calls[::2], calls[1::2], strict=True))
    assert rounds[0] == ("teacher", "student"), "the call that is not counted"
    assert rounds[1:] == [("teacher", "student"), ("student", "teacher")] * (ROUNDS // 2) + [("teacher", "student")]
    assert [answer.milliseconds for answer in answers] == pytest.approx([200, 100])
    assert [answer.calls for answer in answers] == [ROUNDS, ROUNDS]


def test_slow_models_are_called_less_often(recorded: tuple[Models, list[str], Clock], two: Comparison) -> None:
    models, calls, clock = recorded
    models.open(two)
    calls.clear()
    clock.seconds["teacher"] = SECONDS
    answers = models.ask(two, "text", None)
    assert calls == ["teacher", "student"] * 2, "the call that is not counted, and one round"
    assert [(answer.milliseconds, answer.calls) for answer in answers] == [(1000 * SECONDS, 1), (pytest.approx(100), 1)]


def test_few_models_stay_open_and_the_latest_last(
    recorded: tuple[Models, list[str], Clock], two: Comparison, monkeypatch: pytest.MonkeyPatch
) -> None:
    models, calls, _ = recorded
    others = [Comparison(f"task {number}", "PyTorch", two.models) for number in range(MOST_OPEN)]
    for comparison in (two, *others[:-1], two, others[-1]):
        models.open(comparison)
    calls.clear()
    models.open(two)
    assert calls == [], "still open"
    models.open(others[0])
    assert len(calls) == 2 * WARM_UP, "opened again"


def test_a_question_ends_when_the_command_does(recorded: tuple[Models, list[str], Clock], two: Comparison) -> None:
    models, _, _ = recorded
    models.open(two)
    models.stop()
    with pytest.raises(StoppedError):
        models.ask(two, "text", None)
