"""Shapes of models, without their weights: from a folder's configuration, from a recipe, or of well-known teachers."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill.costs import Family, Shape

_BASE, _LARGE = (12, 768, 3072, 12), (24, 1024, 4096, 16)
KNOWN = {
    "bert-base-uncased": Shape("bert-base-uncased", "bert", *_BASE, vocabulary=30_522),
    "bert-base-cased": Shape("bert-base-cased", "bert", *_BASE, vocabulary=28_996),
    "bert-large-uncased": Shape("bert-large-uncased", "bert", *_LARGE, vocabulary=30_522),
    "bert-large-cased": Shape("bert-large-cased", "bert", *_LARGE, vocabulary=28_996),
    "roberta-base": Shape("roberta-base", "roberta", *_BASE, vocabulary=50_265, positions=514),
    "roberta-large": Shape("roberta-large", "roberta", *_LARGE, vocabulary=50_265, positions=514),
}
DEFAULT = "bert-base-uncased"


class ShapeError(ValueError):
    """The shape of a model cannot be found out."""


def find(source: str) -> Shape:
    """The shape of a folder with a ``config.json``, or of a model known by its name or hub id.

    Raises:
        ShapeError: neither, or a configuration that no teacher has.
    """
    if (Path(source) / "config.json").is_file():
        return of_folder(Path(source))
    name = source.rpartition("/")[2]
    if name in KNOWN:
        return KNOWN[name]
    raise ShapeError(
        f"the shape of teacher {source} is not known here: give --teacher DIR (a folder with its config.json) or "
        f"--teacher NAME with one of {', '.join(KNOWN)}"
    )


def of_folder(folder: Path) -> Shape:
    """The shape that a Hugging Face ``config.json`` describes.

    Raises:
        ShapeError: it cannot be read, lacks a number, or is of another architecture.
    """
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ShapeError(f"{folder / 'config.json'} cannot be read: {error}") from None
    return of_config(values, folder.name)


def of_config(values: Mapping[str, Any], name: str) -> Shape:
    """The shape that the values of a configuration describe.

    Raises:
        ShapeError: another architecture, or a number is missing.
    """
    family = values.get("model_type")
    if family not in ("bert", "roberta", "distilbert"):
        raise ShapeError(f"{name} is a {family} model: use a BERT or a RoBERTa")
    keys = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads")
    keys = ("n_layers", "dim", "hidden_dim", "n_heads") if family == "distilbert" else keys
    try:
        numbers = [int(values[key]) for key in (*keys, "vocab_size", "max_position_embeddings")]
    except KeyError as error:
        raise ShapeError(f"the configuration of {name} has no {error.args[0]}") from None
    known: Family = family
    return Shape(name, known, *numbers)
