"""Measure how fast models answer on a phone: over adb, in a browser, or on this host as a proxy.

::

    stillhouse mobile mobile-browser --page DIR --out DIR
    stillhouse mobile mobile-adb --student DIR [--teacher DIR] --binary DIR --out DIR
    stillhouse mobile mobile-proxy --student DIR [--teacher DIR] --out DIR

As a job it has the kind ``mobile``. In a browser it waits for a person: it prints a one-time link and its QR code, and
writes both to ``link.json`` and ``link.svg`` until the result arrives. A report shows the results in the folder
``mobile/`` and the links of waiting jobs. ``mobile.json``::

    {"way": "browser", "proxy": false, "device": {…}, "settings": {…}, "fit": true, "unfit": null,
     "rows": [{"model": "student", "runtime": "onnxruntime-web 1.30.0 WebAssembly int8", "threads": 1, "length": 384,
               "p50_ms": …, "p90_ms": …, "p99_ms": …, "first_ms": …, "load_seconds": …, "tokenise": {"p50_ms": …},
               "ratio_to_teacher": 3.5, "less_time_percent": 71.4, "parameters": …, "bytes": …}],
     "problems": [{"threads": 4, "error": "…"}]}

The times are those of the network alone, as in the paper; a browser also reports tokenization.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from cluster.artifacts import errors, stage
from cluster.artifacts.recipe import Recipe
from cluster.artifacts.recipe_errors import EXAMPLE
from cluster.models import export_spec, model_check
from cluster.storage import filesystem
from eval.mobile import adb_benchmark, android_device, browser_benchmark, host_proxy
from eval.mobile.adb_benchmark import Adb
from eval.mobile.browser_benchmark import BrowserPlacement
from eval.mobile.host_proxy import Proxy
from eval.mobile.timing_rows import MeasuredExport, Measurement

FILE = "mobile.json"
ROLES = ("student", "teacher")
TAKES = {"browser": {"page"}, "adb": {*ROLES, "binary"}, "proxy": {*ROLES}}
"""Transport to the inputs it may have; all but the teacher are required."""


class Browser(Recipe):
    """A page that a person opens on the phone."""

    kind: Literal["browser"] = "browser"
    """The phone's browser."""


class Mobile(Measurement):
    """A measurement on a phone."""

    way: Annotated[
        Browser | Adb | Proxy, Field(discriminator="kind", json_schema_extra={EXAMPLE: 'way = { kind = "proxy" }'})
    ]
    """How the phone is reached, or what stands in for one."""
    placement: BrowserPlacement = BrowserPlacement()


def run(recipe: Mobile, inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
    transport = recipe.way.kind
    _check_inputs(inputs, transport)
    found = _measure(recipe, inputs, out)
    facts = {"way": transport, "proxy": transport == "proxy", "problems": [], **found, "fit": found["unfit"] is None}
    filesystem.write_json(out / FILE, {"settings": recipe.resolved(), **facts})
    return facts


def _measure(recipe: Mobile, inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
    transport, place = recipe.way, recipe.placement
    if isinstance(transport, Browser):
        plan = {name: recipe.resolved()[name] for name in Measurement.model_fields}
        # Artifacts in the making are folders .NAME.partial.
        job = out.name.removeprefix(".").removesuffix(".partial")
        return browser_benchmark.measure(model_check.unchanged(inputs["page"]), plan, place, job, out)
    models = [
        MeasuredExport(role, inputs[role], export_spec.read(inputs[role]), model_check.unchanged(inputs[role]).identity)
        for role in ROLES
        if role in inputs
    ]
    if isinstance(transport, Adb):
        phone = android_device.connect(place.adb, place.serial)
        return adb_benchmark.measure(phone, models, inputs["binary"], recipe, transport, out)
    return host_proxy.measure(models, recipe, transport.memory_megabytes)


def _check_inputs(inputs: Mapping[str, Path], transport: str) -> None:
    takes = TAKES[transport]
    for role in sorted(takes - {"teacher"}, reverse=True):
        if role not in inputs:
            raise errors.StageError(f"way {transport} needs --{role} DIR")
    if odd := sorted({*inputs} - takes):
        raise errors.StageError(f"way {transport} has no use for --{odd[0]}: it takes --{', --'.join(sorted(takes))}")


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
    example="mobile-browser --page out/pages/browser",
    # Its own kind, because a job that waits for a person must not block benchmarks of this machine.
    job_kind="mobile",
)
