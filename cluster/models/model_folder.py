"""Reads facts about the model in a Hugging Face folder, without loading its weights."""

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from safetensors import safe_open

from cluster.artifacts import artifact, commit
from cluster.artifacts.commit import ArtifactError
from cluster.artifacts.errors import StageError
from cluster.models.export_spec import Head
from cluster.storage import filesystem

if TYPE_CHECKING:
    from transformers import PretrainedConfig

CONFIG = "config.json"

_HEADS: Mapping[str, Head] = {
    "ForMaskedLM": "masked-words",
    "ForSequenceClassification": "classification",
    "ForQuestionAnswering": "question-answering",
}


NO_ANSWER_TASKS = {"squad2", "squad_v2"}
"""SQuAD 2.0 as this project and the Hub call it."""


def configuration(folder: Path) -> "PretrainedConfig":
    """
    Raises:
        StageError: the folder has no ``config.json``.
    """
    # Imported here: reports read folders without transformers.
    from transformers import AutoConfig

    if not (folder / CONFIG).is_file():
        raise StageError(f"{folder} is not a model folder: it has no {CONFIG}; name the folder transformers would load")
    return AutoConfig.from_pretrained(folder, local_files_only=True)


def positions(config: "PretrainedConfig") -> int:
    """Longest input in tokens."""
    return int(config.max_position_embeddings) - position_offset(config.model_type, config.pad_token_id)


def position_offset(model_type: str, pad_token_id: int = 1) -> int:
    """Position embeddings that no token uses: RoBERTa numbers its positions from the padding id + 1."""
    return pad_token_id + 1 if model_type == "roberta" else 0


def head(config: "PretrainedConfig") -> Head | None:
    """The head that ``config.architectures`` names; None for another head, or none."""
    architecture = (config.architectures or [""])[0]
    found = next((head for ending, head in _HEADS.items() if architecture.endswith(ending)), None)
    return "regression" if found == "classification" and config.num_labels == 1 else found


def has_no_answer(folder: Path, config: "PretrainedConfig") -> bool:
    """Whether the model learned that a passage may hold no answer.

    The task in its manifest says so, or ``finetuning_task`` in ``config.json``, where people may write it.
    """
    return bool({_facts(folder).get("task"), getattr(config, "finetuning_task", None)} & NO_ANSWER_TASKS)


def texts(folder: Path) -> Literal[1, 2] | None:
    """Texts of an input of the task that the model was fine-tuned on, by its manifest; None without it."""
    found: Literal[1, 2] | None = _facts(folder).get("texts")
    return found


def _facts(folder: Path) -> Mapping[str, Any]:
    return artifact.read(folder).facts if (folder / commit.MANIFEST).is_file() else {}


def identity(folder: Path) -> str:
    """Identity of the artifact in the folder; without an artifact, a hash of all files."""
    if (folder / commit.MANIFEST).is_file():
        return artifact.read(folder).identity
    return artifact.folder_identity(folder)


def weights_identity(folder: Path) -> str:
    """SHA-256 over configuration and weights. Other files, such as a README, do not change it.

    Raises:
        ArtifactError: the folder has no safetensors.
    """
    files = [folder / CONFIG, *_weights(folder)]
    return artifact.digest([[path.name, filesystem.file_sha256(path)] for path in files])


def facts(folder: Path) -> dict[str, Any]:
    """Architecture, layers, width and number of parameters, named as in the facts of a model artifact.

    Raises:
        ArtifactError: the folder has no ``config.json`` or no safetensors.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise ArtifactError(f"{folder} is not a model folder: it has no {CONFIG}")
    config = json.loads(path.read_text(encoding="utf-8"))
    return {
        "architecture": next(iter(config.get("architectures") or ()), config.get("model_type")),
        "layers": config.get("num_hidden_layers", config.get("n_layers")),
        "hidden": config.get("hidden_size", config.get("dim")),
        "parameters": sum(_parameters(path) for path in _weights(folder)),
        "source": folder.name,
    }


def weight_bytes(folder: Path) -> int:
    """Bytes of the weight files; 0 without any."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _weights(folder: Path) -> list[Path]:
    found = sorted(folder.glob("*.safetensors"))
    if not found:
        raise ArtifactError(f"{folder} has no weights in safetensors: convert them, or name another folder")
    return found


def _parameters(path: Path) -> int:
    with safe_open(path, framework="numpy") as tensors:
        return sum(prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
