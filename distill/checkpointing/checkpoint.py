"""Checkpoints on disk: written atomically, hashed, pruned, set aside when damaged.

::

    checkpoints/
      step_00000500/            weights.safetensors  moments.safetensors  checkpoint.json (with their hashes)
      .step_00001000.partial/   being written or deleted; the next training run removes leftovers
      .damaged-step_00000750/   a file changed after it was written; ignored and kept

A checkpoint holds whole fp32 tensors by name, so a run can resume with any number of workers and any ZeRO stage. No
pickle is ever read.
"""

import contextlib
import errno
import fcntl
import functools
import itertools
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from cluster.artifacts.artifact import digest
from cluster.storage import filesystem
from cluster.storage.filesystem import file_sha256, write_json
from distill.engine.deepspeed_engine import TrainingState

WEIGHTS, MOMENTS, CHECKPOINT = "weights.safetensors", "moments.safetensors", "checkpoint.json"


class CheckpointError(ValueError):
    """A checkpoint is damaged, missing, or cannot be written."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder; its files are read lazily."""

    path: Path

    @property
    def step(self) -> int:
        """Completed steps."""
        return int(self.path.name.removeprefix("step_"))

    @functools.cached_property
    def facts(self) -> dict[str, Any]:
        """Contents of ``checkpoint.json``: how the checkpoint was made, and the hashes of its files.

        Raises:
            CheckpointError: ``checkpoint.json`` is missing, truncated or changed.
        """
        path = self.path / CHECKPOINT
        try:
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if found.pop("sha256") == digest(found):
                return found
        except (FileNotFoundError, ValueError, KeyError, AttributeError):
            pass
        raise CheckpointError(f"{path} {_changed(path)}")

    def damage(self) -> str | None:
        """Compare every file with its hash; returns a line about the first that differs, or None."""
        try:
            for name, sha256 in self.facts["files"].items():
                if not (self.path / name).is_file() or file_sha256(self.path / name) != sha256:
                    return f"{self.path / name} {_changed(self.path / name)}"
        except CheckpointError as error:
            return str(error)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return f"{error.filename or self.path} cannot be read any more ({error.strerror})"
        return None

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Protect the checkpoint from :func:`prune` inside the block."""
        path = self.path / CHECKPOINT
        with path.open("rb") if path.exists() else contextlib.nullcontext() as file:
            if file is not None:
                fcntl.flock(file, fcntl.LOCK_SH)
            yield

    def load(self) -> TrainingState:
        """Check all files against their hashes, then read the state.

        Raises:
            CheckpointError: a file was truncated or changed.
        """
        with self.reading():
            if (damage := self.damage()) is not None:
                raise CheckpointError(
                    f"{damage}: delete {self.path}, and stillhouse train resumes from an older checkpoint"
                )
            weights, moments = load_file(self.path / WEIGHTS), load_file(self.path / MOMENTS)
        return TrainingState(weights, moments, self.facts["optimizer_steps"], self.facts["scaler"])

    def set_aside(self) -> Path:
        """Rename the folder so that :func:`find` and :func:`prune` ignore it; returns the new path."""
        suffixes = itertools.chain([""], (f"-{number}" for number in itertools.count(2)))
        targets = (self.path.with_name(f".damaged-{self.path.name}{suffix}") for suffix in suffixes)
        return self.path.rename(next(target for target in targets if not target.exists()))


def find(folder: Path) -> list[Checkpoint]:
    """The checkpoints of a folder, damaged ones included, oldest first."""
    named = (path for path in folder.glob("step_*") if path.name.removeprefix("step_").isdecimal())
    return sorted(map(Checkpoint, named), key=lambda found: found.step)


def write(folder: Path, state: TrainingState, step: int, **facts: Any) -> Checkpoint:
    """Write a checkpoint atomically and sync it to disk.

    Raises:
        OSError: the disk is full or fails; no part of the checkpoint remains.
    """
    path = folder / f"step_{step:08d}"
    staging = _hidden(path)
    sweep(folder)
    try:
        staging.mkdir(parents=True)
        _save(state.weights, staging / WEIGHTS)
        _save(state.moments, staging / MOMENTS)
        files = {name: file_sha256(staging / name) for name in (WEIGHTS, MOMENTS)}
        facts |= {"step": step, "optimizer_steps": state.optimizer_steps, "scaler": state.scaler, "files": files}
        # Round trip through JSON, which turns keys into strings: the hash must be of what readers get.
        facts = json.loads(json.dumps(facts))
        write_json(staging / CHECKPOINT, {**facts, "sha256": digest(facts)})
        filesystem.sync(staging)
        staging.rename(path)
        filesystem.sync(folder)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return Checkpoint(path)


def prune(folder: Path, newest: int, every: int | None) -> None:
    """Delete all but the ``newest`` ones, those of every ``every``-th step, and those being read."""
    for old in find(folder)[:-newest]:
        if (every is None or old.step % every) and not _being_read(old):
            # Rename first: should this process die, the half-deleted folder does not look like a checkpoint.
            shutil.rmtree(old.path.rename(_hidden(old.path)), ignore_errors=True)


def sweep(folder: Path) -> None:
    """Remove partial checkpoints of processes that died. Only the process that trains here may call this."""
    for left in folder.glob(".step_*.partial"):
        shutil.rmtree(left, ignore_errors=True)


def _being_read(checkpoint: Checkpoint) -> bool:
    path = checkpoint.path / CHECKPOINT
    if not path.exists():
        return False
    with path.open("rb+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    try:
        save_file(tensors, path)
    except SafetensorError as error:
        # safetensors reports system errors only as text that contains the number.
        if (found := re.search(r"os error (\d+)", str(error))) is None:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from None
    filesystem.sync(path)


def _hidden(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


def _changed(path: Path) -> str:
    return "was truncated or changed" if path.exists() else "is missing"
