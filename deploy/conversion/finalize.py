"""What every export does once its files are there: description, tokenizer, parity, score, refusal, facts."""

import contextlib
import logging
import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, PositiveFloat

from cluster.artifacts import artifact, errors, stage
from cluster.artifacts.recipe import Recipe
from cluster.models import model_folder, runtimes
from cluster.models.export_spec import ANY, Exported
from cluster.storage import filesystem
from cluster.telemetry import progress
from deploy.conversion import parity, task_score
from deploy.conversion.source_model import Original

logger = logging.getLogger("stillhouse")

INPUTS = {"model": stage.Role((stage.FOLDER,)), "data": stage.Role((stage.FOLDER,), optional=True)}
"""Roles of every export: the model, and a task's data, on which the export must score as the model does."""


class ToleranceRecipe(Recipe):
    """What every export is held to."""

    tolerance: parity.Tolerance = parity.Tolerance()
    score: task_score.Scored = task_score.Scored()
    """Where ``--data DIR`` is given."""


class ExportRecipe(ToleranceRecipe):
    """What the recipes of all targets have that are made of a model itself."""

    probe: parity.Probe = parity.Probe()


class Rounded(parity.Tolerance):
    """How far an export with rounded weights may be.

    Wide enough for an honest int8 model on random ids, where near ties are common (a trained encoder differed by 0.18
    and agreed on 83 % of its words there, on 87 % in real text); a broken one is far outside.
    """

    # Defaults of a class, not an instance: who sets one value alone must not get the strict ones for the others.
    relative: PositiveFloat = 0.5
    agreement: float = Field(0.7, ge=0.0, le=1.0)


def describe(original: Original, form: str, runtime: str, file: str, **changes: Any) -> Exported:
    """The description of an export of this model in one file for any length; ``changes`` where it is otherwise."""
    known = Exported(
        format=form,
        runtime=runtime,
        files={ANY: file},
        head=original.head,
        inputs=original.inputs,
        outputs=dict(original.outputs),
        positions=original.positions,
        pad=int(original.tokenizer.pad_token_id),
        vocab_size=int(original.config.vocab_size),
        parameters=original.model.num_parameters(),
    )
    return Exported(**{**known.__dict__, **changes})


def complete(
    original: Original,
    made: Exported,
    recipe: ToleranceRecipe,
    probe: parity.Probe,
    inputs: Mapping[str, Path],
    out: Path,
) -> dict[str, Any]:
    """Make an export of what lies in ``out``, prove that it is the model, and return its facts.

    Raises:
        StageError: it is further from the model than the recipe's tolerance.
    """
    furnish(original, made, out)
    what = f"the {made.format} export"
    described, differences = measure(original, runtimes.open_export(out), probe, made)
    parity.check(differences, recipe.tolerance, what)
    scored = None
    if "data" in inputs:
        scored = task_score.compare(recipe.score, original.folder, out, made.positions, inputs["data"])
        task_score.check(scored, recipe.tolerance.score, what, keeps="keep" in type(recipe).model_fields)
    record = {
        "against": "PyTorch fp32",
        "runtime": runtimes.described(made),
        "inputs": described,
        "outputs": {name: found.as_json() for name, found in differences.items()},
        "score": scored,
        "tolerance": recipe.tolerance.resolved(),
    }
    filesystem.write_json(out / parity.FILE, record)
    return {
        **facts(original, made, out),
        "runtime": runtimes.described(made),
        "parity": {**parity.summary(differences), "score": scored},
    }


def check_source(exported: artifact.Artifact, model: Path) -> None:
    """
    Raises:
        StageError: an export was made of another model.
    """
    if exported.facts["source"] != model_folder.identity(model):
        raise errors.StageError(
            f"{exported.path} was not exported from {model}: give the model it was made from, "
            f"{exported.facts['model_name']}, as --model"
        )


def furnish(original: Original, made: Exported, out: Path) -> None:
    """Lay description, configuration and tokenizer beside a model's files."""
    made.write(out)
    shutil.copyfile(original.folder / "config.json", out / "config.json")
    original.tokenizer.save_pretrained(out)


def facts(original: Original, made: Exported, out: Path) -> dict[str, Any]:
    """What the manifest of every export states, parity aside."""
    return {
        "format": made.format,
        "bytes": made.bytes(out),
        "parameters": made.parameters,
        "architecture": (original.config.architectures or [type(original.model).__name__])[0],
        "head": made.head,
        "lengths": made.lengths,
        "model_name": original.folder.name,
        "source": original.identity,
    }


def measure(
    original: Original, candidate: runtimes.Call, probe: parity.Probe, made: Exported
) -> tuple[dict[str, Any], dict[str, parity.Difference]]:
    """Description of the fixed inputs, and how far ``candidate`` is from the original on them."""
    positions = min(original.positions, made.positions)
    feeds = parity.fixed_inputs(probe, original.tokenizer, original.inputs, positions)
    shown = progress.progress(feeds, "parity", len(feeds), "batches")
    return parity.describe(probe, feeds), differences_on(original, candidate, shown)


def differences_on(
    original: Original, candidate: runtimes.Call, feeds: Iterable[parity.Feed]
) -> dict[str, parity.Difference]:
    """How far ``candidate`` is from the original on these inputs."""
    reference = parity.torch_outputs(original.model, original.outputs)
    return parity.between(reference, candidate, feeds, original.outputs)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep warnings of the libraries back that nobody can act upon: what they might hide, parity finds."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(before)
