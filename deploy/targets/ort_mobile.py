"""Convert an ONNX export to the format of ONNX Runtime Mobile: ``model.ort`` and the operators that it needs.

::

    stillhouse ort-mobile RECIPE --export DIR --model DIR [--data DIR] --out DIR

Takes the fp32 export or a quantized one. The converter optimizes the file, which loads without the ONNX reader;
``required_operators_and_types.config`` configures a minimal build of the runtime for a phone.
"""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnxruntime
from onnxruntime.tools.convert_onnx_models_to_ort import OptimizationStyle, convert_onnx_models_to_ort

from cluster.artifacts import stage
from deploy.conversion import finalize, parity
from deploy.conversion.finalize import Rounded, ToleranceRecipe, logger
from deploy.conversion.source_model import open_source_model

MODEL = "model.ort"
OPERATORS = "required_operators_and_types.config"


class OrtMobile(ToleranceRecipe):
    """A conversion to the ORT format."""

    tolerance: Rounded = Rounded()


def convert(path: Path, out: Path) -> None:
    """Write ``model.ort`` and the list of operators for an ONNX file."""
    with tempfile.TemporaryDirectory() as place, finalize.quiet():
        # The converter takes all files of a folder, and writes next to them.
        shutil.copyfile(path, Path(place) / finalize.ONNX)
        convert_onnx_models_to_ort(
            Path(place),
            output_dir=Path(place) / "out",
            # A minimal build has no optimizer, so the conversion optimizes.
            optimization_styles=[OptimizationStyle.Fixed],
            target_platform="arm",
            enable_type_reduction=True,
        )
        made = Path(place) / "out"
        shutil.copyfile(next(made.rglob("*.ort")), out / MODEL)
        shutil.copyfile(next(made.rglob("*.config")), out / OPERATORS)


def run(recipe: OrtMobile, inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
    exported = finalize.read_onnx_export(inputs, ("onnx", "int8", "int8-static"))
    path = exported.path / finalize.ONNX
    logger.info("converting %s", finalize.ONNX)
    convert(path, out)
    source = open_source_model(inputs["model"])
    form = "ort" if exported.facts["format"] == "onnx" else f"ort-{exported.facts['format']}"
    made = finalize.describe(source, form, "onnxruntime", MODEL)
    probe, versions = parity.recorded(exported.path), {"onnxruntime": onnxruntime.__version__}
    size = path.stat().st_size
    return finalize.complete(source, made, recipe, probe, inputs, out, onnx_bytes=size, toolchain=versions)


STAGE = stage.Stage(
    name="deploy.ort_mobile",
    run=run,
    recipe=OrtMobile,
    inputs={"export": stage.Role(("export",)), **finalize.INPUTS},
    produces="export",
)
