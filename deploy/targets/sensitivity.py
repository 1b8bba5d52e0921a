"""Find the layers whose quantization to 8 bits hurts most, and which to keep in float.

::

    stillhouse sensitivity RECIPE --export DIR --model DIR [--tokens DIR] --out DIR

Quantizes one layer of an fp32 ONNX export at a time and measures how much this changes the outputs, on rows of
``--tokens`` or, without them, on the export's fixed inputs. ``sensitivity.json`` lists the layers, worst first; its
``keep`` goes into the recipe of ``stillhouse quantize``::

    {"keep": ["classifier", "distilbert.transformer.layer.0.ffn.lin2"],
     "layers": [{"layer": …, "relative": 0.021, "agreement": 0.98, "bytes_saved": 1769472}, …], "all": {…}}
"""

import tempfile
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import onnx
from pydantic import NonNegativeInt, PositiveInt

from cluster.artifacts import stage
from cluster.artifacts.recipe import Recipe
from cluster.models import runtimes
from cluster.storage import filesystem
from cluster.telemetry import progress
from deploy.conversion import finalize, parity
from deploy.conversion.source_model import SourceModel, open_source_model
from deploy.targets import calibration_rows, quantize
from deploy.targets.calibration_rows import Calibration

FILE = "sensitivity.json"


class SensitivityRows(Calibration):
    """Fewer rows than for calibration, because every layer reads all of them."""

    rows: PositiveInt = 32
    """Rows of tokens to measure with."""


class Sensitivity(Recipe):
    """A measurement of sensitivity."""

    calibration: SensitivityRows = SensitivityRows()
    """The rows to measure on."""
    keep: NonNegativeInt = 2
    """Number of layers to recommend for float, the most sensitive ones."""


def layer_sizes(model: onnx.ModelProto, known: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Layer to the number of its weights: a byte each in 8 bits, four in fp32."""
    weights = {values.name: prod(values.dims) for values in model.graph.initializer if len(values.dims) == 2}
    inputs = {node.name: node.input for node in model.graph.node}
    return {
        layer: sum(weights.get(name, 0) for node in nodes for name in inputs[node]) for layer, nodes in known.items()
    }


def measure(
    source: SourceModel, model: onnx.ModelProto, floats: Sequence[str], feeds: list[parity.Feed], folder: Path
) -> dict[str, Any]:
    """The differences of the model from its source with all nodes but ``floats`` in 8 bits."""
    path = folder / finalize.ONNX
    quantize.quantize(model, path, 8, floats)
    found = parity.summary(finalize.differences_on(source, runtimes.onnx_call(path, source.outputs, 1), feeds))
    return {"relative": found["relative"], "agreement": found["agreement"]}


def run(recipe: Sensitivity, inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
    exported = finalize.read_onnx_export(inputs, ("onnx",))
    source = open_source_model(inputs["model"])
    feeds = _feeds(recipe, inputs, exported.path, source)
    graph = quantize.load(exported.path / finalize.ONNX)
    known = quantize.layers(graph)
    sizes = layer_sizes(graph, known)
    everything = [node for nodes in known.values() for node in nodes]
    rows = []
    with tempfile.TemporaryDirectory() as place:
        whole = measure(source, graph, [], feeds, Path(place))
        for layer, nodes in progress.progress(known.items(), "sensitivity", len(known), "layers"):
            # Loaded again each time, because the quantizer changes its graph.
            fresh = quantize.load(exported.path / finalize.ONNX)
            others = [node for node in everything if node not in nodes]
            found = measure(source, fresh, others, feeds, Path(place))
            rows.append({"layer": layer, **found, "bytes_saved": 3 * sizes[layer]})
    rows.sort(key=lambda row: -row["relative"])
    facts = {
        "keep": [row["layer"] for row in rows[: recipe.keep]],
        "layers": rows,
        "all": whole,
        "measured_on": "rows of the tokens" if "tokens" in inputs else "the export's fixed inputs",
        "model_name": source.folder.name,
        "source": source.identity,
    }
    filesystem.write_json(out / FILE, facts)
    return facts


def _feeds(recipe: Sensitivity, inputs: Mapping[str, Path], exported: Path, source: SourceModel) -> list[parity.Feed]:
    if "tokens" in inputs:
        return calibration_rows.feeds(recipe.calibration, inputs["tokens"], source)
    return parity.fixed_inputs(parity.recorded(exported), source.tokenizer, source.inputs, source.positions)


STAGE = stage.Stage(
    name="deploy.sensitivity",
    run=run,
    recipe=Sensitivity,
    inputs={
        "export": stage.Role(("export",)),
        "model": stage.Role((stage.FOLDER,)),
        "tokens": stage.Role(("tokens",), optional=True),
    },
    produces="benchmark",
)
