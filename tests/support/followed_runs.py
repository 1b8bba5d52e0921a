"""Run folders with invented metrics, and followers of them in processes of their own."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import paths
import pytest

from cluster.telemetry.metrics_log import MetricsLog

Test = TypeVar("Test", bound=Callable[..., Any])


def needs(*names: str) -> Callable[[Test], Test]:
    """Mark a test of these trackers; it is skipped where one is not installed."""
    absent = [name for name in names if not _installed(name)]
    advice = (
        "make test-toolchains does" if {*absent} <= {"tensorboard", "wandb"} else "it cannot be, beside our lock file"
    )
    skip = pytest.mark.skipif(bool(absent), reason=f"{', '.join(absent)} is not installed: {advice}")

    def mark(test: Test) -> Test:
        marked: Test = pytest.mark.toolchain(skip(test))
        return marked

    return mark


def _installed(name: str) -> bool:
    # The extra is the client of MLflow alone; its server asks for an older pyarrow.
    wanted = ("mlflow", "sqlalchemy", "alembic", "huey") if name == "mlflow-server" else (name,)
    return all(importlib.util.find_spec(each) is not None for each in wanted)


def write_run(folder: Path, steps: int, upto: int | None = None, resume_at: int = 0) -> Path:
    """Write the metrics of a run of ``steps`` steps up to ``upto``, as the loop writes them; ``total`` is 10 / step."""
    folder.mkdir(parents=True, exist_ok=True)
    recipe = {"recipe": {"loss": {"soft": 5.0}, "seed": 1, "precision": "bf16", "phases": []}, "inputs": {}}
    (folder / "recipe.json").write_text(json.dumps(recipe))
    log = MetricsLog(folder / "metrics.jsonl", resume_at)
    for step in range(resume_at + 1, (upto or steps) + 1):
        log.write(kind="train", step=step, steps=steps, total=10.0 / step, soft=None)
        if step % 3 == 0:
            log.write(kind="validation", step=step, steps=steps, accuracy=step / 10)
    log.close()
    return folder


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(paths.ROOT), *filter(None, sys.path)]), **more}


def follow(run: Path, tracker: str, *options: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    """``stillhouse follow`` in a process of its own."""
    command = [sys.executable, "-m", "distill.follow", str(run), "--to", tracker, *options]
    return subprocess.run(
        command, capture_output=True, text=True, env=environment(**variables), check=False, timeout=600
    )
