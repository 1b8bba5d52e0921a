"""What a plain Hugging Face folder says about its model, read without loading it."""

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from safetensors import safe_open

from cluster.artifacts import artifact
from cluster.artifacts.commit import ArtifactError
from cluster.storage import filesystem

_CONFIG = "config.json"


def facts(folder: Path) -> dict[str, Any]:
    """Architecture, layers, width and number of parameters, under the names a model artifact has for them.

    Raises:
        ArtifactError: no ``config.json`` or no safetensors there.
    """
    config = _config(folder)
    return {
        "architecture": next(iter(config.get("architectures") or ()), config.get("model_type")),
        "layers": config.get("num_hidden_layers", config.get("n_layers")),
        "hidden": config.get("hidden_size", config.get("dim")),
        "parameters": sum(_parameters(path) for path in _weights(folder)),
        "source": folder.name,
    }


def weight_bytes(folder: Path) -> int:
    """Bytes of the weight files."""
    return sum(path.stat().st_size for path in _weights(folder))


def identity(folder: Path) -> str:
    """SHA-256 over configuration and weights; what is said about the model in its README is no part of it."""
    files = [folder / _CONFIG, *_weights(folder)]
    return artifact.digest([[path.name, filesystem.file_sha256(path)] for path in files])


def _config(folder: Path) -> Mapping[str, Any]:
    path = folder / _CONFIG
    if not path.is_file():
        raise ArtifactError(f"{folder} is no model: it has no {_CONFIG}; name the folder transformers would load")
    return dict(json.loads(path.read_text(encoding="utf-8")))


def _weights(folder: Path) -> list[Path]:
    found = sorted(folder.glob("*.safetensors"))
    if not found:
        raise ArtifactError(f"{folder} has no weights in safetensors: convert them, or name another folder")
    return found


def _parameters(path: Path) -> int:
    with safe_open(path, framework="numpy") as tensors:
        return sum(prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
