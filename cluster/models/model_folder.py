"""Reads facts about the model in a Hugging Face folder, without loading its weights."""

import json
import re
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from safetensors import SafetensorError, safe_open

from cluster.artifacts import artifact, commit
from cluster.artifacts.errors import StageError
from cluster.models.export_spec import Head
from cluster.storage import filesystem
from cluster.telemetry.error_text import first_line

if TYPE_CHECKING:
    from transformers import PretrainedConfig

CONFIG = "config.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
"""The weights in one file, or the list of their files."""

FAMILIES = {
    "bert": False,
    "distilbert": False,
    "electra": False,
    "albert": False,
    "roberta": True,
    "xlm-roberta": True,
    "camembert": True,
}
"""Architectures whose inputs are known: whether one counts its positions from the padding id + 1."""

_HEADS: Mapping[str, Head] = {
    "ForMaskedLM": "masked-words",
    "ForSequenceClassification": "classification",
    "ForQuestionAnswering": "question-answering",
}


_NO_ANSWER_TASK = re.compile(r"(?:[^/]+/)?squad(?:[ _-]?v?2(?:[._]0)?)", re.IGNORECASE)
"""SQuAD 2.0 as this project, its authors and the Hub call it: squad2, SQuAD2.0, rajpurkar/squad_v2."""


def configuration(folder: Path) -> "PretrainedConfig":
    """
    Raises:
        StageError: the folder has no ``config.json``, or one that transformers cannot read.
    """
    # Imported here: reports read folders without transformers.
    from transformers import AutoConfig

    _require_configuration(folder)
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True)
    # Values of another type, such as a list of label names, fail inside transformers.
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StageError(
            f"{folder / CONFIG} cannot be used ({first_line(error)}): correct it, or get the model again"
        ) from None


def positions(config: "PretrainedConfig") -> int:
    """Longest input in tokens.

    Raises:
        StageError: the family is not known here.
    """
    return int(config.max_position_embeddings) - position_offset(config.model_type, config.pad_token_id)


def position_offset(family: str, pad_token_id: int | None = 1) -> int:
    """Position embeddings that no token uses: RoBERTa numbers its positions from the padding id + 1.

    Raises:
        StageError: the family is not known here, or needs a padding id.
    """
    if family not in FAMILIES:
        raise StageError(f"how many tokens a {family} model reads is not known here: use one of {', '.join(FAMILIES)}")
    if not FAMILIES[family]:
        return 0
    if pad_token_id is None:
        raise StageError(f"a {family} model counts its positions from the padding id: write pad_token_id in {CONFIG}")
    return pad_token_id + 1


def has_token_types(config: "PretrainedConfig") -> bool:
    """Whether the model distinguishes the two texts of a pair, and so takes ``token_type_ids``."""
    return config.model_type != "distilbert" and getattr(config, "type_vocab_size", 0) > 1


def head(config: "PretrainedConfig") -> Head | None:
    """The head that ``config.architectures`` names; None for another head, or none."""
    architecture = (config.architectures or [""])[0]
    found = next((head for ending, head in _HEADS.items() if architecture.endswith(ending)), None)
    return "regression" if found == "classification" and config.num_labels == 1 else found


def labels(config: "PretrainedConfig") -> list[str]:
    """Names of a classifier's labels, in the order of its outputs; ``LABEL_1`` for a second one without a name."""
    return [str(config.id2label.get(number, f"LABEL_{number}")) for number in range(config.num_labels)]


def has_no_answer(folder: Path, config: "PretrainedConfig") -> bool:
    """Whether the model learned that a passage may hold no answer.

    The task in its manifest says so, or ``finetuning_task`` in ``config.json``, where people may write it.
    """
    said = (_facts(folder).get("task"), getattr(config, "finetuning_task", None))
    return any(isinstance(name, str) and _NO_ANSWER_TASK.fullmatch(name.strip()) for name in said)


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
        StageError: the folder has no safetensors.
    """
    files = [folder / CONFIG, *weights(folder)]
    return artifact.digest([[path.name, filesystem.file_sha256(path)] for path in files])


def facts(folder: Path) -> dict[str, Any]:
    """Architecture, layers, width and number of parameters, named as in the facts of a model artifact.

    Raises:
        StageError: the folder has no ``config.json`` or no safetensors.
    """
    config = raw_configuration(folder)
    return {
        "architecture": next(iter(config.get("architectures") or ()), config.get("model_type")),
        "layers": config.get("num_hidden_layers", config.get("n_layers")),
        "hidden": config.get("hidden_size", config.get("dim")),
        "parameters": sum(map(prod, shapes(folder).values())),
        "source": folder.name,
    }


def raw_configuration(folder: Path) -> dict[str, Any]:
    """The values that ``config.json`` writes down; transformers knows the defaults of the others.

    Raises:
        StageError: there is none, or it is no JSON object.
    """
    _require_configuration(folder)
    return _json_object(folder / CONFIG)


def _json_object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StageError(f"{path} is not JSON ({first_line(error)}): get the model again") from None
    if not isinstance(found, dict):
        raise StageError(f"{path} is no JSON object: get the model again")
    return found


def _require_configuration(folder: Path) -> None:
    if not (folder / CONFIG).is_file():
        raise StageError(f"{folder} is not a model folder: it has no {CONFIG}; name the folder transformers would load")


def has_weights(folder: Path) -> bool:
    return (folder / WEIGHTS).is_file() or (folder / INDEX).is_file()


def weight_bytes(folder: Path) -> int:
    """Bytes of the weight files; 0 without any."""
    return sum(path.stat().st_size for path in weights(folder)) if has_weights(folder) else 0


def weights(folder: Path) -> list[Path]:
    """The files of weights that transformers loads, by name.

    Raises:
        StageError: there are none, or the index names one that is not there.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        raise StageError(f"{folder} has no weights in safetensors: {_remedy(folder)}")
    listed = _json_object(folder / INDEX).get("weight_map", {})
    if not listed:
        raise StageError(f"{folder / INDEX} names no weights: get the model again")
    found = [folder / name for name in sorted(set(listed.values()))]
    if absent := [path.name for path in found if not path.is_file()]:
        raise StageError(f"{folder} lacks {absent[0]}, which its {INDEX} names: get the model again")
    return found


def _remedy(folder: Path) -> str:
    if not any(folder.glob("pytorch_model*.bin")):
        return "name the folder of a model"
    kind = next(iter(raw_configuration(folder).get("architectures") or ()), "AutoModelForMaskedLM")
    convert = f"transformers.{kind}.from_pretrained('{folder}').save_pretrained('NEW-FOLDER')"
    return (
        "it has pickled ones, which can run code and are not read; convert a copy that you trust with "
        f'python -c "import transformers; {convert}", and copy the files of the tokenizer'
    )


def shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Name to shape of all weights, from the heads of the files.

    Raises:
        StageError: there are none, or a file is cut.
    """
    found: dict[str, tuple[int, ...]] = {}
    for path in weights(folder):
        try:
            with safe_open(path, framework="numpy") as tensors:
                found |= {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise StageError(f"{path} is not a whole file of weights ({error}): get the model again") from None
    return found
