"""The model card of an exported student: what the run and the checkpoint know.

``stillhouse card`` adds what only a report or people know: the training text, scores, license, language.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from cluster.artifacts import stage
from cluster.models import card_text
from cluster.telemetry.formatting import amount, hours, plural
from cluster.telemetry.loss_terms import LOSS_TERMS

_CARD = """---
{metadata}
---

# {name}

{origin}

## Use

{use}

## Intended use

Fine-tune it on a task: classification, similarity, questions about passages. As it is, it fills masked words.
It is no model of facts, and generates no text. `config.json` has the dropout of the teacher's configuration, for
fine-tuning.

## Training

{training}

## What differs from the paper

{differences}

## Held-out rows

| measure | student | teacher | word counts |
|---|---|---|---|
| loss on hidden words, nats | {hidden_loss} | {teacher_hidden_loss} | {counts_hidden_loss} |
| accuracy on hidden words | {accuracy} | {teacher_accuracy} | {counts_accuracy} |
| accuracy on words left visible | {visible_accuracy} | {teacher_visible_accuracy} | |
| accuracy on words replaced by others | {replaced_accuracy} | {teacher_replaced_accuracy} | |
| loss on all masked words, nats | {masked} | {teacher_masked} | {counts_masked} |
| top word agrees with the teacher's (hidden words) | {agreement} | | |

Measured on rows that training never saw ({validation_rows} at most{of_length}), the same masks for all. Word counts
are those of the training rows: the least that a model must beat.

## Results

Not measured yet: `stillhouse card REPORT --student DIR` fills this section, and the metadata above, from a report.

## Limits

The student knows what its text said, errors and prejudice included. Measure it on your own data before you rely on it.

## Citation

{citation}
"""


def write(facts: Mapping[str, Any], recipe: Mapping[str, Any], place: Path, mask_token: str) -> str:
    """The card of a student that will be at ``place``; ``recipe`` is that of its run."""
    name = place.name
    validation = {key: amount(value, ".4f") for key, value in facts["validation"].items()}
    validated_length = facts["validation"].get("seq_len")
    differences = [(one["what"], one["paper"], one["here"]) for one in facts["differences"]]
    return _CARD.format(
        **validation,
        metadata=_metadata(facts, name, mask_token),
        name=name,
        origin=_origin(facts, recipe),
        use=card_text.use(card_text.shown(place), "masked-words"),
        training=card_text.table(("", ""), list(_training(facts, recipe))),
        differences=card_text.table(("", "paper, or its authors' code", "here"), differences),
        validation_rows=recipe["validation_rows"],
        of_length=f", of {validated_length:,} tokens" if validated_length else "",
        citation=card_text.CITATION,
    )


def _origin(facts: Mapping[str, Any], recipe: Mapping[str, Any]) -> str:
    """What the model is, and what it was trained on."""
    loss = recipe["loss"]
    size = f"{facts['layers']} layers and {facts['parameters']:,} parameters"
    start = "layers of its teacher" if facts["start"] == "teacher" else "random weights"
    if not facts["steps"]:
        return f"A model of {size} that was not trained: the {start} as a student starts with them, for comparison."
    used = [term for term in LOSS_TERMS if loss[term]]
    described = f"loss {' + '.join(f'{loss[term]:g} · {term}' for term in used)}"
    if loss["soft"]:
        described += f", temperature {loss['temperature']:g}"
    if phases := sum(phase["loss"] is not None for phase in recipe["phases"]):
        described += f" ({plural(phases, 'phase')} with another loss)"
    if used == ["masked"]:
        return f"A model of {size}, trained with Stillhouse on masked words alone from the {start}; {described}."
    if {"hidden", "relation"} & set(used):
        return (
            f"A student of {size}, distilled with Stillhouse by comparing layers with its teacher (after\nTinyBERT, "
            f"Jiao et al. 2019, and MiniLMv2, Wang et al. 2020); {described}."
        )
    return (
        f"A student of {size}, distilled with Stillhouse by the recipe of\n[DistilBERT]({card_text.PAPER}) (Sanh et "
        f"al. 2019) with the differences listed below; {described}."
    )


def _metadata(facts: Mapping[str, Any], name: str, mask_token: str) -> str:
    results = card_text.masked_word_results(facts["validation"])
    found: dict[str, Any] = {"model_name": name, "eval_results": results, "metrics": ["accuracy"]} if results else {}
    widget = [{"text": text.replace(card_text.MASK, mask_token)} for text in card_text.EXAMPLES]
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="fill-mask",
        tags=["distillation", "masked-lm"],
        widget=widget,
        **found,
    )
    return str(data.to_yaml())


def _training(facts: Mapping[str, Any], recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Hyper-parameters, cost and origin."""
    counts = ((phase["rows_per_step"] or recipe["rows_per_step"], phase["seq_len"]) for phase in recipe["phases"])
    rows = [f"{count:,} rows of {length:,} tokens" for count, length in counts]
    optimizer, masking, lineage = recipe["optimizer"], recipe["masking"], facts["lineage"]
    rows = rows or [f"{recipe['rows_per_step']:,} rows"]
    yield "optimizer steps", f"{facts['steps']:,} of {', then '.join(rows)}"
    yield "tokens seen", f"{facts['tokens']:,}"
    warmup = f"linear warm-up over {optimizer['warmup']:.0%} of the steps"
    yield "learning rate", f"{optimizer['learning_rate']:g}, {warmup}, then linear to 0"
    yield (
        "optimizer",
        (
            f"AdamW, betas {optimizer['beta1']:g} and {optimizer['beta2']:g}, epsilon {optimizer['epsilon']:g}, weight "
            f"decay {optimizer['weight_decay']:g}, gradients clipped to {optimizer['clip']:g}"
        ),
    )
    yield "masked words", f"{masking['share']:.0%} of every row, smoothing {masking['smoothing']:g}"
    yield "start", "the teacher's layers" if recipe["student"]["start"] == "teacher" else "random weights"
    yield "dropout", f"{recipe['student']['dropout']:g}"
    yield "precision, seed", f"{recipe['precision']}, {recipe['seed']}"
    yield "workers", f"{facts['world_size']} × {facts['device']}"
    spent = facts["device_hours"]
    yield "device time of training steps", f"{hours(spent)} ({spent:.3g} device hours)"
    yield "teacher", f"identity `{lineage['teacher'][:12]}`"
    yield "token rows", ", ".join(f"identity `{known[:12]}`" for known in stage.inputs_of("tokens", lineage).values())
    yield "libraries of the export", card_text.versions("deepspeed")
