"""Shapes of models without weights, from a folder's configuration or of well-known teachers."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from cluster.artifacts import shipped
from cluster.artifacts.recipe_errors import nearest
from cluster.models import model_check, model_folder

Family = Literal["bert", "roberta", "distilbert"]


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a model that determine its cost."""

    name: str
    family: Family
    layers: int
    hidden: int
    feed_forward: int
    heads: int
    vocabulary: int
    positions: int = 512
    padding: int = 1
    """Padding id, from which a RoBERTa counts its positions."""

    @property
    def longest_row(self) -> int:
        """Most tokens in a row."""
        return self.positions - model_folder.position_offset(self.family, self.padding)

    @property
    def parameters(self) -> int:
        """Parameters of the masked language model without pooler; tied ones count once."""
        hidden, inner = self.hidden, self.feed_forward
        token_types = {"bert": 2, "roberta": 1, "distilbert": 0}[self.family]
        embeddings = (self.vocabulary + self.positions + token_types + 2) * hidden
        layer = 4 * (hidden + 1) * hidden + (hidden + 1) * inner + (inner + 1) * hidden + 4 * hidden
        head = (hidden + 1) * hidden + 2 * hidden + self.vocabulary
        return embeddings + self.layers * layer + head


def student_shape(teacher: ModelShape, layers: int) -> ModelShape:
    """The shape of the student that ``distill.modeling.student`` makes from ``layers`` layers of a teacher."""
    family: Family = "distilbert" if teacher.family == "bert" else teacher.family
    return replace(teacher, name=f"{layers} of its layers", family=family, layers=layers)


_BASE, _LARGE = (12, 768, 3072, 12), (24, 1024, 4096, 16)
KNOWN = {
    "bert-base-uncased": ModelShape("bert-base-uncased", "bert", *_BASE, vocabulary=30_522),
    "bert-base-cased": ModelShape("bert-base-cased", "bert", *_BASE, vocabulary=28_996),
    "bert-large-uncased": ModelShape("bert-large-uncased", "bert", *_LARGE, vocabulary=30_522),
    "bert-large-cased": ModelShape("bert-large-cased", "bert", *_LARGE, vocabulary=28_996),
    "roberta-base": ModelShape("roberta-base", "roberta", *_BASE, vocabulary=50_265, positions=514),
    "roberta-large": ModelShape("roberta-large", "roberta", *_LARGE, vocabulary=50_265, positions=514),
}
DEFAULT = "bert-base-uncased"


class ShapeError(ValueError):
    """The shape of a model is unknown or not supported."""


def find(source: str) -> ModelShape:
    """The shape of a folder with a ``config.json``, of a shipped teacher, or of a well-known model by name or hub id.

    Raises:
        ShapeError: neither, or an unsupported configuration.
    """
    folder = Path(shipped.place(source))
    if (folder / "config.json").is_file():
        return of_folder(folder)
    name = source.rpartition("/")[2]
    if name in KNOWN:
        return KNOWN[name]
    known = [*KNOWN, *shipped.models()]
    if near := nearest(name, known):
        raise ShapeError(f"the shape of teacher {source} is not known here: did you mean {near}?")
    raise ShapeError(
        f"the shape of teacher {source} is not known here: give --teacher DIR (a folder with its config.json) or "
        f"--teacher NAME with one of {', '.join(known)}"
    )


def of_folder(folder: Path) -> ModelShape:
    """The shape in the ``config.json`` of a folder, which may have no weights.

    Raises:
        ArtifactError: a file of the artifact in the folder was changed.
        StageError: its weights do not fit its configuration.
        ShapeError: unreadable, incomplete, or of another architecture.
    """
    if model_folder.has_weights(folder):
        model_check.check(folder)
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ShapeError(f"{folder / 'config.json'} cannot be read: {error}") from None
    return of_config(values, folder.name)


def of_config(values: Mapping[str, Any], name: str) -> ModelShape:
    """The shape in the values of a configuration.

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
    padding = values.get("pad_token_id")
    numbers.append(1 if padding is None else int(padding))
    return ModelShape(name, known, *numbers)
