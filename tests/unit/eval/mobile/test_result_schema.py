import copy
import json
from typing import Any

import pytest

from cluster.artifacts.errors import StageError
from eval.mobile.page_server import ResultError
from eval.mobile.result_schema import check, read, rows, unfit
from eval.mobile.timing_rows import compared, row, statistics

PLAN = {"lengths": [48], "warmup": 1, "repeats": 3, "threads": [1, 2]}
MODELS = ("student", "teacher")
PAGE = {
    "runtime": "onnxruntime-web 1.30.0",
    "models": [
        {"role": role, "title": role.title(), "weights": "random", "format": "int8", "identity": f"id-{role}",
         "parameters": 66, "bytes": 67}
        for role in MODELS
    ],
}  # fmt: skip


def posted() -> dict[str, Any]:
    """A posted result: two models on one thread, the teacher three and a half times as slow."""
    times = {"student": [10.0, 20.0, 12.0], "teacher": [40.0, 42.0, 70.0]}
    way = {"backend": "wasm", "threads": 1, "length": 48, "load_seconds": 1, "first_ms": 30.0}
    device = {
        "user_agent": "Mozilla/5.0 (Linux; Android 14; Pixel 7)", "platform": "Android", "mobile": True, "cores": 8,
        "memory_gb": 8, "isolated": True, "secure": True, "screen": "412 × 915 at 2.6", "clock_ms": 0.005,
        "webgpu": {"vendor": "arm", "architecture": "valhall"}, "battery": {"charging": False, "level": 0.8},
        "runtime": "onnxruntime-web 1.30.0",
    }  # fmt: skip
    return {
        "format": 1, "page": "v1", "plan": PLAN, "device": device, "interrupted": False,
        "rows": [{"model": role, **way, "tokenise_ms": [1.0, 0.0, 3.0], "neural_ms": times[role]} for role in MODELS],
        "problems": [{"backend": "webgpu", "threads": 1, "error": "no such operator"}],
    }  # fmt: skip


def take(changed: Any) -> Any:
    return read(json.loads(json.dumps(changed)), "v1", PLAN, MODELS)


def test_a_result_becomes_rows_that_compare():
    made = rows(take(posted()), PAGE)
    student, teacher = made
    assert [entry["model"] for entry in made] == [*MODELS]
    assert student["runtime"] == "onnxruntime-web 1.30.0 WebAssembly int8"
    assert (student["p50_ms"], student["max_ms"], student["samples"]) == (12.0, 20.0, 3)
    assert student["tokenise"]["p50_ms"] == 1.0
    assert student["ratio_to_teacher"] == pytest.approx(3.5)
    assert student["less_time_percent"] == pytest.approx(71.43, abs=0.01)
    assert (teacher["ratio_to_teacher"], teacher["less_time_percent"]) == (1.0, 0.0)
    assert (student["weights"], student["identity"], student["bytes"]) == ("random", "id-student", 67)


def test_rows_are_compared_under_the_same_conditions_only():
    made = [
        row("teacher", "A", 1, 48, [40.0]), row("student", "A", 1, 48, [10.0]), row("student", "A", 2, 48, [10.0]),
        row("student", "B", 1, 48, [10.0]), row("student", "A", 1, 64, [10.0]),
    ]  # fmt: skip
    assert [entry["ratio_to_teacher"] for entry in compared(made)] == [1.0, 4.0, None, None, None]


def test_percentiles_keep_outliers():
    found = statistics([1.0] * 98 + [50.0, 100.0])
    assert (found["p50_ms"], found["p90_ms"], found["max_ms"], found["mean_ms"]) == (1.0, 1.0, 100.0, 2.48)


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        (("format",), 2, "format"),
        (("surprise",), 1, "surprise"),
        (("page",), "v0", "another version of the page"),
        (("plan", "repeats"), 2, "another plan"),
        (("rows",), [], "rows"),
        (("interrupted",), "no", "interrupted"),
        (("device", "cores"), "8", r"device\.cores"),
        (("device", "user_agent"), "x" * 401, r"device\.user_agent"),
        (("rows", 0, "neural_ms"), [1.0, 2.0], "the 3 runs of the plan"),
        (("rows", 0, "tokenise_ms"), [1.0] * 4, "the 3 runs of the plan"),
        (("rows", 0, "neural_ms"), [1.0, 2.0, -1.0], r"rows\.0\.neural_ms"),
        (("rows", 0, "neural_ms"), [1.0, 2.0, 0.0], "too coarse"),
        (("rows", 0, "model"), "teacher", "is missing or occurs twice"),
        (("rows", 0, "model"), "somebody", r"rows\.0\.model"),
        (("rows", 0, "backend"), "abacus", r"rows\.0\.backend"),
        (("rows", 0, "length"), 47, "is missing or occurs twice"),
    ],
)
def test_invalid_results_are_refused_with_the_reason(path, value, reason):
    changed: Any = copy.deepcopy(posted())
    place = changed
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    with pytest.raises(ResultError, match=reason):
        take(changed)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"repeats": 1001}, "repeats: .* less than or equal to 1000"),
        ({"lengths": [*range(1, 10)]}, "lengths: .* at most 8 items"),
        (
            {"lengths": [*range(1, 9)], "threads": [*range(1, 9)]},
            "3 repeats of 144 rows are more than a phone may post",
        ),
        ({"repeats": 1000, "lengths": [48, 64, 96]}, r"lower repeats \(here to 728\)"),
    ],
)
def test_a_plan_whose_result_could_not_be_posted_is_refused_before_it_is_measured(change, reason):
    check(PLAN, 2)
    with pytest.raises(StageError, match=reason):
        check(PLAN | change, 2)


@pytest.mark.parametrize("value", [None, [], "text", 1, {}, {"rows": 1}])
def test_anything_may_be_posted_and_nothing_breaks(value):
    with pytest.raises(ResultError):
        take(value)


def test_infinite_times_are_refused():
    """Python reads it from JSON although the standard does not have it."""
    changed = posted()
    changed["rows"][0]["neural_ms"] = [1.0, 2.0, float("inf")]
    with pytest.raises(ResultError):
        take(changed)


def test_numbers_of_a_hidden_page_or_an_empty_battery_are_marked():
    assert unfit(take(posted())) is None
    assert "background" in str(unfit(take(posted() | {"interrupted": True})))
    tired = posted()
    tired["device"]["battery"] = {"charging": False, "level": 0.12}
    assert "battery was at 12%" in str(unfit(take(tired)))
    tired["device"]["battery"] = {"charging": True, "level": 0.12}
    assert unfit(take(tired)) is None
