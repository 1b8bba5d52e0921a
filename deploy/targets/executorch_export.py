"""Export a model folder to ExecuTorch for phones: one ``.pte`` file with XNNPACK arithmetic, in fp32 or 8 bits.

::

    stillhouse executorch-export RECIPE --model DIR [--data DIR] --out DIR

The program takes one row of any length. In 8 bits the weights of every layer have a scale per output channel,
activations are quantized while the model runs, and embeddings have a scale per row; 8-bit embeddings halve the file.
Needs the extra ``executorch``.
"""

import functools
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cluster.artifacts import stage
from deploy.conversion import finalize, source_model
from deploy.conversion.finalize import ExportRecipe, Rounded, logger
from deploy.conversion.source_model import OneRowModel, SourceModel, open_source_model

MODEL = "model.pte"


class ExecuTorch(ExportRecipe):
    """An export to ExecuTorch."""

    precision: Literal["int8", "fp32"] = "int8"
    """Of the weights."""
    tolerance: Rounded = Rounded()


class RoundedEmbedding(nn.Module):
    """An 8-bit embedding with a scale for each row, as ExecuTorch's kernel reads it."""

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        weight = embedding.weight.detach()
        scales = (weight.abs().amax(dim=1) / 127).clamp(min=torch.finfo(torch.float32).tiny)
        self.register_buffer("weight", torch.round(weight / scales[:, None]).to(torch.int8))
        self.register_buffer("scales", scales)

    def forward(self, ids: Tensor) -> Tensor:
        lookup = torch.ops.quantized_decomposed.embedding_byte.default
        found: Tensor = lookup(self.weight, self.scales, None, 0, 0, ids)
        return found


def prepared(source: SourceModel, precision: str) -> nn.Module:
    """A copy of the model, ready for lowering."""
    model = OneRowModel(source)
    if precision == "int8":
        _round(model)
    return model


def _round(model: nn.Module) -> None:
    from torchao.quantization import Int8DynamicActivationIntxWeightConfig, PerAxis, quantize_

    # Defines the embedding's operator.
    importlib.import_module("executorch.exir.passes._quant_patterns_and_replacements")
    embeddings = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Embedding)]
    for name, layer in embeddings:
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, RoundedEmbedding(layer))
    config = Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int8, weight_granularity=PerAxis(0))
    quantize_(model, config, lambda layer, _: isinstance(layer, nn.Linear))


def lower(source: SourceModel, precision: str) -> bytes:
    """The model as an ExecuTorch program for one row of any length."""
    from executorch.backends.xnnpack.partition import xnnpack_partitioner as xnnpack
    from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower

    # Registers the embedding's operator in the form that a program calls.
    importlib.import_module("executorch.kernels.quantized")
    program = source_model.trace_one_row(source, prepared(source, precision), torch.int64)
    whole = [xnnpack.XnnpackPartitioner()]
    rounded = [xnnpack.XnnpackDynamicallyQuantizedPartitioner(), *whole]
    edge = to_edge_transform_and_lower(
        program,
        partitioner=rounded if precision == "int8" else whole,
        # The check does not know the operators of 8-bit models.
        compile_config=EdgeCompileConfig(_check_ir_validity=False),
    )
    return bytes(edge.to_executorch().buffer)


toolchain = functools.partial(finalize.versions, "executorch", "executorch", "torchao")


def run(recipe: ExecuTorch, inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
    versions = toolchain()
    source = open_source_model(inputs["model"])
    logger.info("lowering %s", type(source.model).__name__)
    with finalize.quiet():
        (out / MODEL).write_bytes(lower(source, recipe.precision))
    made = finalize.describe(source, f"executorch-{recipe.precision}", "executorch", MODEL, rows="one")
    return finalize.complete(source, made, recipe, recipe.probe, inputs, out, toolchain=versions)


STAGE = stage.Stage(
    name="deploy.executorch_export",
    run=run,
    recipe=ExecuTorch,
    inputs=finalize.INPUTS,
    produces="export",
    example="executorch",
    toolchain=toolchain,
)
