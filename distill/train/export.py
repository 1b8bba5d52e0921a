"""Exports a checkpoint of a run as a student: a folder for transformers, with a model card.

The folder holds ``config.json``, ``model.safetensors``, the tokenizer and ``README.md``, and needs only transformers:
``AutoModelForMaskedLM.from_pretrained(folder)``.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import PositiveInt

from cluster.artifacts import commit, stage
from cluster.artifacts.artifact import digest
from cluster.artifacts.commit import CARD
from cluster.artifacts.recipe import Recipe
from cluster.models import model_tokenizer
from cluster.tokens.tokenizer import load_tokenizer, quiet_tokenizer
from distill.checkpointing.run_folder import Run, RunError
from distill.modeling import masked_lm
from distill.train import paper_differences, student_card
from distill.train.validation import NAMES


class Export(Recipe):
    """The checkpoint to export."""

    step: PositiveInt | None = None
    """Optimizer step of the checkpoint; the newest one by default."""


def run(recipe: Export, inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
    """Write the student."""
    source = Run(inputs["run"])
    if (newest := source.newest()) is None:
        raise RunError(f"{source.path} has no checkpoint yet: let stillhouse train reach one (placement.save_every)")
    checkpoint = newest if recipe.step is None else source.checkpoint(recipe.step)
    described = source.recipe()
    with quiet_tokenizer():
        model = masked_lm.load_trained(source.path, checkpoint.load().weights)
        model.save_pretrained(out)
    tokenizer = load_tokenizer(source.path)
    model_tokenizer.save_beside(tokenizer, model.config, out)
    facts = masked_lm.facts(model) | {
        "steps": checkpoint.step,
        "tokens": checkpoint.facts["tokens"],
        "device_hours": checkpoint.facts["device_seconds"] / 3600,
        "world_size": checkpoint.facts["world_size"],
        "device": checkpoint.facts["device"],
        "validation": dict.fromkeys(("total", *NAMES)) | checkpoint.facts["validation"],
        "lineage": described["inputs"],
    }
    facts["differences"] = paper_differences.differences(described["recipe"], facts)
    card = student_card.write(facts, described["recipe"], commit.completed(out), tokenizer.mask_token)
    (out / CARD).write_text(card, encoding="utf-8")
    return facts


def identity(path: Path) -> str:
    """Identity of a run in its present state: its recipe, inputs and checkpoints."""
    run = Run(path)
    described = run.recipe()
    checkpoints = [{"step": found.step, "files": found.facts["files"]} for found in run.checkpoints()]
    return digest({"described": described, "checkpoints": checkpoints})


STAGE = stage.Stage(
    name="distill.export",
    run=run,
    recipe=Export,
    inputs={"run": stage.Role((stage.FOLDER,), identify=identity)},
    produces="student",
    subject="run",
)
