"""A pipeline that runs from text to report in a minute, and the environment to start it in."""

import copy
import json
import os
from pathlib import Path
from typing import Any

import tiny
from train_processes import toml

_TRAINING: dict[str, Any] = {
    "steps": 4,
    "rows_per_step": 8,
    "validation_rows": 8,
    "placement": {"workers": 2, "rows_per_device": 4, "log_every": 1, "save_every": 2, "validate_every": 2},
}


def values(folder: Path) -> dict[str, Any]:
    """Recipe of a pipeline: two labelled sources, a teacher of four layers and a student of two."""
    sources = []
    for number, name in enumerate(("river", "mountain")):
        path = tiny.corpus(folder / name, documents=60, seed=number)
        files = sorted(path.rglob("*.jsonl"))
        sources.append({"kind": "jsonl", "name": name, "path": str(files[0])})
    return copy.deepcopy(
        {
            "cpus": 2,
            "corpus": {"sources": sources},
            "tokens": {
                "seq_len": 32,
                "heldout": 0.2,
                "tokenizer": {"kind": "wordpiece", "vocab_size": 300},
                "placement": {"actors": 1},
            },
            "teacher": {
                "architecture": {"layers": 4, "hidden": 32, "heads": 2, "feed_forward": 64, "positions": 64},
                "train": {**_TRAINING, "loss": {"soft": 0.0, "cosine": 0.0}},
            },
            "train": _TRAINING,
        }
    )


def measured(folder: Path) -> dict[str, Any]:
    """:func:`values` plus an ablation, probes, scores, exports and latency."""
    return values(folder) | {
        "ablations": {"no-teacher": {"loss": {"soft": 0.0, "cosine": 0.0}, "student": {"start": "random"}}},
        "suite": {
            "tasks": {"provenance": {}},
            "provenance": {"labels": 2, "passages_per_label": 10, "words": 8},
            "finetune": {"epochs": 1, "batch": 8},
            "second_step": {},
            "sweep": {},
            "probes": {"tasks": ["provenance"]},
            "exports": {"task": "provenance", "latency": {"lengths": [8], "threads": [1], "repeats": 5, "warmup": 1}},
        },
    }


def write(path: Path, pipeline: dict[str, Any]) -> Path:
    path.write_text(toml(pipeline), encoding="utf-8")
    return path


def environment(**more: str) -> dict[str, str]:
    """This process's environment without the cluster that it is connected to."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_") or "niceness" in key}
    return {**kept, "OMP_NUM_THREADS": "1", **more}


def report(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "report" / "report.json").read_text(encoding="utf-8"))
    return found
