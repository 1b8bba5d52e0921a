"""The names that a data set declares for the numbers in its label columns, from wherever it keeps them."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import datasets
import huggingface_hub
import yaml
from datasets.config import DATASETDICT_INFOS_FILENAME
from datasets.info import DatasetInfosDict

from cluster.readers import whole_files
from cluster.telemetry.error_text import first_line
from eval.tasks.definitions import Task
from eval.tasks.file_readers import ExamplesError

LABEL_NAMES = "labels.json"
CARD = "README.md"

Names: TypeAlias = Mapping[str, Sequence[str]]
"""For each column the names of its numbers, in the order of the numbers."""


def of(features: Mapping[str, Any]) -> Names:
    """Those of the ``ClassLabel`` columns of a data set."""
    return {name: feature.names for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)}


def inside(path: Path) -> Names:
    """Those in the metadata that ``datasets`` writes into Parquet and Arrow files; none for other files.

    Raises:
        ExamplesError: the metadata is malformed.
    """
    if whole_files.form(path.name) not in (".parquet", ".arrow"):
        return {}
    schema = whole_files.schema(str(path))
    if b"huggingface" not in (schema.metadata or {}):
        return {}
    try:
        return of(datasets.Features.from_arrow_schema(schema))
    except (ValueError, KeyError, TypeError) as error:
        raise ExamplesError(
            f"{path}: its metadata of datasets cannot be read ({first_line(error)}): write the file without it"
        ) from None


def beside(task: Task, folder: Path) -> Names:
    """Those in a folder's ``labels.json``, in its card (``dataset_info`` in README.md), or in ``dataset_infos.json``.

    Raises:
        ExamplesError: one of them is malformed.
    """
    if (names := label_names(folder)) is not None:
        return dict.fromkeys(task.label_columns, names)
    infos: Any = _infos(folder / CARD, _of_card) or _infos(folder / DATASETDICT_INFOS_FILENAME, _of_json) or {}
    chosen = infos.get(task.name) or (next(iter(infos.values())) if len(infos) == 1 else None)
    return of(chosen.features or {}) if chosen else {}


def _infos(path: Path, read: Callable[[str], DatasetInfosDict]) -> DatasetInfosDict | None:
    if not path.is_file():
        return None
    try:
        # A card need not be UTF-8 if it declares nothing.
        return read(path.read_bytes().decode("utf-8-sig", "surrogateescape"))
    except (ValueError, TypeError, KeyError, AttributeError, yaml.YAMLError) as error:
        raise ExamplesError(
            f"{path}: its metadata cannot be read ({first_line(error)}): correct it, or drop the file"
        ) from None


def _of_card(text: str) -> DatasetInfosDict:
    if not text.lstrip().startswith("---"):
        return DatasetInfosDict()
    data = huggingface_hub.DatasetCard(text).data
    return DatasetInfosDict.from_dataset_card_data(data) if "dataset_info" in data else DatasetInfosDict()


def _of_json(text: str) -> DatasetInfosDict:
    """Those of ``dataset_infos.json``, which old versions of datasets wrote."""
    return DatasetInfosDict({name: datasets.DatasetInfo.from_dict(info) for name, info in json.loads(text).items()})


def label_names(folder: Path) -> list[str] | None:
    """The names in the folder's ``labels.json``, in the order of their numbers; None without the file.

    Raises:
        ExamplesError: it is no list of names.
    """
    path = folder / LABEL_NAMES
    if not path.is_file():
        return None
    try:
        names = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError:
        names = None
    if not isinstance(names, list) or len(names) < 2 or not all(isinstance(name, str) for name in names):
        raise ExamplesError(f'{path} is not a list of two or more label names: write it as ["first", "second"]')
    return names
