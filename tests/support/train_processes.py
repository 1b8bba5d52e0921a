"""Run ``distill.train`` from the command line: in one process, or on several workers under torchrun."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from cluster.telemetry.metrics_log import read_metrics

RECIPE: dict[str, Any] = {
    "steps": 6,
    "rows_per_step": 8,
    "optimizer": {"learning_rate": 2e-3},
    "validation_rows": 13,
    "placement": {"rows_per_device": 2, "log_every": 2, "save_every": 3, "validate_every": 3},
}

FORTY_STEPS = ("steps=40", "placement.log_every=1", "placement.save_every=5", "placement.validate_every=20")


def command(folder: Path, out: Path, workers: int, *settings: str) -> list[str]:
    """``python -m distill.train`` on the artifacts that ``tokens_artifact.make(folder)`` made."""
    starter = [sys.executable, "-m"]
    if workers > 1:
        starter += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(workers), "-m"]
    recipe = folder / "recipe.toml"
    if not recipe.exists():
        recipe.write_text(toml(RECIPE), encoding="utf-8")
    inputs = ["--tokens", str(folder / "tokens"), "--teacher", str(folder / "teacher"), "--out", str(out)]
    changes = [part for setting in settings for part in ("--set", setting)]
    return [*starter, "distill.train", str(recipe), *inputs, *changes]


def environment() -> dict[str, str]:
    clean = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return {**clean, "OMP_NUM_THREADS": "1"}


def train(folder: Path, out: Path, workers: int = 1, *settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(folder, out, workers, *settings), capture_output=True, text=True, env=environment(), check=False
    )


def curve(run: Path) -> list[float]:
    """Total losses of training steps and validations, in order."""
    return [line["total"] for line in read_metrics(run / "metrics.jsonl")]


def toml(values: dict[str, Any]) -> str:
    """Nested plain values as TOML with inline tables. JSON scalars are valid TOML."""
    return "".join(f"{key} = {_inline(value)}\n" for key, value in values.items())


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_inline(inner)}" for key, inner in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(_inline(inner) for inner in value) + "]"
    return json.dumps(value)
