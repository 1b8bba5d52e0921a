"""Export a model folder to OpenVINO, in int8 calibrated on corpus rows, or in fp32.

::

    stillhouse openvino-export RECIPE --model DIR --tokens DIR [--data DIR] --out DIR

Writes ``model.xml`` and ``model.bin`` with dynamic batch and length. Whether OpenVINO or ONNX Runtime is faster depends
on processor and length: measure with ``stillhouse latency``. Needs the extra ``openvino``.
"""

import functools
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import model_validator

from cluster.artifacts import stage
from deploy.conversion import finalize, parity
from deploy.conversion.finalize import ExportRecipe, Rounded, logger
from deploy.conversion.source_model import SourceModel, open_source_model
from deploy.targets import calibration_rows, onnx_export
from deploy.targets.calibration_rows import Calibration
from deploy.targets.quantize import HEADS, float_nodes

MODEL = "model.xml"


class OpenVino(ExportRecipe):
    """An export to OpenVINO."""

    precision: Literal["int8", "fp32"] = "int8"
    """Of weights and activations."""
    keep: tuple[str, ...] = ()
    """Layers that stay in float, by name with * for any part, as in the recipe of ``stillhouse quantize``."""
    calibration: Calibration = Calibration()
    tolerance: Rounded = Rounded()

    @model_validator(mode="after")
    def _fp32_keeps_all_layers(self) -> "OpenVino":
        if self.precision == "fp32" and self.keep:
            raise ValueError('precision = "fp32" rounds no layer: leave keep out')
        return self


def convert(source: SourceModel, opset: int = 20) -> Any:
    """The model as OpenVINO reads it from ONNX."""
    import openvino

    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / finalize.ONNX
        onnx_export.trace(source, opset).save(path)
        # Not openvino.convert_model, which reports the conversion to its maker's server.
        return openvino.Core().read_model(path).clone()


def layers(model: Any) -> dict[str, list[str]]:
    """Layer to the names of its nodes that can be quantized."""
    found: dict[str, list[str]] = {}
    for node in model.get_ops():
        layer, slash, _ = node.get_friendly_name().partition("/")
        if slash and node.get_type_name() in ("MatMul", "Gather"):
            found.setdefault(layer, []).append(node.get_friendly_name())
    return found


def quantize(model: Any, feeds: list[parity.Feed], floats: list[str]) -> Any:
    """The int8 form of a model, with the ranges observed on ``feeds``; the nodes in ``floats`` stay in float."""
    # nncf reads this on import, and sends no telemetry from a build server.
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


toolchain = functools.partial(finalize.versions, "openvino", "openvino", "nncf")


def run(recipe: OpenVino, inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
    versions = toolchain()
    import openvino

    calibration_rows.check_given(inputs, recipe.precision == "int8", 'precision = "int8"')
    source = open_source_model(inputs["model"])
    model = convert(source)
    if recipe.precision == "int8":
        feeds = calibration_rows.feeds(recipe.calibration, inputs["tokens"], source)
        logger.info("calibrating on %d rows", len(feeds))
        model = quantize(model, feeds, float_nodes(recipe.keep, layers(model), HEADS))
    openvino.save_model(model, out / MODEL, compress_to_fp16=False)
    made = finalize.describe(source, f"openvino-{recipe.precision}", "openvino", MODEL)
    return finalize.complete(source, made, recipe, recipe.probe, inputs, out, toolchain=versions)


STAGE = stage.Stage(
    name="deploy.openvino_export",
    run=run,
    recipe=OpenVino,
    inputs={**finalize.INPUTS, "tokens": stage.Role(("tokens",), optional=True)},
    produces="export",
    example="openvino",
    toolchain=toolchain,
)
