"""Export a model folder to ONNX and check that it still computes the same.

::

    stillhouse onnx-export RECIPE --model DIR [--data DIR] --out DIR

The model is a Hugging Face folder of a BERT, DistilBERT or RoBERTa with a masked-word, classification, regression or
question-answering head, which ``config.architectures`` names. The export holds::

    model.onnx             inputs int64 [batch, length], both dynamic; external data only above 2 GB
    runtime.json           how to call it, see cluster.models.export_spec
    config.json  tokenizer.json  tokenizer_config.json
    parity.json            differences from the PyTorch model, see deploy.conversion.parity

With ``--data``, a folder of the task the model was fine-tuned on, the export must also reach the model's score.
"""

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch.onnx import ONNXProgram

from cluster.artifacts import stage
from deploy.conversion import finalize, parity
from deploy.conversion.finalize import ExportRecipe, logger
from deploy.conversion.source_model import PositionalModel, SourceModel, open_source_model

SCOPES = "pkg.torch.onnx.name_scopes"
"""Key of a node's metadata: the modules that it comes from, outermost first."""


class Export(ExportRecipe):
    """An export to ONNX."""

    opset: int = Field(20, ge=18, le=22)
    """The exporter writes at least 18; from 23 on it writes an Attention operator that breaks the quantizer."""


def trace(source: SourceModel, opset: int) -> ONNXProgram:
    """The model as an ONNX graph with dynamic batch and length, free of paths of this machine."""
    # Two rows: the exporter would take a batch of one for a constant.
    probe = parity.Probe(lengths=(16,), rows=2)
    _, shown = parity.fixed_inputs(probe, source.tokenizer, source.inputs, source.positions)
    free = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    logger.info("tracing %s", type(source.model).__name__)
    with finalize.quiet():
        program = torch.onnx.export(
            PositionalModel(source).eval(),
            kwargs={name: torch.from_numpy(values) for name, values in shown.items()},
            output_names=list(source.outputs),
            dynamic_shapes=dict.fromkeys(shown, free),
            opset_version=opset,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    # The metadata has Python stack traces: paths of this machine, which make other bytes on another one.
    values = [*program.model.graph.inputs, *program.model.graph.initializers.values()]
    for node in program.model.graph.all_nodes():
        node.name = _layer_name(node.name or "", node.metadata_props)
        node.metadata_props.clear()
        values += node.outputs
    for value in values:
        value.metadata_props.clear()
    return program


def _layer_name(name: str, metadata: Mapping[str, str]) -> str:
    """A node's name with its layer, ``distilbert.transformer.layer.0.ffn.lin1/node_MatMul_115``.

    Recipes name the layers that stay in float by these (:mod:`deploy.targets.quantize`).
    """
    scopes = ast.literal_eval(metadata.get(SCOPES, "[]"))
    layer = scopes[-2].removeprefix("model.") if len(scopes) > 2 else ""
    return f"{layer}/{name}" if layer else name


def run(recipe: Export, inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
    source = open_source_model(inputs["model"])
    trace(source, recipe.opset).save(out / finalize.ONNX)
    made = finalize.describe(source, "onnx", "onnxruntime", finalize.ONNX)
    return finalize.complete(source, made, recipe, recipe.probe, inputs, out, opset=recipe.opset)


STAGE = stage.Stage(
    name="deploy.onnx_export", run=run, recipe=Export, inputs=finalize.INPUTS, produces="export", example="onnx"
)
