"""Schema of the result that a phone posts, validated strictly because it comes over a network.

The page sends raw times; statistics are computed here, so that they are the same for every phone.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from cluster.artifacts.errors import StageError
from eval.mobile.page_server import MAX_RESULT_BYTES, ResultError
from eval.mobile.timing_rows import Row, compared, row, statistics

MOST_ROWS = 128
Words = Annotated[str, Field(max_length=400)]
Times = Annotated[tuple[NonNegativeFloat, ...], Field(min_length=1, max_length=2000)]


class Posted(pydantic.BaseModel):
    """Base of the schema: no unknown keys, no conversions, no infinity."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class PostedPlan(Posted):
    """The settings that the page measured with."""

    lengths: Annotated[tuple[PositiveInt, ...], Field(min_length=1, max_length=8)]
    warmup: Annotated[int, Field(ge=0, le=1000)]
    repeats: Annotated[int, Field(ge=1, le=1000)]
    threads: Annotated[tuple[PositiveInt, ...], Field(min_length=1, max_length=8)]


class Graphics(Posted):
    """The GPU, as the browser describes it."""

    vendor: Words
    architecture: Words


class Battery(Posted):
    """Level from 0 to 1."""

    charging: bool
    level: Annotated[float, Field(ge=0, le=1)]


class PhoneDevice(Posted):
    """The phone, as the browser describes it."""

    user_agent: Words
    platform: Words
    mobile: bool | None
    cores: PositiveInt
    memory_gb: PositiveFloat | None
    isolated: bool
    secure: bool
    screen: Words
    clock_ms: NonNegativeFloat
    webgpu: Graphics | None
    battery: Battery | None
    runtime: Words


class PostedTiming(Posted):
    """One model on one backend and number of threads at one length, in milliseconds."""

    model: Literal["student", "teacher"]
    backend: Literal["wasm", "webgpu"]
    threads: PositiveInt
    length: PositiveInt
    load_seconds: NonNegativeFloat
    first_ms: NonNegativeFloat
    tokenise_ms: Times
    neural_ms: Times


class RuntimeProblem(Posted):
    """A backend and number of threads that failed on this phone."""

    backend: Literal["wasm", "webgpu"]
    threads: PositiveInt
    error: Words


class PhoneResult(Posted):
    """A measurement."""

    format: Literal[1]
    page: Words
    plan: PostedPlan
    device: PhoneDevice
    rows: Annotated[tuple[PostedTiming, ...], Field(min_length=1, max_length=MOST_ROWS)]
    problems: Annotated[tuple[RuntimeProblem, ...], Field(max_length=32)]
    interrupted: bool


_TIME_BYTES = 20
"""Upper limit for one time in JSON: JavaScript writes up to 17 digits, a point and a comma."""


def check(plan: Mapping[str, Any], models: int) -> None:
    """Check before the measurement that the result of a plan can be posted.

    Raises:
        StageError: a result cannot hold so much.
    """
    try:
        PostedPlan.model_validate_json(json.dumps(dict(plan)))
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise StageError(f"{'.'.join(map(str, first['loc']))}: {first['msg']} where a phone measures") from None
    # One per number of threads and one for the GPU; each has times of tokenization and network.
    rows = (len(plan["threads"]) + 1) * len(plan["lengths"]) * models
    most = min(1000, (MAX_RESULT_BYTES // 2) // (rows * 2 * _TIME_BYTES))
    if rows > MOST_ROWS or plan["repeats"] > most:
        raise StageError(
            f"{plan['repeats']} repeats of {rows} rows are more than a phone may post: lower repeats (here to {most}), "
            "or measure fewer lengths and threads"
        )


def read(posted: Any, page: str, plan: Mapping[str, Any], models: Sequence[str]) -> PhoneResult:
    """The result in posted JSON.

    Raises:
        ResultError: it is invalid or incomplete, or measured with another page or plan.
    """
    if not isinstance(posted, dict):
        raise ResultError("a result is a JSON object")
    try:
        # Through JSON, because strict models accept a list as a tuple only there.
        result = PhoneResult.model_validate_json(pydantic.TypeAdapter(Any).dump_json(posted))
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise ResultError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    if result.page != page:
        raise ResultError("measured with another version of the page: reload it")
    if result.plan.model_dump(mode="json") != dict(plan):
        raise ResultError("measured with another plan: reload the page")
    _check_rows(result, models)
    return result


def _check_rows(result: PhoneResult, models: Sequence[str]) -> None:
    backends = {(entry.backend, entry.threads) for entry in result.rows}
    wanted = {(*backend, length, model) for backend in backends for length in result.plan.lengths for model in models}
    found = [(entry.backend, entry.threads, entry.length, entry.model) for entry in result.rows]
    if sorted(found) != sorted(wanted):
        raise ResultError("a row of a model is missing or occurs twice")
    runs = result.plan.repeats
    if any({len(entry.neural_ms), len(entry.tokenise_ms)} != {runs} for entry in result.rows):
        raise ResultError(f"a row does not have the {runs} runs of the plan")
    if any(not min(entry.neural_ms) > 0 for entry in result.rows):
        raise ResultError("a run took no time: this browser's clock is too coarse to measure with")


def rows(result: PhoneResult, page: Mapping[str, Any]) -> list[Row]:
    """Rows of the benchmark; ``page`` are the facts of the page's artifact, which describe the models."""
    known = {model["role"]: model for model in page["models"]}
    return compared([_row(entry, known[entry.model], str(page["runtime"])) for entry in result.rows])


def _row(entry: PostedTiming, model: Mapping[str, Any], runtime: str) -> Row:
    name = f"{runtime} {'WebAssembly' if entry.backend == 'wasm' else 'WebGPU'} {model['format']}"
    return row(
        entry.model,
        name,
        entry.threads,
        entry.length,
        entry.neural_ms,
        title=model["title"],
        weights=model["weights"],
        identity=model["identity"],
        parameters=model["parameters"],
        bytes=model["bytes"],
        load_seconds=entry.load_seconds,
        first_ms=entry.first_ms,
        tokenise=statistics(entry.tokenise_ms),
    )


def unfit(result: PhoneResult) -> str | None:
    """Why the numbers are not reliable."""
    if result.interrupted:
        return "the page was in the background for a time, where browsers slow it"
    battery = result.device.battery
    if battery is not None and not battery.charging and battery.level < 0.2:
        return f"the battery was at {battery.level:.0%} and not charging, where phones save power"
    return None
