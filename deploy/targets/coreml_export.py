"""Export a model folder to Core ML: an ``.mlpackage`` for iPhones, iPads and Macs.

::

    stillhouse coreml-export RECIPE --model DIR --out DIR

Converted here, run on a Mac: Core ML exists on Apple's systems alone, so the numbers of this export cannot be held
against the model's, and ``parity.json`` says that it was **not run**. What can be checked is: the file's inputs and
outputs, and what PyTorch computes for the traced program. Needs the extra ``coreml``.
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
from deploy.conversion.source_model import OneRow, Original, open_original

MODEL = "model.mlpackage"
NOT_RUN = "converted, not run: Core ML exists on Apple's systems alone"
SMALLEST = 512
"""Weights with fewer values than this stay as they are: the scales would take what the rounding saves."""


class CoreMl(Recipe):
    """An export to Core ML."""

    precision: Literal["fp16", "int8"] = "int8"
    """Of the weights; Core ML computes in fp16 either way."""
    probe: parity.Probe = parity.Probe()
    tolerance: parity.Tolerance = parity.Tolerance()
    """Of the traced program, run by PyTorch in fp32."""


def traced(original: Original) -> ExportedProgram:
    """The program that is converted: one row of any length."""
    inputs = source_model.example_inputs(original, 17, torch.int32)
    length = torch.export.Dim("length", min=2, max=original.positions)
    program = torch.export.export(
        OneRow(original).eval(), (), inputs, dynamic_shapes={name: {1: length} for name in inputs}
    )
    decomposed: ExportedProgram = program.run_decompositions({})
    return decomposed


def convert(original: Original, program: ExportedProgram, precision: str) -> Any:
    """The program as a Core ML model; int8 weights have a scale per output channel."""
    import coremltools as ct
    from coremltools.optimize import coreml as optimize

    model = ct.convert(
        program,
        minimum_deployment_target=ct.target.iOS16,
        outputs=[ct.TensorType(name=name) for name in original.outputs],
        compute_precision=ct.precision.FLOAT16,
    )
    if precision == "fp16":
        return model
    rounding = optimize.OpLinearQuantizerConfig(mode="linear_symmetric", weight_threshold=SMALLEST)
    return optimize.linear_quantize_weights(model, optimize.OptimizationConfig(global_config=rounding))


def run(recipe: CoreMl, inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
    version = runtimes.require("coremltools", "coreml")
    original = open_original(inputs["model"])
    logger.info("converting %s", type(original.model).__name__)
    with finalize.quiet():
        program = traced(original)
        model = convert(original, program, recipe.precision)
        model.save(str(out / MODEL))
    made = finalize.describe(original, f"coreml-{recipe.precision}", "coreml", MODEL, rows="one")
    _check_signature(original, model)
    described, differences = finalize.measure(original, _in_pytorch(original, program), recipe.probe, made)
    parity.check(differences, recipe.tolerance, "the traced program")
    finalize.furnish(original, made, out)
    record = {
        "against": "PyTorch fp32",
        "runtime": None,
        "not_run": NOT_RUN,
        "inputs": described,
        "traced": {name: found.as_json() for name, found in differences.items()},
        "tolerance": recipe.tolerance.resolved(),
    }
    filesystem.write_json(out / parity.FILE, record)
    return {
        **finalize.facts(original, made, out),
        "runtime": None,
        "not_run": NOT_RUN,
        "parity": None,
        "toolchain": {"coremltools": version},
    }


def _check_signature(original: Original, model: Any) -> None:
    said = model.get_spec().description
    found = [sorted(each.name for each in side) for side in (said.input, said.output)]
    if found != [sorted(original.inputs), sorted(original.outputs)]:
        raise errors.StageError(f"the converter lost an input or output: it has {found}; report this with the model")


def _in_pytorch(original: Original, program: ExportedProgram) -> runtimes.Call:
    """The traced program, which takes one row, for rows of a batch."""
    module = program.module()

    def call(feed: runtimes.Feed) -> runtimes.Outputs:
        rows = range(len(feed["input_ids"]))
        parts = [
            module(**{name: torch.from_numpy(values[row : row + 1]).int() for name, values in feed.items()})
            for row in rows
        ]
        joined = [torch.cat(outputs).detach().numpy() for outputs in zip(*parts, strict=True)]
        return dict(zip(original.outputs, joined, strict=True))

    return call


STAGE = stage.Stage(
    name="deploy.coreml_export",
    run=run,
    recipe=CoreMl,
    inputs={"model": stage.Role((stage.FOLDER,))},
    produces="export",
)
