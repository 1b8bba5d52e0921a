"""Quantize an ONNX export to int8 and measure how far that takes it from the PyTorch model.

::

    stillhouse quantize RECIPE --export DIR --model DIR [--tokens DIR] [--data DIR] --out DIR

Weights become signed 8-bit numbers with one scale per output channel, embeddings unsigned ones with one scale.
Activations are quantized while the model runs or, with ``activations = "static"``, by ranges observed on rows of
``--tokens``. Layers that ``keep`` names stay in float. The result has the layout of the export it was made from.
"""

import fnmatch
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.onnx_model import ONNXModel

from cluster.artifacts import errors, stage
from deploy.conversion import finalize, parity
from deploy.conversion.finalize import Rounded, ToleranceRecipe, logger
from deploy.conversion.source_model import open_source_model
from deploy.targets import calibration_rows
from deploy.targets.calibration_rows import Calibration

QUANTIZED = ["MatMul", "Gather"]
"""Operators that get 8-bit weights."""


class Quantization(ToleranceRecipe):
    """A quantization to int8."""

    weight_bits: Literal[8, 7] = 8
    """Use 7 for x86 processors without VNNI: they add two products in 16 bits and overflow on 8-bit weights."""
    activations: Literal["dynamic", "static"] = "dynamic"
    """"dynamic" measures their range in every call, "static" fixes it with calibration rows."""
    keep: tuple[str, ...] = ()
    """Layers that stay in float, by name with * for any part: ``*.layer.0.*``; ``stillhouse sensitivity`` finds them.
    Static activations always keep a task's head in float."""
    calibration: Calibration = Calibration()
    """Used by static activations only."""
    tolerance: Rounded = Rounded()


HEADS = ("*pooler*", "*classifier*", "*qa_outputs*")
"""Layers that static quantization keeps in float: a task's texts have other ranges there than rows of a corpus, and
these layers take little time. Quantized by OpenVINO they cost a model of STS-B 7.0 of 85.9 points, in float none."""


class FeedReader(CalibrationDataReader):  # type: ignore[misc]
    """Inputs one by one, as ONNX Runtime's calibration reads them."""

    def __init__(self, feeds: Sequence[parity.Feed]) -> None:
        self._feeds: Iterator[parity.Feed] = iter(feeds)

    def get_next(self) -> parity.Feed | None:
        return next(self._feeds, None)


def load(path: Path) -> onnx.ModelProto:
    """An ONNX file as the quantizer needs it."""
    model = onnx.load(path)
    # The quantizer refuses the exporter's shapes, whose dimensions have other names than its own.
    del model.graph.value_info[:]
    # The quantizer would do this under new names, and so miss nodes that must stay in float.
    ONNXModel(model).replace_gemm_with_matmul()
    return model


def layers(model: onnx.ModelProto) -> dict[str, list[str]]:
    """Layer to the names of its nodes with weights, which can be quantized."""
    weights = {values.name for values in model.graph.initializer if len(values.dims) == 2}
    found: dict[str, list[str]] = {}
    for node in model.graph.node:
        if node.op_type in QUANTIZED and weights & set(node.input):
            found.setdefault(node.name.partition("/")[0], []).append(node.name)
    return found


def float_nodes(patterns: Sequence[str], nodes: Mapping[str, Sequence[str]], optional: Sequence[str] = ()) -> list[str]:
    """Nodes of the layers that match a pattern; ``optional`` patterns may match no layer.

    Raises:
        StageError: a pattern matches no layer.
    """
    for pattern in patterns:
        if not fnmatch.filter(nodes, pattern):
            raise errors.StageError(
                f"keep: no layer is named {pattern}: write one of {', '.join(nodes)}, * for any part"
            )
    layers = {layer: None for pattern in (*patterns, *optional) for layer in fnmatch.filter(nodes, pattern)}
    return [node for layer in nodes if layer in layers for node in nodes[layer]]


def quantize(model: onnx.ModelProto, path: Path, weight_bits: int, floats: Collection[str] = ()) -> None:
    """Write the int8 form of a model to ``path``, with dynamic activations; the nodes in ``floats`` stay in float."""
    with finalize.quiet():
        # Unsigned activations and signed weights are the fastest pair, twice as fast as both unsigned.
        quantize_dynamic(
            model,
            path,
            per_channel=True,
            reduce_range=weight_bits == 7,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=list(floats),
        )


def quantize_statically(
    model: onnx.ModelProto, path: Path, weight_bits: int, floats: Collection[str], feeds: Sequence[parity.Feed]
) -> None:
    """Write the int8 form of a model whose activations have the ranges that they take on ``feeds``."""
    with finalize.quiet():
        quantize_static(
            model,
            path,
            FeedReader(feeds),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=QUANTIZED,
            per_channel=True,
            reduce_range=weight_bits == 7,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=list(floats),
            # Keeps attention scores and probabilities in float: they have no weights and tolerate no fixed range.
            extra_options={"MatMulConstBOnly": True},
        )


def run(recipe: Quantization, inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
    exported = finalize.read_onnx_export(inputs, ("onnx",))
    static = recipe.activations == "static"
    calibration_rows.check_given(inputs, static, 'activations = "static"')
    source = open_source_model(inputs["model"])
    model = load(exported.path / finalize.ONNX)
    floats = float_nodes(recipe.keep, layers(model), HEADS if static else ())
    logger.info("quantizing %s", finalize.ONNX)
    if static:
        feeds = calibration_rows.feeds(recipe.calibration, inputs["tokens"], source)
        quantize_statically(model, out / finalize.ONNX, recipe.weight_bits, floats, feeds)
    else:
        quantize(model, out / finalize.ONNX, recipe.weight_bits, floats)
    made = finalize.describe(source, "int8-static" if static else "int8", "onnxruntime", finalize.ONNX)
    return finalize.complete(
        source,
        made,
        recipe,
        parity.recorded(exported.path),
        inputs,
        out,
        opset=exported.facts["opset"],
        weight_bits=recipe.weight_bits,
        onnx_bytes=exported.facts["bytes"],
        float_layers=sorted({node.partition("/")[0] for node in floats}),
    )


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
    example="int8",
)
