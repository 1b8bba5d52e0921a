"""Export a model folder to OpenVINO, in int8 with ranges calibrated on corpus rows, or in fp32.

::

    stillhouse openvino-export RECIPE --model DIR --tokens DIR [--data DIR] --out DIR

Writes ``model.xml`` and ``model.bin`` with free batch and length. Which of OpenVINO and ONNX Runtime is the faster
depends on processor and length: ``eval.latency`` tells. Needs the extra ``openvino``.
"""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import model_validator

from cluster.artifacts import errors, stage
from cluster.models import runtimes
from deploy.conversion import finalize, parity
from deploy.conversion.finalize import ExportRecipe, Rounded, logger
from deploy.conversion.source_model import Original, open_original
from deploy.targets import calibration_rows, onnx_export
from deploy.targets.calibration_rows import Calibration
from deploy.targets.quantize import HEADS, kept

MODEL = "model.xml"


class OpenVino(ExportRecipe):
    """An export to OpenVINO."""

    precision: Literal["int8", "fp32"] = "int8"
    keep: tuple[str, ...] = ()
    """Layers that stay in float, by name with * for any part, as for :mod:`deploy.quantize`."""
    calibration: Calibration = Calibration()
    tolerance: Rounded = Rounded()

    @model_validator(mode="after")
    def _keeps_what_is_rounded(self) -> "OpenVino":
        if self.precision == "fp32" and self.keep:
            raise ValueError('precision = "fp32" rounds no layer: leave keep out')
        return self


def convert(original: Original, opset: int = 20) -> Any:
    """The model as OpenVINO reads it, by way of ONNX."""
    import openvino

    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / onnx_export.MODEL
        onnx_export.trace(original, opset).save(path)
        # Not openvino.convert_model, which would tell its maker's server of the conversion.
        return openvino.Core().read_model(path).clone()


def layers(model: Any) -> dict[str, list[str]]:
    """Layer to the names of its nodes that can be quantised."""
    found: dict[str, list[str]] = {}
    for node in model.get_ops():
        layer, slash, _ = node.get_friendly_name().partition("/")
        if slash and node.get_type_name() in ("MatMul", "Gather"):
            found.setdefault(layer, []).append(node.get_friendly_name())
    return found


def quantize(model: Any, feeds: list[parity.Feed], floats: list[str]) -> Any:
    """The int8 form of a model, its ranges those seen on ``feeds``; the nodes in ``floats`` stay as they are."""
    # Read when it is imported: nothing is sent from what it takes for a build server.
    os.environ.setdefault("NNCF_CI", "1")
    import nncf

    with finalize.quiet():
        return nncf.quantize(
            model,
            nncf.Dataset(feeds, lambda feed: feed),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(feeds),
            ignored_scope=nncf.IgnoredScope(names=floats) if floats else None,
        )


def toolchain() -> dict[str, str]:
    """Versions of the libraries that this takes.

    Raises:
        StageError: one is not installed.
    """
    return {name: runtimes.require(name, "openvino") for name in ("openvino", "nncf")}


def run(recipe: OpenVino, inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
    versions = toolchain()
    import openvino

    if (recipe.precision == "int8") != ("tokens" in inputs):
        raise errors.StageError(
            'precision = "int8" and --tokens DIR, the rows to calibrate with, belong together: give both or neither'
        )
    original = open_original(inputs["model"])
    model = convert(original)
    if recipe.precision == "int8":
        feeds = calibration_rows.feeds(recipe.calibration, inputs["tokens"], original)
        logger.info("calibrating on %d rows", len(feeds))
        model = quantize(model, feeds, kept(recipe.keep, layers(model), HEADS))
    openvino.save_model(model, out / MODEL, compress_to_fp16=False)
    made = finalize.describe(original, f"openvino-{recipe.precision}", "openvino", MODEL)
    return {**finalize.complete(original, made, recipe, recipe.probe, inputs, out), "toolchain": versions}


STAGE = stage.Stage(
    name="deploy.openvino_export",
    run=run,
    recipe=OpenVino,
    inputs={**finalize.INPUTS, "tokens": stage.Role(("tokens",), optional=True)},
    produces="export",
    toolchain=toolchain,
)
