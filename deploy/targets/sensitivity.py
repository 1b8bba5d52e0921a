"""Find the layers that 8 bits hurt most, and which to keep in float.

::

    stillhouse sensitivity RECIPE --export DIR --model DIR [--tokens DIR] --out DIR

Quantises one layer of an fp32 ONNX export at a time and measures how far that alone moves the model, on rows of
``--tokens`` or, without them, on the export's fixed inputs. ``sensitivity.json`` lists the layers, the worst first;
``keep`` is ready for the recipe of :mod:`deploy.quantize`::

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

from cluster.artifacts import artifact, errors, stage
from cluster.artifacts.recipe import Recipe
from cluster.models import runtimes
from cluster.storage import filesystem
from cluster.telemetry import progress
from deploy.conversion import finalize, parity
from deploy.conversion.source_model import Original, open_original
from deploy.targets import calibration_rows, onnx_export, quantize
from deploy.targets.calibration_rows import Calibration

FILE = "sensitivity.json"


class Measured(Calibration):
    """Fewer rows than to calibrate with: all of them are read once for every layer."""

    rows: PositiveInt = 32


class Sensitivity(Recipe):
    """How sensitivity is measured."""

    calibration: Measured = Measured()
    """The rows that are measured on."""
    keep: NonNegativeInt = 2
    """So many of the worst layers are named for :mod:`deploy.quantize` to keep in float."""


def layer_sizes(model: onnx.ModelProto, known: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Layer to the values in its weights: a byte each in 8 bits, four in fp32."""
    weights = {values.name: prod(values.dims) for values in model.graph.initializer if len(values.dims) == 2}
    inputs = {node.name: node.input for node in model.graph.node}
    return {
        layer: sum(weights.get(name, 0) for node in nodes for name in inputs[node]) for layer, nodes in known.items()
    }


def measure(
    original: Original, model: onnx.ModelProto, floats: Sequence[str], feeds: list[parity.Feed], folder: Path
) -> dict[str, Any]:
    """How far the model is from the original with all but ``floats`` in 8 bits."""
    path = folder / onnx_export.MODEL
    quantize.quantize(model, path, 8, floats)
    session, names = runtimes.onnx_session(path, 1), list(original.outputs)

    def call(feed: runtimes.Feed) -> runtimes.Outputs:
        return dict(zip(names, session.run(names, dict(feed)), strict=True))

    found = parity.summary(finalize.differences_on(original, call, feeds))
    return {"relative": found["relative"], "agreement": found["agreement"]}


def run(recipe: Sensitivity, inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
    exported = artifact.verify(inputs["export"], "export")
    if exported.facts["format"] != "onnx":
        raise errors.StageError(f"{exported.path} is {exported.facts['format']} already: give the fp32 ONNX export")
    finalize.check_source(exported, inputs["model"])
    original = open_original(inputs["model"])
    feeds = _feeds(recipe, inputs, exported.path, original)
    graph = quantize.load(exported.path / onnx_export.MODEL)
    known = quantize.layers(graph)
    sizes = layer_sizes(graph, known)
    everything = [node for nodes in known.values() for node in nodes]
    rows = []
    with tempfile.TemporaryDirectory() as place:
        whole = measure(original, graph, [], feeds, Path(place))
        for layer, nodes in progress.progress(known.items(), "sensitivity", len(known), "layers"):
            # Loaded anew each time: the quantiser works on the graph it is given.
            fresh = quantize.load(exported.path / onnx_export.MODEL)
            others = [node for node in everything if node not in nodes]
            found = measure(original, fresh, others, feeds, Path(place))
            rows.append({"layer": layer, **found, "bytes_saved": 3 * sizes[layer]})
    rows.sort(key=lambda row: -row["relative"])
    facts = {
        "keep": [row["layer"] for row in rows[: recipe.keep]],
        "layers": rows,
        "all": whole,
        "measured_on": "rows of the tokens" if "tokens" in inputs else "the export's fixed inputs",
        "model_name": original.folder.name,
        "source": original.identity,
    }
    filesystem.write_json(out / FILE, facts)
    return facts


def _feeds(recipe: Sensitivity, inputs: Mapping[str, Path], exported: Path, original: Original) -> list[parity.Feed]:
    if "tokens" in inputs:
        return calibration_rows.feeds(recipe.calibration, inputs["tokens"], original)
    return parity.fixed_inputs(parity.recorded(exported), original.tokenizer, original.inputs, original.positions)


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
