"""What an export loses on its task: the scores of model and export on the same development set.

The stage ``eval.score`` does the scoring; packages run each other's stages by name.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import PositiveInt

from cluster.artifacts import artifact, commit, errors, registry
from cluster.artifacts.recipe import Recipe

SCORING = "eval.score"
# In fp32 padding changes nothing, so the model is scored in batches. An export gets one row at a time, as in use.
BATCH = 16


class Scored(Recipe):
    """The examples to score; the defaults are in the manifest of the fine-tuned model."""

    task: str | None = None
    """Task of ``--data``; by default the one the model was fine-tuned on."""
    max_length: PositiveInt | None = None
    """Most tokens of an example; by default that of the fine-tuning."""
    limit: PositiveInt | None = None
    """At most this many examples of each development set, the same ones for model and export."""


def compare(scored: Scored, model: Path, export: Path, positions: int, data: Path) -> dict[str, Any]:
    """Scores of a model folder and of an export of it that reads ``positions`` tokens, in percent.

    Raises:
        StageError: neither recipe nor model names the task.
        ExamplesError: the data does not fit the task.
    """
    task, max_length = _task(scored, model)
    shortened = positions if max_length is None else min(max_length, positions)
    with tempfile.TemporaryDirectory() as place:
        ours = _score(task, max_length, scored.limit, BATCH, model, data, Path(place) / "model")
        theirs = _score(task, shortened if max_length else None, scored.limit, 1, export, data, Path(place) / "export")
    return {
        "task": task,
        "metric": ours["metric"],
        "model": ours["score"],
        "export": theirs["score"],
        "difference": theirs["score"] - ours["score"],
        "examples": ours["examples"],
        "subset": ours["subset"],
        "max_length": theirs["max_length"],
    }


def check(found: Mapping[str, Any], most: float, what: str, keeps: bool = False) -> None:
    """Refuse an export that loses too much; ``keeps`` says that its recipe can keep layers in float.

    Raises:
        StageError: it loses more than ``most`` points, or has no score.
    """
    if not -found["difference"] <= most:
        advice = "keep its most sensitive layers in float (stillhouse sensitivity names them), or " if keeps else ""
        raise errors.StageError(
            f"{what} loses {-found['difference']:.2f} points of {found['task']} ({found['model']:.2f} to "
            f"{found['export']:.2f}), tolerance.score allows {most:g}: {advice}raise tolerance.score if that will do"
        )


def _task(scored: Scored, model: Path) -> tuple[str, int | None]:
    """Name of the task, and the most tokens of an example if the recipe or the model has it."""
    facts = artifact.read(model).facts if (model / commit.MANIFEST).is_file() else {}
    task = scored.task or facts.get("task")
    if task is None:
        raise errors.StageError(f'{model} does not say what it was fine-tuned on: write score.task, for example "mrpc"')
    return task, scored.max_length or facts.get("settings", {}).get("max_length")


def _score(
    task: str, max_length: int | None, limit: int | None, batch: int, model: Path, data: Path, out: Path
) -> Mapping[str, Any]:
    values = {"task": task, "max_length": max_length, "limit": limit, "batch": batch}
    made = registry.execute(SCORING, values, {"model": model, "data": data}, out)
    assert made is not None
    return made.facts
