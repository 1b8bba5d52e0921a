"""Describes an exported model: everything that a caller needs.

In addition to the files of the model and the tokenizer, an export has ``runtime.json``::

    {"format": "int8", "runtime": "onnxruntime", "files": {"any": "model.onnx"}, "head": "classification",
     "inputs": ["input_ids", "attention_mask"], "outputs": [["logits", "classes"]],
     "positions": 512, "pad": 0, "vocab_size": 30522, "parameters": 66955010, "rows": "any",
     "texts": 1, "no_answer": false}

``files`` names a file for any length, or one per length: ``{"64": "model_64.tflite", …}``.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from cluster.artifacts.errors import StageError
from cluster.storage.filesystem import write_json

FILE = "runtime.json"
ANY = "any"

Layout: TypeAlias = Literal["classes", "words", "positions"]
"""What an output holds: ``[batch, classes]``, ``[batch, length, vocabulary]``, or ``[batch, length]``."""

Head: TypeAlias = Literal["masked-words", "classification", "regression", "question-answering"]


@dataclass(frozen=True)
class Exported:
    """Description of an export."""

    format: str
    """Its name in reports: ``onnx``, ``int8``, ``openvino-int8`` …"""
    runtime: str
    """A key of :data:`cluster.models.runtimes.RUNTIMES`, or ``coreml``."""
    files: Mapping[str, str]
    """Files by length in tokens, or ``any``."""
    head: str
    inputs: tuple[str, ...]
    """Names of the int64 inputs ``[rows, length]``, in order."""
    outputs: Mapping[str, Layout]
    """Names, in order, and layouts."""
    positions: int
    """Longest input in tokens."""
    pad: int
    """Id of the padding token."""
    vocab_size: int
    parameters: int
    rows: Literal["any", "one"] = "any"
    """Whether it takes batches, or one row at a time."""
    texts: Literal[1, 2] | None = None
    """Texts of an input of a classifier: one or a pair; None where the model does not say."""
    no_answer: bool = False
    """Whether it learned that a passage may hold no answer (SQuAD 2.0)."""

    def write(self, folder: Path) -> None:
        # A list, because write_json sorts keys, and some runtimes know outputs only by their order.
        write_json(folder / FILE, {**asdict(self), "outputs": list(self.outputs.items())})

    @property
    def lengths(self) -> tuple[int, ...] | None:
        """The lengths it takes, ascending; None for any up to ``positions``."""
        return None if ANY in self.files else tuple(sorted(map(int, self.files)))

    def bytes(self, folder: Path) -> int:
        """Bytes of all files of the model, including external data and OpenVINO's ``.bin``."""
        stems = {(folder / name).with_suffix("") for name in self.files.values()}
        found = {path for stem in stems for path in stem.parent.iterdir() if path.name.startswith(f"{stem.name}.")}
        inside = (each for path in found if path.is_dir() for each in path.rglob("*") if each.is_file())
        return sum(path.stat().st_size for path in (*inside, *(path for path in found if path.is_file())))


def read(folder: Path) -> Exported:
    """The description in an export's folder.

    Raises:
        StageError: the folder has no description.
    """
    path = folder / FILE
    if not path.is_file():
        raise StageError(
            f"{folder} is not an export of this version, it has no {FILE}: export the model again, "
            "for example with stillhouse onnx-export"
        )
    values = json.loads(path.read_text(encoding="utf-8"))
    return Exported(**{**values, "inputs": tuple(values["inputs"]), "outputs": dict(values["outputs"])})


def is_export(folder: Path) -> bool:
    return (folder / FILE).is_file()
