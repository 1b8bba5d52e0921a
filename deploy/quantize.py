"""Quantise an ONNX export to int8 and say how far that took it from the PyTorch model.

::

    python -m deploy.quantize RECIPE --export DIR --model DIR --out DIR

Weights become signed 8-bit numbers with one scale per output channel, embeddings unsigned ones with one scale;
activations are quantised while the model runs. The result is laid out like the export it was made from, so what
runs one runs the other.
"""

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic

from cluster import artifact, stage
from cluster.recipe import Recipe
from deploy import onnx_export, parity

logger = logging.getLogger("stillhouse")


class Quantization(Recipe):
    """A dynamic quantisation to int8."""

    # x86 processors without VNNI add two products in 16 bits and overflow on full 8-bit weights: use 7 for those.
    weight_bits: Literal[8, 7] = 8
    # Wide enough for an honest int8 model on random ids, where near ties are common (a trained encoder differed by
    # 0.18 and agreed on 83 % of its words there, on 87 % in real text); a broken one is far outside.
    tolerance: parity.Tolerance = parity.Tolerance(relative=0.5, agreement=0.7)


def quantize(exported: Path, path: Path, weight_bits: int) -> None:
    """Write the int8 form of the ONNX file ``exported`` to ``path``."""
    model = onnx.load(exported)
    # The shapes noted by the exporter are named otherwise than the quantiser's own, and it stops at the difference.
    del model.graph.value_info[:]
    with onnx_export.quiet():
        # Activations stay unsigned and weights signed: the fastest pair, twice as fast as both unsigned.
        quantize_dynamic(model, path, per_channel=True, reduce_range=weight_bits == 7, weight_type=QuantType.QInt8)


def _check_inputs(exported: artifact.Artifact, model: Path) -> None:
    if exported.facts["format"] != "onnx":
        raise stage.StageError(
            f"{exported.path} is {exported.facts['format']} already: give the ONNX export it came from"
        )
    if exported.facts["source"] != onnx_export.identity(model):
        raise stage.StageError(
            f"{exported.path} was not exported from {model}: give the model it was made from, "
            f"{exported.facts['model_name']}, as --model"
        )


def run(recipe: Quantization, inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
    exported = artifact.read(inputs["export"], "export")
    _check_inputs(exported, inputs["model"])
    source = onnx_export.open_source(inputs["model"])
    logger.info("quantising %s", onnx_export.MODEL)
    quantize(exported.path / onnx_export.MODEL, out / onnx_export.MODEL, recipe.weight_bits)
    probe = parity.Probe.of(exported.recipe["probe"])
    described, differences = onnx_export.measure(source, out / onnx_export.MODEL, probe)
    parity.check(differences, recipe.tolerance, f"int8 {onnx_export.MODEL}")
    artifact.write_json(out / parity.FILE, parity.report(described, differences, recipe.tolerance))
    for path in exported.path.glob("*.json"):
        if path.name not in (parity.FILE, artifact.MANIFEST):
            shutil.copyfile(path, out / path.name)
    return {
        **exported.facts,
        "format": "int8",
        "weight_bits": recipe.weight_bits,
        "bytes": onnx_export.model_bytes(out),
        "onnx_bytes": exported.facts["bytes"],
        "parity": parity.summary(differences),
    }


STAGE = stage.Stage(
    run=run,
    recipe=Quantization,
    inputs={"export": stage.Role(("export",)), "model": stage.Role((stage.FOLDER,))},
    produces="export",
)

if __name__ == "__main__":
    stage.main(STAGE)
