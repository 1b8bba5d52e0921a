"""Checks that a model folder or export is what its files say, before it is trained on, scored, exported or described.

A model artifact is unchanged: its files have the hashes of the manifest. Weights, in any folder, fit ``config.json``.
"""

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.artifacts import artifact, commit
from cluster.artifacts.errors import StageError
from cluster.models import export_spec, model_folder
from cluster.storage import filesystem
from cluster.storage.filesystem import Location
from cluster.telemetry.formatting import plural

_LAYER = re.compile(r"(?:^|\.)layers?\.(\d+)\.")
_ROWS = {
    "vocab_size": re.compile(r"(?:^|\.)embeddings\.word_embeddings\.weight$"),
    "max_position_embeddings": re.compile(r"(?:^|\.)embeddings\.position_embeddings\.weight$"),
}
"""Configuration value to the weight that has so many rows."""


def check(folder: Path) -> None:
    """Check a model folder, an export, or an artifact of either. Hashes a file once per process.

    Raises:
        ArtifactError: a file of the artifact was changed.
        StageError: the folder has no configuration or weights, or they differ in layers, words or positions.
    """
    if (folder / commit.MANIFEST).is_file():
        unchanged(folder)
    if not export_spec.is_export(folder):
        _check_fits(folder, model_folder.raw_configuration(folder), model_folder.shapes(folder))


def unchanged(folder: Path) -> artifact.Artifact:
    """The artifact in a folder, whose files have the hashes of the manifest.

    Raises:
        ArtifactError: it is none, or was changed.
    """
    return artifact.verify(folder, sha256=_sha256)


def _sha256(place: Location) -> str:
    if not isinstance(place, Path):
        return filesystem.file_sha256(place)
    found = place.stat()
    return _sha256_of(place, found.st_size, found.st_mtime_ns, found.st_ino)


@functools.cache
def _sha256_of(path: Path, *stamp: int) -> str:
    """SHA-256 of a file, whose stamp is another one when it has changed."""
    return filesystem.file_sha256(path)


def _check_fits(folder: Path, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
    layers = {int(found[1]) for name in shapes if (found := _LAYER.search(name))}
    said = config.get("num_hidden_layers", config.get("n_layers"))
    pad, words = config.get("pad_token_id"), config.get("vocab_size")
    for name, value in (("layers", said), ("pad_token_id", pad), ("vocab_size", words)):
        if value is not None and not isinstance(value, int):
            raise misfit(folder, f"config.json has {name} {value!r}, which is no whole number")
    if pad is not None and words is not None and not pad < words:
        raise misfit(folder, f"config.json has pad_token_id {pad}, which none of its {words} words has")
    if layers and said is not None and layers != set(range(said)):
        raise misfit(folder, f"config.json has {plural(said, 'layer')}, the weights have {len(layers)}")
    for key, pattern in _ROWS.items():
        rows = {shape[0] for name, shape in shapes.items() if pattern.search(name)}
        if rows and key in config and rows != {config[key]}:
            raise misfit(folder, f"config.json has {key} {config[key]}, the weights have {max(rows)}")


def misfit(folder: Path | str, problem: str) -> StageError:
    """The error about a ``config.json`` that does not fit its weights."""
    return StageError(f"{folder}: {problem}: get the model again, or correct config.json")
