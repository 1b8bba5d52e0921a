"""Export a model folder to ONNX and prove that it is still the same model.

::

    stillhouse onnx-export RECIPE --model DIR [--data DIR] --out DIR

The model is any Hugging Face folder of a BERT, DistilBERT or RoBERTa with a masked-word, classification, regression
or question-answering head; the head is the one ``config.architectures`` names. The export holds::

    model.onnx             inputs int64 [batch, length], both free; external data only above 2 GB
    runtime.json           what is needed to call it, see cluster.exported
    config.json  tokenizer.json  tokenizer_config.json
    parity.json            how far it is from the PyTorch model, see deploy.parity

With ``--data``, a folder of the task the model was fine-tuned on, its score must be that of the model, too.
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
from deploy.conversion.source_model import Original, Positional, open_original

MODEL = "model.onnx"
SCOPES = "pkg.torch.onnx.name_scopes"
"""Where the exporter notes the modules, from the outermost in, that a node comes from."""


class Export(ExportRecipe):
    """An export to ONNX."""

    # The exporter writes 18 at least; from 23 on it writes an Attention operator that breaks the quantiser.
    opset: int = Field(20, ge=18, le=22)


def trace(original: Original, opset: int) -> ONNXProgram:
    """The model as an ONNX graph with free batch and length, without a trace of the machine it was made on."""
    # Two rows of different length: a batch of one would be taken for a constant.
    shown = parity.fixed_inputs(
        parity.Probe(lengths=(16,), rows=2), original.tokenizer, original.inputs, original.positions
    )[1]
    free = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    logger.info("tracing %s", type(original.model).__name__)
    with finalize.quiet():
        program = torch.onnx.export(
            Positional(original).eval(),
            kwargs={name: torch.from_numpy(values) for name, values in shown.items()},
            output_names=list(original.outputs),
            dynamic_shapes=dict.fromkeys(shown, free),
            opset_version=opset,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    for node in program.model.graph.all_nodes():
        node.name = _named(node.name or "", node.metadata_props)
    # The exporter notes the Python stack trace of every node: paths of this machine, and other bytes on another one.
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*program.model.graph.inputs, *program.model.graph.initializers.values()):
        value.metadata_props.clear()
    return program


def _named(name: str, metadata: Mapping[str, str]) -> str:
    """A node by the layer it belongs to, ``distilbert.transformer.layer.0.ffn.lin1/node_MatMul_115``.

    By these names people choose the layers that stay in float (:mod:`deploy.quantize`).
    """
    scopes = ast.literal_eval(metadata.get(SCOPES, "[]"))
    layer = scopes[-2].removeprefix("model.") if len(scopes) > 2 else ""
    return f"{layer}/{name}" if layer else name


def run(recipe: Export, inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
    original = open_original(inputs["model"])
    trace(original, recipe.opset).save(out / MODEL)
    made = finalize.describe(original, "onnx", "onnxruntime", MODEL)
    return {**finalize.complete(original, made, recipe, recipe.probe, inputs, out), "opset": recipe.opset}


STAGE = stage.Stage(name="deploy.onnx_export", run=run, recipe=Export, inputs=finalize.INPUTS, produces="export")
