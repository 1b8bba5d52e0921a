"""Finds the splits of a task in a folder with one of the usual layouts, or on the Hugging Face hub.

::

    rte/train.parquet dev.parquet       one file per split, also validation.*, valid.*, val.*; .jsonl, .tsv, .csv;
                                        -00000-of-00002; lines also compressed: train.jsonl.gz
    qnli/train_subset.parquet           instead of train: part of the official set, and recorded as a subset
    glue_data/RTE/train.tsv dev.tsv     GLUE's own download: the task's folder, or its parent
    squad/train-v1.1.json dev-v1.1.json SQuAD's own files of the task's version; also train-v1.1-subset.json
    aclImdb/train/pos/0_9.txt …         IMDb's own folder, or its parent
    rte/dataset_dict.json train/ …      written by save_to_disk of datasets
"""

import contextlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import datasets

from cluster.artifacts.errors import StageError
from cluster.readers import whole_files
from cluster.telemetry.error_text import first_line
from eval.tasks import declared_names
from eval.tasks.definitions import Task
from eval.tasks.file_readers import READERS, ExamplesError, SourceTable, read, read_text_folders

Splits: TypeAlias = Callable[[Sequence[str]], list[SourceTable]]
"""``splits(names)``: the tables of the first split with one of these names."""

SUBSET = re.compile(r"[-_]subset(?![a-z])")
SHARD = re.compile(r"-of-(\d+)$")


def local(task: Task, folder: Path) -> Splits:
    """The splits of a local folder.

    Raises:
        ExamplesError: the folder is no readable data set; reading a split may also raise it.
    """
    folder = _home(task, folder)
    if (folder / "dataset_dict.json").is_file():
        return _of_data_set(_saved(folder), folder.name, str(folder))
    if task.text_folders and (folder / task.dev[0][0]).is_dir():
        return lambda names: [read_text_folders(folder / names[0], task.text_folders)]
    declared = {**_named_inside(task, folder), **declared_names.beside(task, folder)}

    def table(path: Path) -> SourceTable:
        return replace(read(path, task), label_names={**declared, **declared_names.inside(path)})

    return lambda names: [table(path) for path in _files(task, folder, names)]


def _named_inside(task: Task, folder: Path) -> declared_names.Names:
    """Label names inside any file of the task: its splits number their classes alike, though some may not say so.

    Reading a split reports what is wrong with its files.
    """
    found: dict[str, Sequence[str]] = {}
    for names in (task.train, *task.dev):
        with contextlib.suppress(ExamplesError, StageError):
            for path in _files(task, folder, names):
                found |= declared_names.inside(path)
    return found


def hub(task: Task, name: str) -> Splits:
    """The splits of a data set on the hub; ``name`` is ``owner/name`` or ``owner/name:configuration``.

    Raises:
        ExamplesError: the data set cannot be fetched.
    """
    if task.hub is None:
        raise ExamplesError(f"{task.name} is made here by stillhouse {task.command}: give its folder with --data DIR")
    path, _, configuration = name.partition(":")
    try:
        found = datasets.load_dataset(path, configuration or None)
    except (OSError, ValueError) as error:
        raise ExamplesError(f"data set {name} {_why_not(task, path, error)}") from None
    return _of_data_set(found, name, name)


def _why_not(task: Task, path: str, error: Exception) -> str:
    """Why a data set was not loaded, and what to do: the cause is its name, the network, or the data."""
    reason = first_line(error)
    if Path(path).is_dir():
        return f"is a local folder that cannot be loaded by this name ({reason}): give it with --data DIR"
    if isinstance(error, OSError):
        advice = f"check its name ({task.name} is {task.hub}) and the network, or give local files with --data DIR"
        return f"cannot be fetched ({reason}): {advice}"
    return f"cannot be read ({reason}): name its configuration as in {task.hub}, or give local files with --data DIR"


def _of_data_set(found: Mapping[str, Any], name: str, where: str) -> Splits:
    # Facts record the name only: paths are local to one machine.
    def tables(names: Sequence[str]) -> list[SourceTable]:
        present = [each for each in names if each in found]
        if not present:
            raise ExamplesError(f"data set {where} has splits {', '.join(found)}: expected {' or '.join(names)}")
        if len(present) > 1:
            raise ExamplesError(f"data set {where} has the splits {' and '.join(present)}: keep one of them")
        split = found[present[0]]
        place = f"{where} {present[0]}"
        return [SourceTable(f"{name} {present[0]}", place, split[:], label_names=declared_names.of(split.features))]

    return tables


def _saved(folder: Path) -> Any:
    try:
        return datasets.load_from_disk(folder)
    except (OSError, ValueError) as error:
        raise ExamplesError(
            f"{folder} cannot be loaded by datasets {datasets.__version__} ({first_line(error)}): "
            "save it with this version, or as Parquet files"
        ) from None


def _home(task: Task, folder: Path) -> Path:
    """The folder itself, or the task's folder in it (``glue_data`` holds ``RTE``)."""
    if not folder.is_dir() or any(whole_files.form(path.name) in READERS for path in _visible(folder)):
        return folder
    inside = [folder / name for name in (task.name, *task.folders) if (folder / name).is_dir()]
    return inside[0] if inside else folder


def _visible(folder: Path) -> list[Path]:
    """What is in a folder, sorted, without the hidden files of systems and other programs."""
    return sorted(path for path in folder.glob("*") if not path.name.startswith("."))


def _files(task: Task, folder: Path, names: Sequence[str]) -> list[Path]:
    """The file of a split, or its shards in order.

    Raises:
        ExamplesError: no file, two forms of the same split, or missing shards.
    """
    version = rf"(?:-v{re.escape(task.published)})?" if task.published else ""
    form = re.compile(rf"(?P<split>(?:{'|'.join(names)}){version}(?:[-_]subset)?)(?:[-_.]\d+(?:-of-\d+)?)?")
    matches = [
        (path, match["split"])
        for path in _visible(folder)
        if whole_files.form(path.name) in READERS and (match := form.fullmatch(whole_files.stem(path.name)))
    ]
    if not matches:
        present = ", ".join(path.name for path in _visible(folder)) or "nothing"
        raise ExamplesError(
            f"{folder} has no {names[0]} file of {task.name}: expected {' or '.join(names)} with one of the endings "
            f"{', '.join(READERS)}; found {present}"
        )
    if len({(split, path.name.removeprefix(whole_files.stem(path.name))) for path, split in matches}) > 1:
        listed = ", ".join(path.name for path, _ in matches)
        raise ExamplesError(f"{folder} has more than one {names[0]} file of {task.name} ({listed}): keep one of them")
    _check_shards([path for path, _ in matches])
    return [path for path, _ in matches]


def _check_shards(paths: Sequence[Path]) -> None:
    for path in paths:
        if (match := SHARD.search(whole_files.stem(path.name))) and int(match[1]) != len(paths):
            raise ExamplesError(
                f"{path} is one of {int(match[1])} files, of which {len(paths)} are here: get the others"
            )
