"""What all exports share: reading the export they start from, description, tokenizer, parity, score and facts."""

import contextlib
import logging
import shutil
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, PositiveFloat

from cluster.artifacts import artifact, errors, stage
from cluster.artifacts.recipe import Recipe
from cluster.models import model_folder, runtimes
from cluster.models.export_spec import ANY, Exported
from cluster.storage import filesystem
from cluster.telemetry import progress
from cluster.tokens.tokenizer import save_tokenizer
from deploy.conversion import parity, task_score
from deploy.conversion.source_model import SourceModel

logger = logging.getLogger("stillhouse")

ONNX = "model.onnx"
"""The file of an ONNX export."""

INPUTS = {"model": stage.Role((stage.FOLDER,)), "data": stage.Role((stage.FOLDER,), optional=True)}
"""Roles of every export: the model, and data of its task, on which the export must score as the model does."""


class ToleranceRecipe(Recipe):
    """How much an export may differ from its model."""

    tolerance: parity.Tolerance = parity.Tolerance()
    score: task_score.Scored = task_score.Scored()
    """Used with ``--data DIR``."""


class ExportRecipe(ToleranceRecipe):
    """Base of the recipes that export a model folder."""

    probe: parity.Probe = parity.Probe()


class Rounded(parity.Tolerance):
    """How far an export with rounded weights may be from its model.

    Wide enough for a correct int8 model on random ids, where near ties are common (a trained encoder differed by 0.18
    and agreed on 83 % of its words there, on 87 % in real text); a broken one is far outside.
    """

    # Defaults of a class, not an instance: setting one value must not make the others strict.
    relative: PositiveFloat = 0.5
    """Largest difference between outputs, relative to the reference's largest value."""
    agreement: float = Field(0.7, ge=0.0, le=1.0)
    """Lowest share of positions where both choose the same class or word."""


def versions(extra: str, *libraries: str) -> dict[str, str]:
    """Versions of the libraries of an extra.

    Raises:
        StageError: a library is not installed.
    """
    return {name: runtimes.require(name, f"'stillhouse[{extra}]'") for name in libraries}


def read_onnx_export(inputs: Mapping[str, Path], formats: Collection[str]) -> artifact.Artifact:
    """The verified ONNX export in the input ``export``.

    All bytes are checked, because one changed weight among millions is within the tolerance of parity.

    Raises:
        StageError: it is not one of these formats, or was made from another model than the input ``model``.
        ArtifactError: it was changed after it was made.
    """
    exported = artifact.verify(inputs["export"], "export")
    form = exported.facts["format"]
    if form not in formats or not (exported.path / ONNX).is_file():
        problem = f"has no {ONNX}" if form in formats else f"is {form} already"
        makers = "stillhouse onnx-export" + (" or stillhouse quantize" if len(formats) > 1 else "")
        raise errors.StageError(f"{exported.path} {problem}: give an export made by {makers}")
    if "model" in inputs and exported.facts["source"] != model_folder.identity(inputs["model"]):
        raise errors.StageError(
            f"{exported.path} was not exported from {inputs['model']}: give the model it was made from, "
            f"{exported.facts['model_name']}, as --model"
        )
    return exported


def describe(source: SourceModel, form: str, runtime: str, file: str, **changes: Any) -> Exported:
    """The description of an export in one file for any length; ``changes`` override its fields."""
    known = {
        "format": form,
        "runtime": runtime,
        "files": {ANY: file},
        "head": source.head,
        "inputs": source.inputs,
        "outputs": dict(source.outputs),
        "positions": source.positions,
        "pad": int(source.tokenizer.pad_token_id),
        "vocab_size": int(source.config.vocab_size),
        "parameters": source.model.num_parameters(),
        "texts": model_folder.texts(source.folder),
        "no_answer": model_folder.has_no_answer(source.folder, source.config),
    }
    return Exported(**{**known, **changes})


def complete(
    source: SourceModel,
    made: Exported,
    recipe: ToleranceRecipe,
    probe: parity.Probe,
    inputs: Mapping[str, Path],
    out: Path,
    **more: Any,
) -> dict[str, Any]:
    """Turn the model files in ``out`` into an export, check its parity, and return its facts with ``more`` added.

    Raises:
        StageError: it differs from the model by more than the recipe's tolerance.
    """
    add_description(source, made, out)
    inputs_record, differences = measure(source, runtimes.open_export(out), probe, made)
    parity.check(differences, recipe.tolerance, f"the {made.format} export")
    score = scored(source, recipe, f"the {made.format} export", made.positions, inputs, out)
    record = {
        "against": "PyTorch fp32",
        "runtime": runtimes.described(made),
        "inputs": inputs_record,
        "outputs": parity.as_json(differences),
        "score": score,
        "tolerance": recipe.tolerance.resolved(),
    }
    filesystem.write_json(out / parity.FILE, record)
    return {
        **facts(source, made, out),
        "runtime": runtimes.described(made),
        "parity": {**parity.summary(differences), "score": score},
        **more,
    }


def scored(
    source: SourceModel, recipe: ToleranceRecipe, what: str, positions: int, inputs: Mapping[str, Path], out: Path
) -> dict[str, Any] | None:
    """Scores of the source and of the model in ``out`` on the input ``data``; None without it.

    Raises:
        StageError: the new model, which the message calls ``what``, loses more than the recipe allows.
    """
    if "data" not in inputs:
        return None
    found = task_score.compare(recipe.score, source.folder, out, positions, inputs["data"])
    task_score.check(found, recipe.tolerance.score, what, keeps="keep" in type(recipe).model_fields)
    return found


def add_description(source: SourceModel, made: Exported, out: Path) -> None:
    """Write description, configuration and tokenizer next to a model's files."""
    made.write(out)
    shutil.copyfile(source.folder / "config.json", out / "config.json")
    save_tokenizer(source.tokenizer, out, made.inputs, made.positions)


def facts(source: SourceModel, made: Exported, out: Path) -> dict[str, Any]:
    """What the manifest of every export states, except parity."""
    return {
        "format": made.format,
        "bytes": made.bytes(out),
        "parameters": made.parameters,
        "architecture": (source.config.architectures or [type(source.model).__name__])[0],
        "head": made.head,
        "lengths": made.lengths,
        "model_name": source.folder.name,
        "source": source.identity,
    }


def measure(
    source: SourceModel, candidate: runtimes.Call, probe: parity.Probe, made: Exported
) -> tuple[dict[str, Any], dict[str, parity.Difference]]:
    """Description of the probe's inputs, and the differences between ``candidate`` and the source on them."""
    positions = min(source.positions, made.positions)
    feeds = parity.fixed_inputs(probe, source.tokenizer, source.inputs, positions)
    shown = progress.progress(feeds, "parity", len(feeds), "batches")
    return parity.describe(probe, feeds), differences_on(source, candidate, shown)


def differences_on(
    source: SourceModel, candidate: runtimes.Call, feeds: Iterable[parity.Feed]
) -> dict[str, parity.Difference]:
    """The differences between ``candidate`` and the source on these inputs."""
    reference = parity.torch_outputs(source.model, source.outputs)
    return parity.between(reference, candidate, feeds, source.outputs)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress warnings of the conversion libraries: users cannot act on them, and parity finds what they hint at."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(before)
