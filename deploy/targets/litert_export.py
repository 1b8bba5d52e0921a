"""Export a model folder to LiteRT (TensorFlow Lite): a ``.tflite`` file for every length, fp32 or 8-bit.

::

    stillhouse litert-export RECIPE --model DIR [--data DIR] --out DIR

LiteRT takes one row of a fixed length at a time, so there are several files, ``model_32.tflite`` and so on: whoever
runs them pads a row to the shortest that holds it (``runtimes`` does). In 8 bits weights and embeddings
have a scale per channel, activations are quantised while the model runs. Running needs the extra ``litert``,
converting what ``deploy/litert_converter.txt`` lists.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from cluster.artifacts import errors, stage
from cluster.models import runtimes
from cluster.telemetry import progress
from deploy.conversion import finalize, parity, source_model
from deploy.conversion.finalize import ExportRecipe, Rounded
from deploy.conversion.source_model import OneRow, Original, open_original

CONVERTER = ("litert-torch", "ai-edge-quantizer")


class LiteRt(ExportRecipe):
    """An export to LiteRT."""

    precision: Literal["int8", "fp32"] = "int8"
    lengths: tuple[Annotated[int, Field(ge=parity.SHORTEST)], ...] = Field((32, 128, 384), min_length=1)
    """In tokens; those beyond the model's positions become its positions."""
    tolerance: Rounded = Rounded()


class Named(OneRow):
    """Outputs by their names, which end up in the file's signature."""

    def forward(  # type: ignore[override]
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> dict[str, Tensor]:
        return dict(zip(self.outputs, super().forward(input_ids, attention_mask, token_type_ids), strict=True))


def convert(original: Original, length: int, precision: str, path: Path) -> None:
    """Write the model for rows of this length to ``path``."""
    import litert_torch

    # 32 bits: what a phone's tokenizers give, and half of what PyTorch's ids take.
    inputs = source_model.example_inputs(original, length, torch.int32)
    converted = litert_torch.convert(Named(original).eval(), sample_kwargs=inputs)
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
    """Versions of the libraries that this takes.

    Raises:
        StageError: one is not installed.
    """
    versions = {"ai-edge-litert": runtimes.require("ai-edge-litert", "litert")}
    return versions | {name: _version(name) for name in CONVERTER}


def run(recipe: LiteRt, inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
    versions = toolchain()
    original = open_original(inputs["model"])
    lengths = sorted({min(length, original.positions) for length in recipe.lengths})
    files = {str(length): f"model_{length}.tflite" for length in lengths}
    for length in progress.progress(lengths, "converting", len(lengths), "lengths"):
        with finalize.quiet():
            convert(original, length, recipe.precision, out / files[str(length)])
    made = finalize.describe(
        original, f"litert-{recipe.precision}", "litert", "", files=files, positions=lengths[-1], rows="one"
    )
    return {**finalize.complete(original, made, recipe, recipe.probe, inputs, out), "toolchain": versions}


def _version(name: str) -> str:
    try:
        return runtimes.require(name, None)
    except errors.StageError:
        raise errors.StageError(
            f"{name} is not installed: pip install --no-deps --requirement deploy/litert_converter.txt"
        ) from None


STAGE = stage.Stage(
    name="deploy.litert_export", run=run, recipe=LiteRt, inputs=finalize.INPUTS, produces="export", toolchain=toolchain
)
