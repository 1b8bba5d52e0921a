"""Export a model folder to LiteRT (TensorFlow Lite): a ``.tflite`` file for every length, in fp32 or 8 bits.

::

    stillhouse litert-export RECIPE --model DIR [--data DIR] --out DIR

LiteRT takes one row of a fixed length, so an export has several files, ``model_32.tflite`` and so on. The program that
runs them pads a row to the shortest length that holds it, as :mod:`cluster.models.runtimes` does. In 8 bits weights and
embeddings have a scale per channel, and activations are quantized while the model runs. Running needs the extra
``litert``, converting needs the packages of ``deploy/litert_converter.txt``.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from cluster.artifacts import stage
from cluster.models import runtimes
from cluster.telemetry import progress
from deploy.conversion import finalize, parity, source_model
from deploy.conversion.finalize import ExportRecipe, Rounded
from deploy.conversion.source_model import OneRowModel, SourceModel, open_source_model

CONVERTER = ("litert-torch", "ai-edge-quantizer")
_INSTALL = "--no-deps --requirement deploy/litert_converter.txt"


class LiteRt(ExportRecipe):
    """An export to LiteRT."""

    precision: Literal["int8", "fp32"] = "int8"
    """Of the weights."""
    lengths: tuple[Annotated[int, Field(ge=parity.SHORTEST)], ...] = Field((32, 128, 384), min_length=1)
    """In tokens; a length beyond the model's positions becomes its positions."""
    tolerance: Rounded = Rounded()


class NamedModel(OneRowModel):
    """Returns outputs by name, which become the file's signature."""

    def forward(  # type: ignore[override]
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> dict[str, Tensor]:
        return dict(zip(self.outputs, super().forward(input_ids, attention_mask, token_type_ids), strict=True))


def convert(source: SourceModel, length: int, precision: str, path: Path) -> None:
    """Write the model for rows of this length to ``path``."""
    import litert_torch

    # 32 bits, as tokenizers on phones use, are half the size of PyTorch's ids.
    inputs = source_model.example_inputs(source, length, torch.int32)
    converted = litert_torch.convert(NamedModel(source).eval(), sample_kwargs=inputs)
    if precision == "fp32":
        converted.export(str(path))
        return
    with tempfile.TemporaryDirectory() as place:
        whole = Path(place) / path.name
        converted.export(str(whole))
        _round(whole, path)


def _round(whole: Path, path: Path) -> None:
    from ai_edge_quantizer import quantizer, recipe

    rounding = quantizer.Quantizer(str(whole))
    rounding.load_quantization_recipe(recipe.dynamic_wi8_afp32())
    rounding.quantize().export_model(str(path), overwrite=True)


def toolchain() -> dict[str, str]:
    """Versions of the libraries that the export needs.

    Raises:
        StageError: a library is not installed.
    """
    runtime = finalize.versions("litert", "ai-edge-litert")
    return runtime | {name: runtimes.require(name, _INSTALL) for name in CONVERTER}


def run(recipe: LiteRt, inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
    versions = toolchain()
    source = open_source_model(inputs["model"])
    lengths = sorted({min(length, source.positions) for length in recipe.lengths})
    files = {str(length): f"model_{length}.tflite" for length in lengths}
    for length in progress.progress(lengths, "converting", len(lengths), "lengths"):
        with finalize.quiet():
            convert(source, length, recipe.precision, out / files[str(length)])
    made = finalize.describe(
        source, f"litert-{recipe.precision}", "litert", "", files=files, positions=lengths[-1], rows="one"
    )
    return finalize.complete(source, made, recipe, recipe.probe, inputs, out, toolchain=versions)


STAGE = stage.Stage(
    name="deploy.litert_export",
    run=run,
    recipe=LiteRt,
    inputs=finalize.INPUTS,
    produces="export",
    example="litert",
    toolchain=toolchain,
)
