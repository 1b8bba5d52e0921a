"""Copies of model folders with one thing about them changed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from cluster.artifacts import artifact

Weights = dict[str, Tensor]


def with_config(source: Path, folder: Path, **values: Any) -> Path:
    """A copy whose ``config.json`` has these values."""
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, **values}), encoding="utf-8")
    return folder


def with_weights(source: Path, folder: Path, change: Callable[[Weights], Weights]) -> Path:
    """A copy whose weights are what ``change`` makes of them."""
    shutil.copytree(source, folder)
    path = folder / "model.safetensors"
    safetensors.torch.save_file(change(safetensors.torch.load_file(path)), path, metadata={"format": "pt"})
    return folder


def damaged(source: Path, folder: Path, name: str = "model.safetensors") -> Path:
    """A copy of an artifact with one bit of a file flipped, in the middle; its size stays the same."""
    shutil.copytree(source, folder)
    path = folder / name
    contents = bytearray(path.read_bytes())
    contents[len(contents) // 2] ^= 1
    path.write_bytes(contents)
    return folder


def as_artifact(source: Path, out: Path, kind: str, /, **facts: Any) -> Path:
    """An artifact with the files of a folder."""
    with artifact.create(out, kind=kind, inputs={}, recipe={}) as draft:
        shutil.copytree(source, draft.path, dirs_exist_ok=True)
        draft.facts.update(facts)
    return out
