"""Exports a checkpoint of a run as a student: a folder for transformers, with a model card.

The folder holds ``config.json``, ``model.safetensors``, the tokenizer and ``README.md``, and needs only transformers:
``AutoModelForMaskedLM.from_pretrained(folder)``.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import PositiveInt

from cluster.artifacts import stage
from cluster.artifacts.artifact import digest
from cluster.artifacts.commit import CARD
from cluster.artifacts.recipe import Recipe
from cluster.models import model_tokenizer
from cluster.telemetry.formatting import amount
from cluster.tokens.tokenizer import load_tokenizer, quiet_tokenizer
from distill.checkpointing.run_folder import Run, RunError
from distill.modeling import masked_lm
from distill.train import paper_differences
from distill.train.validation import NAMES

_CARD = """---
library_name: transformers
pipeline_tag: fill-mask
tags:
- distillation
- masked-lm
---

# {architecture}, {layers} layers

A student of {layers} layers and {parameters:,} parameters, distilled with Stillhouse by the recipe of DistilBERT
(Sanh et al. 2019, arXiv 1910.01108) with the differences listed below{weights}.

```python
from transformers import AutoModelForMaskedLM, AutoTokenizer

student = AutoModelForMaskedLM.from_pretrained("this folder")
tokenizer = AutoTokenizer.from_pretrained("this folder")
```

## Training

| | |
|---|---|
| optimizer steps | {steps:,} of {rows} |
| tokens seen | {tokens:,} |
| precision | {precision} |
| workers | {world_size} × {device} |
| device hours of training steps | {device_hours:.3g} |
| teacher | identity `{teacher}` |
| token rows | identity `{token_rows}` |

## What differs from the paper

| | paper, or its authors' code | here |
|---|---|---|
{differences}

`config.json` has the dropout of the teacher's configuration, for fine-tuning.

## Held-out rows

| measure | student | teacher |
|---|---|---|
| masked-word loss, nats | {masked} | {teacher_masked} |
| masked-word accuracy | {accuracy} | {teacher_accuracy} |
| top word agrees with the teacher's | {agreement} | |

Measured on rows that training never saw ({validation_rows} at most{of_length}), the same masks for both.

## Results

Not measured yet: `stillhouse card REPORT --student DIR` fills this section, and the metadata above, from a report.

## Limits

The student knows what its corpus said, errors and prejudice included, and is meant to be fine-tuned.
"""


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
    model_tokenizer.save_beside(load_tokenizer(source.path), model.config, out)
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
    (out / CARD).write_text(_card(facts, described["recipe"]), encoding="utf-8")
    return facts


def identity(path: Path) -> str:
    """Identity of a run in its present state: its recipe, inputs and checkpoints."""
    run = Run(path)
    described = run.recipe()
    checkpoints = [{"step": found.step, "files": found.facts["files"]} for found in run.checkpoints()]
    return digest({"described": described, "checkpoints": checkpoints})


def _card(facts: Mapping[str, Any], recipe: Mapping[str, Any]) -> str:
    validation = {key: amount(value, ".4f") for key, value in facts["validation"].items()}
    validated_length = facts["validation"].get("seq_len")
    loss = recipe["loss"]
    counts = ((phase["rows_per_step"] or recipe["rows_per_step"], phase["seq_len"]) for phase in recipe["phases"])
    rows = [f"{count:,} rows of {length:,} tokens" for count, length in counts]
    terms = " + ".join(f"{loss[term]:g} · {term}" for term in ("soft", "masked", "cosine"))
    return _CARD.format(
        **{key: facts[key] for key in ("architecture", "layers", "parameters", "steps", "tokens", "device")},
        **{key: recipe[key] for key in ("precision", "validation_rows")},
        **validation,
        rows=", then ".join(rows) or f"{recipe['rows_per_step']:,} rows",
        of_length=f", of {validated_length:,} tokens" if validated_length else "",
        weights=f"; loss {terms}, temperature {loss['temperature']:g}",
        differences="\n".join(f"| {one['what']} | {one['paper']} | {one['here']} |" for one in facts["differences"]),
        world_size=facts["world_size"],
        device_hours=facts["device_hours"],
        teacher=facts["lineage"]["teacher"][:12],
        token_rows="`, `".join(known[:12] for known in stage.inputs_of("tokens", facts["lineage"]).values()),
    )


STAGE = stage.Stage(
    name="distill.export",
    run=run,
    recipe=Export,
    inputs={"run": stage.Role((stage.FOLDER,), identify=identity)},
    produces="student",
    subject="run",
)
