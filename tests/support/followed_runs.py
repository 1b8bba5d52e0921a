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


BESIDE = paths.ROOT / "build" / "consumers"
"""Trackers that ask for older libraries than ours, each with these in a folder of its own."""


def needs(name: str) -> Callable[[Test], Test]:
    """Mark a test of a tracker; it is skipped where that is not installed."""
    installed = (BESIDE / name / ".ready").is_file() or importlib.util.find_spec(name) is not None
    skip = pytest.mark.skipif(not installed, reason=f"{name} is not installed: make test-toolchains installs it")

    def mark(test: Test) -> Test:
        marked: Test = pytest.mark.toolchain(skip(test))
        return marked

    return mark


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


def environment(tracker: str, **more: str) -> dict[str, str]:
    """The variables of a process that uses a tracker."""
    path = [str(paths.ROOT), str(BESIDE / tracker), *filter(None, sys.path)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path), **more}


def follow(run: Path, tracker: str, *options: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    """``stillhouse follow`` in a process of its own."""
    command = [sys.executable, "-m", "distill.follow", str(run), "--to", tracker, *options]
    return subprocess.run(
        command, capture_output=True, text=True, env=environment(tracker, **variables), check=False, timeout=600
    )
