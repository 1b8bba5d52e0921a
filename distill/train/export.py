"""Exports a checkpoint of a run as a student: a folder for transformers, with a model card.

The folder holds ``config.json``, ``model.safetensors``, the tokenizer and ``README.md``, and needs only transformers:
``AutoModelForMaskedLM.from_pretrained(folder)``. ``heldout.parquet`` has the last validation row by row, so that a
report can compare two students on the same rows: ``hidden`` words, ``hits`` among them, and ``nats``, the sum of their
losses.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import NonNegativeInt

from cluster.artifacts import commit, stage
from cluster.artifacts.artifact import digest
from cluster.artifacts.commit import CARD
from cluster.artifacts.recipe import Recipe
from cluster.models import model_tokenizer
from cluster.telemetry.loss_terms import LOSS_TERMS
from cluster.tokens.tokenizer import load_tokenizer, quiet_tokenizer
from distill.checkpointing.run_folder import Run, RunError
from distill.modeling import masked_lm
from distill.train import paper_differences, student_card
from distill.train.validation import NAMES

HELDOUT = "heldout.parquet"


class Export(Recipe):
    """The checkpoint to export."""

    step: NonNegativeInt | None = None
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
        **_trained_by(described["recipe"]),
    }
    if rows := checkpoint.facts.get("heldout_rows"):
        pq.write_table(pa.table(rows), out / HELDOUT, compression="zstd")
        facts["heldout"] = _heldout(described, facts["validation"], len(rows["hidden"]))
    facts["differences"] = paper_differences.differences(described["recipe"], facts)
    card = student_card.write(facts, described["recipe"], commit.completed(out), tokenizer.mask_token)
    (out / CARD).write_text(card, encoding="utf-8")
    return facts


def _trained_by(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a run that say which row of an ablation it is."""
    losses = [phase["loss"] or recipe["loss"] for phase in recipe["phases"]] or [recipe["loss"]]
    weights = {term: max(loss[term] for loss in losses) for term in LOSS_TERMS}
    return {"start": recipe["student"]["start"], "loss": weights}


def _heldout(described: Mapping[str, Any], validation: Mapping[str, Any], rows: int) -> str:
    """Identity of the held-out rows and masks of a validation: students with the same one can be compared by row."""
    recipe = described["recipe"]
    tokens = stage.inputs_of("tokens", described["inputs"])
    of_length = tokens.get(f"tokens-{validation.get('seq_len')}", next(iter(tokens.values())))
    return digest({"tokens": of_length, "rows": rows, "seed": recipe["seed"], "masking": recipe["masking"]})


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
