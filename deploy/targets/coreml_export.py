"""Export a model folder to Core ML: an ``.mlpackage`` for iPhones, iPads and Macs.

::

    stillhouse coreml-export RECIPE --model DIR --out DIR

Core ML runs on Apple's systems only, so the outputs of this export cannot be compared with the model's here, and
``parity.json`` says that it was **not run**. The stage checks the inputs and outputs of the file, and what PyTorch
computes for the traced program. Needs the extra ``coreml``.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch.export import ExportedProgram

from cluster.artifacts import errors, stage
from cluster.artifacts.recipe import Recipe
from cluster.models import runtimes
from cluster.storage import filesystem
from deploy.conversion import finalize, parity, source_model
from deploy.conversion.finalize import logger
from deploy.conversion.source_model import OneRowModel, SourceModel, open_source_model

MODEL = "model.mlpackage"
NOT_RUN = "converted, not run: Core ML exists on Apple's systems alone"
SMALLEST = 512
"""Weights with fewer values stay in float: their scales would take the bytes that rounding saves."""


class CoreMl(Recipe):
    """An export to Core ML."""

    precision: Literal["fp16", "int8"] = "int8"
    """Of the weights; Core ML computes in fp16 either way."""
    probe: parity.Probe = parity.Probe()
    tolerance: parity.Tolerance = parity.Tolerance()
    """For the traced program, which PyTorch runs in fp32."""


def traced(source: SourceModel) -> ExportedProgram:
    """The program that is converted: one row of any length."""
    program = source_model.trace_one_row(source, OneRowModel(source), torch.int32)
    decomposed: ExportedProgram = program.run_decompositions({})
    return decomposed


def convert(source: SourceModel, program: ExportedProgram, precision: str) -> Any:
    """The program as a Core ML model; int8 weights have a scale per output channel."""
    import coremltools as ct
    from coremltools.optimize import coreml as optimize

    model = ct.convert(
        program,
        minimum_deployment_target=ct.target.iOS16,
        outputs=[ct.TensorType(name=name) for name in source.outputs],
        compute_precision=ct.precision.FLOAT16,
    )
    if precision == "fp16":
        return model
    rounding = optimize.OpLinearQuantizerConfig(mode="linear_symmetric", weight_threshold=SMALLEST)
    return optimize.linear_quantize_weights(model, optimize.OptimizationConfig(global_config=rounding))


def run(recipe: CoreMl, inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
    versions = finalize.versions("coreml", "coremltools")
    source = open_source_model(inputs["model"])
    logger.info("converting %s", type(source.model).__name__)
    with finalize.quiet():
        program = traced(source)
        model = convert(source, program, recipe.precision)
        model.save(str(out / MODEL))
    made = finalize.describe(source, f"coreml-{recipe.precision}", "coreml", MODEL, rows="one")
    _check_signature(source, model)
    inputs_record, differences = finalize.measure(source, _in_pytorch(source, program), recipe.probe, made)
    parity.check(differences, recipe.tolerance, "the traced program")
    finalize.add_description(source, made, out)
    record = {
        "against": "PyTorch fp32",
        "runtime": None,
        "not_run": NOT_RUN,
        "inputs": inputs_record,
        "traced": parity.as_json(differences),
        "tolerance": recipe.tolerance.resolved(),
    }
    filesystem.write_json(out / parity.FILE, record)
    return {
        **finalize.facts(source, made, out),
        "runtime": None,
        "not_run": NOT_RUN,
        "parity": None,
        "toolchain": versions,
    }


def _check_signature(source: SourceModel, model: Any) -> None:
    said = model.get_spec().description
    found = [sorted(each.name for each in side) for side in (said.input, said.output)]
    if found != [sorted(source.inputs), sorted(source.outputs)]:
        raise errors.StageError(f"the converter lost an input or output: it has {found}; report this with the model")


def _in_pytorch(source: SourceModel, program: ExportedProgram) -> runtimes.Call:
    """The traced program, which takes one row, as a function of a batch."""
    module = program.module()

    def call(feed: runtimes.Feed) -> runtimes.Outputs:
        outputs = module(**{name: torch.from_numpy(values).int() for name, values in feed.items()})
        return {name: values.detach().numpy() for name, values in zip(source.outputs, outputs, strict=True)}

    return runtimes.row_by_row(call)


STAGE = stage.Stage(
    name="deploy.coreml_export",
    run=run,
    recipe=CoreMl,
    inputs={"model": stage.Role((stage.FOLDER,))},
    produces="export",
    example="coreml",
)
