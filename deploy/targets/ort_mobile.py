"""Bring an ONNX export into the format of ONNX Runtime Mobile: ``model.ort`` and the operators that it needs.

::

    stillhouse ort-mobile RECIPE --export DIR --model DIR [--data DIR] --out DIR

Takes the fp32 export or a quantised one. The file is optimised when it is made, loads without the ONNX reader, and
``required_operators_and_types.config`` is what a minimal build of the runtime for a phone is configured with.
"""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnxruntime
from onnxruntime.tools.convert_onnx_models_to_ort import OptimizationStyle, convert_onnx_models_to_ort

from cluster.artifacts import artifact, errors, stage
from deploy.conversion import finalize, parity
from deploy.conversion.finalize import Rounded, ToleranceRecipe, logger
from deploy.conversion.source_model import open_original
from deploy.targets import onnx_export

MODEL = "model.ort"
OPERATORS = "required_operators_and_types.config"


class OrtMobile(ToleranceRecipe):
    """A conversion to the ORT format."""

    tolerance: Rounded = Rounded()


def convert(path: Path, out: Path) -> None:
    """Write ``model.ort`` and the list of operators for an ONNX file."""
    with tempfile.TemporaryDirectory() as place, finalize.quiet():
        # The converter takes all files of a folder, and writes beside them.
        shutil.copyfile(path, Path(place) / onnx_export.MODEL)
        convert_onnx_models_to_ort(
            Path(place),
            output_dir=Path(place) / "out",
            # Fixed at conversion: a minimal build has no optimiser.
            optimization_styles=[OptimizationStyle.Fixed],
            target_platform="arm",
            enable_type_reduction=True,
        )
        made = Path(place) / "out"
        shutil.copyfile(next(made.rglob("*.ort")), out / MODEL)
        shutil.copyfile(next(made.rglob("*.config")), out / OPERATORS)


def run(recipe: OrtMobile, inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
    # One changed weight among millions is within the tolerance of parity.
    exported = artifact.verify(inputs["export"], "export")
    path = exported.path / onnx_export.MODEL
    if not path.is_file():
        raise errors.StageError(
            f"{exported.path} is {exported.facts['format']}: give an export made by deploy.onnx_export"
        )
    finalize.check_source(exported, inputs["model"])
    logger.info("converting %s", onnx_export.MODEL)
    convert(path, out)
    original = open_original(inputs["model"])
    form = "ort" if exported.facts["format"] == "onnx" else f"ort-{exported.facts['format']}"
    made = finalize.describe(original, form, "onnxruntime", MODEL)
    facts = finalize.complete(original, made, recipe, parity.recorded(exported.path), inputs, out)
    return {**facts, "onnx_bytes": path.stat().st_size, "toolchain": {"onnxruntime": onnxruntime.__version__}}


STAGE = stage.Stage(
    name="deploy.ort_mobile",
    run=run,
    recipe=OrtMobile,
    inputs={"export": stage.Role(("export",)), **finalize.INPUTS},
    produces="export",
)
