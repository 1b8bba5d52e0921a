"""Measure how fast models answer on a phone: over adb, in a browser, or in a stand-in for a phone on this host.

::

    python -m eval.mobile mobile-browser --page DIR --out DIR
    python -m eval.mobile mobile-adb --student DIR [--teacher DIR] --binary DIR --out DIR
    python -m eval.mobile mobile-proxy --student DIR [--teacher DIR] --out DIR

As a job it is of the kind ``mobile``. In a browser it waits for a person: it prints a one-time link and its
QR code, which lies in ``link.svg`` as long as it waits. The report of a folder shows what lies in its ``mobile/``:
results, and the links of jobs that wait. ``mobile.json``::

    {"way": "browser", "proxy": false, "device": {…}, "settings": {…}, "fit": true, "unfit": null,
     "rows": [{"model": "student", "runtime": "onnxruntime-web 1.30.0 WebAssembly int8", "threads": 1, "length": 384,
               "p50_ms": …, "p90_ms": …, "p99_ms": …, "first_ms": …, "load_seconds": …, "tokenise": {"p50_ms": …},
               "ratio_to_teacher": 3.5, "less_time_percent": 71.4, "parameters": …, "bytes": …}],
     "problems": [{"threads": 4, "error": "…"}]}

The times are those of the network alone, as in the paper; tokenisation stands beside them where it was measured.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from cluster.artifacts import artifact, errors, stage
from cluster.artifacts.recipe import Recipe
from cluster.models import export_spec
from cluster.storage import filesystem
from eval.mobile import adb_benchmark, android_device, browser_benchmark, host_proxy
from eval.mobile.browser_benchmark import BrowserPlacement
from eval.mobile.timing_rows import MeasuredExport

FILE = "mobile.json"
ROLES = ("student", "teacher")


class Browser(Recipe):
    """A page that a person opens on the phone."""

    kind: Literal["browser"] = "browser"


class Adb(Recipe):
    """An Android phone on a cable or in the network of adb."""

    kind: Literal["adb"] = "adb"
    cores: Literal["fast", "slow", "any"] = "fast"  # the programs are held to these
    calls: PositiveInt = 10  # of each start of the program: their mean is one sample


class Proxy(Recipe):
    """This host, with a phone's memory; never called a phone."""

    kind: Literal["proxy"] = "proxy"
    memory_megabytes: PositiveInt = 1024  # for the model and its calls; what apps get is mostly below


class Mobile(Recipe):
    """A measurement on a phone."""

    way: Annotated[Browser | Adb | Proxy, Field(discriminator="kind")]
    lengths: tuple[PositiveInt, ...] = Field((384,), min_length=1)  # tokens of question and passage
    threads: tuple[PositiveInt, ...] = Field((1, 4), min_length=1)  # a browser takes what it is given of these
    warmup: NonNegativeInt = 2
    repeats: PositiveInt = 10
    placement: BrowserPlacement = BrowserPlacement()


def run(recipe: Mobile, inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
    found = _measure(recipe, inputs, out)
    facts = {
        "way": recipe.way.kind,
        "proxy": recipe.way.kind == "proxy",
        "problems": [],
        **found,
        "fit": found["unfit"] is None,
    }
    filesystem.write_json(out / FILE, {"settings": recipe.resolved(), **facts})
    return facts


def _measure(recipe: Mobile, inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
    way, place = recipe.way, recipe.placement
    if isinstance(way, Browser):
        _need(inputs, way.kind, ("page",))
        plan = {name: recipe.resolved()[name] for name in ("lengths", "warmup", "repeats", "threads")}
        return browser_benchmark.measure(artifact.read(inputs["page"], "export"), plan, place, _name(out), out)
    if isinstance(way, Adb):
        _need(inputs, way.kind, ("student", "binary"))
        asked = adb_benchmark.AdbRequest(
            recipe.lengths, recipe.threads, recipe.warmup, way.calls, recipe.repeats, way.cores
        )
        phone = android_device.connect(place.adb, place.serial)
        return adb_benchmark.measure(phone, _models(inputs), inputs["binary"], asked, out)
    _need(inputs, way.kind, ("student",))
    return host_proxy.measure(
        _models(inputs),
        host_proxy.ProxyRequest(recipe.lengths, recipe.threads, recipe.warmup, recipe.repeats, way.memory_megabytes),
    )


def _need(inputs: Mapping[str, Path], way: str, roles: tuple[str, ...]) -> None:
    takes = {"browser": {"page"}, "adb": {*ROLES, "binary"}, "proxy": {*ROLES}}[way]
    for role in roles:
        if role not in inputs:
            raise errors.StageError(f"way {way} needs --{role} DIR")
    if odd := sorted({*inputs} - takes):
        raise errors.StageError(f"way {way} has no use for --{odd[0]}: it takes --{', --'.join(sorted(takes))}")


def _models(inputs: Mapping[str, Path]) -> list[MeasuredExport]:
    return [
        MeasuredExport(role, inputs[role], export_spec.read(inputs[role]), artifact.read(inputs[role]).identity)
        for role in ROLES
        if role in inputs
    ]


def _name(out: Path) -> str:
    """The artifact's name, for the person with the phone; while it is made, its folder has a dot and an ending."""
    return out.name.removeprefix(".").removesuffix(".partial")


EXPORT = stage.Role(("export",), optional=True)

STAGE = stage.Stage(
    name="eval.mobile",
    run=run,
    recipe=Mobile,
    inputs={
        "student": EXPORT,
        "teacher": EXPORT,
        "page": EXPORT,
        "binary": stage.Role((stage.FOLDER,), optional=True),
    },
    produces="benchmark",
    # One that waits for a person must not keep measurements of this machine waiting.
    job_kind="mobile",
)
