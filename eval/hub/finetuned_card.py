"""The model card of a fine-tuned model: its scores are its own, so they are its ``model-index``."""

from collections.abc import Mapping
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from cluster.artifacts.artifact import Artifact
from cluster.models import card_text
from cluster.models.export_spec import Head
from cluster.telemetry.formatting import plain, plural
from eval.hub.card_metadata import CardFacts
from eval.hub.card_sections import METRICS, scored_set
from eval.tasks.definitions import TASKS

BEST = "best_"
_PERCENT = ("rajpurkar/squad", "rajpurkar/squad_v2")
"""Data sets whose metrics are in percent by habit; all others are shares of 1."""


def head(task: str) -> Head:
    """The head of a model of this task."""
    known = TASKS[task]
    if known.answers is not None:
        return "question-answering"
    return "regression" if known.label_range is not None else "classification"


def results(facts: Mapping[str, Any]) -> list[EvalResult]:
    """Every metric of the fine-tuned model, median over seeds, for ``model-index``."""
    found = []
    for metric, spread in facts["metrics"].items():
        if metric.startswith(BEST):
            continue  # uses a threshold that was chosen on the same examples
        named = scored_set(facts["task"], metric)
        scale = 1.0 if named.dataset in _PERCENT else 0.01
        found.append(
            EvalResult(
                task_type=named.task_type,
                dataset_name=f"{named.title} (subset)" if facts["subset"] else named.title,
                dataset_type=named.dataset,
                dataset_config=named.configuration,
                dataset_split=named.split,
                metric_type=METRICS.get(named.metric, named.metric),
                metric_name=named.metric.replace("_", " "),
                metric_value=round(spread["median"] * scale, 4),
            )
        )
    return found


def metadata(made: Artifact, title: str, before: Mapping[str, Any], stated: CardFacts) -> ModelCardData:
    """The card's metadata: stated facts override those of the card. The stated base is the teacher's."""
    known = {key: value for key, value in before.items() if key != "model-index"}
    found = results(made.facts)
    task = "question-answering" if head(made.facts["task"]) == "question-answering" else "text-classification"
    dataset = scored_set(made.facts["task"], made.facts["metric"]).dataset
    known |= {
        "library_name": "transformers",
        "pipeline_tag": known.get("pipeline_tag", task),
        "license": stated.license or known.get("license"),
        "language": list(stated.language or ()) or known.get("language"),
        "datasets": known.get("datasets") or ([dataset] if "/" in dataset else None),
        "metrics": sorted({result.metric_type for result in found}),
        "tags": known.get("tags") or ["distillation"],
        "model_name": title,
        "eval_results": found,
    }
    return ModelCardData(**{key: value for key, value in known.items() if value})


def opening(made: Artifact, title: str, place: str) -> str:
    """The text of a new card."""
    facts = made.facts
    named = scored_set(facts["task"], facts["metric"])
    seeds = "one seed" if facts["low"] == facts["high"] else "the median over seeds, with their range"
    rows = [
        (name.replace("_", " "), f"{each['median']:.1f}", f"{each['low']:.1f} to {each['high']:.1f}")
        for name, each in facts["metrics"].items()
        if not name.startswith(BEST)
    ]
    settings = [
        (name.replace("_", " "), plain(value)) for name, value in facts["settings"].items() if value is not None
    ]
    subset = " A part of the task's examples: not comparable with published scores." if facts["subset"] else ""
    parts = [
        f"# {title}\n\nFine-tuned with Stillhouse on {named.title}, {plural(facts['train_examples'], 'example')}.",
        f"## {card_text.USE}\n\n{card_text.use(place, head(facts['task']), facts['texts'])}",
        f"## {card_text.RESULTS}\n\n{card_text.table(('metric', 'percent', 'range'), rows)}\n\n"
        f"On {facts['dev_examples']:,} examples that training never saw; {seeds}.{subset}",
        f"## Training\n\n{card_text.table(('', ''), settings)}",
        "## Limits\n\nIt knows what its training text and the task's examples said, errors and prejudice included.",
        f"## Citation\n\n{card_text.CITATION}",
    ]
    return "\n\n".join(parts)
