"""What an export costs on the task it was trained for: the score of model and export on the same development set.

The scoring itself is the stage ``eval.score``, reached by its name: packages meet through stages and directories only.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import PositiveInt

from cluster.artifacts import artifact, commit, errors, registry, stage
from cluster.artifacts.recipe import Recipe

SCORING = "eval.score"
# In fp32 padding changes nothing, so the model is scored in batches; an export answers one row at a time, as it will.
BATCH = 16


class Scored(Recipe):
    """On what a score is measured; what a fine-tuned model says of itself is taken where a value is left out."""

    task: str | None = None
    max_length: PositiveInt | None = None
    limit: PositiveInt | None = None
    """At most this many examples of each development set, the same ones for model and export."""


def compare(scored: Scored, model: Path, export: Path, positions: int, data: Path) -> dict[str, Any]:
    """Scores of a model folder and of an export of it that reads ``positions`` tokens, in percent.

    Raises:
        StageError: nothing says which task the model was trained on.
        ExamplesError: the data is not what the task needs.
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
    """Refuse an export whose score fell too far; ``keeps`` where its recipe can keep layers in float.

    Raises:
        StageError: it fell by more than ``most`` points, or is no number.
    """
    if not -found["difference"] <= most:
        advice = "keep its most sensitive layers in float (stillhouse sensitivity names them), or " if keeps else ""
        raise errors.StageError(
            f"{what} loses {-found['difference']:.2f} points of {found['task']} ({found['model']:.2f} to "
            f"{found['export']:.2f}), tolerance.score allows {most:g}: {advice}raise tolerance.score if that will do"
        )


def _task(scored: Scored, model: Path) -> tuple[str, int | None]:
    """Name of the task, and the longest example in tokens where something says it."""
    facts: Mapping[str, Any] = {}
    if (model / commit.MANIFEST).is_file():
        facts = artifact.read(model).facts
    task = scored.task or facts.get("task")
    if task is None:
        raise errors.StageError(f'{model} does not say what it was fine-tuned on: write score.task, for example "mrpc"')
    return task, scored.max_length or facts.get("settings", {}).get("max_length")


def _score(
    task: str, max_length: int | None, limit: int | None, batch: int, model: Path, data: Path, out: Path
) -> Mapping[str, Any]:
    scoring = registry.find(SCORING)
    values = {"task": task, "max_length": max_length, "limit": limit, "batch": batch}
    made = stage.execute(scoring, scoring.recipe.of(values), {"model": model, "data": data}, out)
    assert made is not None
    return made.facts
