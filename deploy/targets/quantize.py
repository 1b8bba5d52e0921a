"""Quantise an ONNX export to int8 and say how far that took it from the PyTorch model.

::

    stillhouse quantize RECIPE --export DIR --model DIR [--tokens DIR] [--data DIR] --out DIR

Weights become signed 8-bit numbers with one scale per output channel, embeddings unsigned ones with one scale;
activations are quantised while the model runs, or (``activations = "static"``) by ranges that were seen on rows of
``--tokens``. Layers that ``keep`` names stay in float. The result is laid out like the export it was made from, so
what runs one runs the other.
"""

import fnmatch
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.onnx_model import ONNXModel

from cluster.artifacts import artifact, errors, stage
from deploy.conversion import finalize, parity
from deploy.conversion.finalize import Rounded, ToleranceRecipe, logger
from deploy.conversion.source_model import open_original
from deploy.targets import calibration_rows, onnx_export
from deploy.targets.calibration_rows import Calibration

QUANTIZED = ["MatMul", "Gather"]
"""Operators that get 8-bit weights."""


class Quantization(ToleranceRecipe):
    """A quantisation to int8."""

    # x86 processors without VNNI add two products in 16 bits and overflow on full 8-bit weights: use 7 for those.
    weight_bits: Literal[8, 7] = 8
    activations: Literal["dynamic", "static"] = "dynamic"
    keep: tuple[str, ...] = ()
    """Layers that stay in float, by name with * for any part: ``*.layer.0.*``; deploy.sensitivity names them. Fixed
    ranges leave a task's head in float anyway."""
    calibration: Calibration = Calibration()
    """For static activations only."""
    tolerance: Rounded = Rounded()


HEADS = ("*pooler*", "*classifier*", "*qa_outputs*")
"""Layers that fixed ranges leave in float: a task's texts go elsewhere in its head than the rows of a corpus, and cost
next to no time. Rounded by OpenVINO, they took 7.0 of 85.9 points of a model of STS-B; in float they took none."""


class Feeds(CalibrationDataReader):  # type: ignore[misc]
    """Inputs one after the other, as ONNX Runtime's calibration asks for them."""

    def __init__(self, feeds: Sequence[parity.Feed]) -> None:
        self._feeds: Iterator[parity.Feed] = iter(feeds)

    def get_next(self) -> parity.Feed | None:
        return next(self._feeds, None)


def load(path: Path) -> onnx.ModelProto:
    """An ONNX file as the quantiser takes it."""
    model = onnx.load(path)
    # The shapes noted by the exporter are named otherwise than the quantiser's own, and it stops at the difference.
    del model.graph.value_info[:]
    # The quantiser does this itself, to new names: nodes that are named to stay in float would not.
    ONNXModel(model).replace_gemm_with_matmul()
    return model


def layers(model: onnx.ModelProto) -> dict[str, list[str]]:
    """Layer to the names of its nodes that can be quantised: those with weights."""
    weights = {values.name for values in model.graph.initializer if len(values.dims) == 2}
    found: dict[str, list[str]] = {}
    for node in model.graph.node:
        if node.op_type in QUANTIZED and weights & set(node.input):
            found.setdefault(node.name.partition("/")[0], []).append(node.name)
    return found


def kept(patterns: Sequence[str], known: Mapping[str, Sequence[str]], always: Sequence[str] = ()) -> list[str]:
    """Nodes of the layers that stay in float: those that are named, and of ``always`` what there is.

    Raises:
        StageError: a pattern matches no layer.
    """
    for pattern in patterns:
        if not fnmatch.filter(known, pattern):
            raise errors.StageError(
                f"keep: no layer is named {pattern}: write one of {', '.join(known)}, * for any part"
            )
    wanted = (*patterns, *always)
    return [
        node for name, nodes in known.items() if any(fnmatch.fnmatch(name, each) for each in wanted) for node in nodes
    ]


def quantize(model: onnx.ModelProto, path: Path, weight_bits: int, floats: Collection[str] = ()) -> None:
    """Write the int8 form of a model to ``path``; the nodes in ``floats`` stay as they are."""
    with finalize.quiet():
        # Activations stay unsigned and weights signed: the fastest pair, twice as fast as both unsigned.
        quantize_dynamic(
            model,
            path,
            per_channel=True,
            reduce_range=weight_bits == 7,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=list(floats),
        )


def quantize_by_ranges(
    model: onnx.ModelProto, path: Path, weight_bits: int, floats: Collection[str], feeds: Sequence[parity.Feed]
) -> None:
    """Write the int8 form of a model whose activations are scaled by the ranges that they have on ``feeds``."""
    with finalize.quiet():
        quantize_static(
            model,
            path,
            Feeds(feeds),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=QUANTIZED,
            per_channel=True,
            reduce_range=weight_bits == 7,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=list(floats),
            # Scores and probabilities of attention have no weights and tolerate no fixed range: they stay in float.
            extra_options={"MatMulConstBOnly": True},
        )


def _check_inputs(recipe: Quantization, exported: artifact.Artifact, inputs: Mapping[str, Path]) -> None:
    if exported.facts["format"] != "onnx":
        raise errors.StageError(
            f"{exported.path} is {exported.facts['format']} already: give the ONNX export it came from"
        )
    finalize.check_source(exported, inputs["model"])
    if (recipe.activations == "static") != ("tokens" in inputs):
        raise errors.StageError(
            'activations = "static" and --tokens DIR, the rows to calibrate with, belong together: give both or neither'
        )


def run(recipe: Quantization, inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
    exported = artifact.verify(inputs["export"], "export")
    _check_inputs(recipe, exported, inputs)
    original = open_original(inputs["model"])
    model = load(exported.path / onnx_export.MODEL)
    floats = kept(recipe.keep, layers(model), HEADS if recipe.activations == "static" else ())
    logger.info("quantising %s", onnx_export.MODEL)
    if recipe.activations == "static":
        feeds = calibration_rows.feeds(recipe.calibration, inputs["tokens"], original)
        quantize_by_ranges(model, out / onnx_export.MODEL, recipe.weight_bits, floats, feeds)
    else:
        quantize(model, out / onnx_export.MODEL, recipe.weight_bits, floats)
    form = "int8" if recipe.activations == "dynamic" else "int8-static"
    made = finalize.describe(original, form, "onnxruntime", onnx_export.MODEL)
    probe = parity.recorded(exported.path)
    return {
        **finalize.complete(original, made, recipe, probe, inputs, out),
        "opset": exported.facts["opset"],
        "weight_bits": recipe.weight_bits,
        "onnx_bytes": exported.facts["bytes"],
        "float_layers": sorted({node.partition("/")[0] for node in floats}),
    }


STAGE = stage.Stage(
    name="deploy.quantize",
    run=run,
    recipe=Quantization,
    inputs={
        "export": stage.Role(("export",)),
        **finalize.INPUTS,
        "tokens": stage.Role(("tokens",), optional=True),
    },
    produces="export",
)
