"""A run folder: what grows while a model trains.

::

    run/
      config.json …             what the trained model is: transformers configuration and tokenizer
      recipe.json               what is trained, from which inputs; another recipe is refused
      metrics.jsonl             one line a step, and one a validation
      checkpoints/
        step_00000500/          weights.safetensors  moments.safetensors  checkpoint.json (written last, with hashes)

A checkpoint holds whole fp32 tensors by name, so it resumes on another number of workers and another ZeRO stage, and
no pickle is ever read.
"""

import contextlib
import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
from safetensors.torch import load_file, save_file

from cluster.artifact import file_sha256, first_difference, write_json
from distill.engine import State

logger = logging.getLogger("stillhouse")

WEIGHTS, MOMENTS, CHECKPOINT = "weights.safetensors", "moments.safetensors", "checkpoint.json"


class RunError(ValueError):
    """A run folder holds something else, or cannot be read."""


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: its folder, the steps it has behind it, and how it was run."""

    path: Path
    step: int
    facts: Mapping[str, Any]

    def load(self) -> State:
        """The state, its files compared with their hashes first.

        Raises:
            RunError: a file was cut or changed.
        """
        for name, sha256 in self.facts["files"].items():
            if not (self.path / name).is_file() or file_sha256(self.path / name) != sha256:
                raise RunError(
                    f"{self.path / name} was cut or changed: delete {self.path} to resume from the one before"
                )
        weights, moments = load_file(self.path / WEIGHTS), load_file(self.path / MOMENTS)
        return State(weights, moments, self.facts["optimizer_steps"], self.facts["scaler"])


@dataclass(frozen=True)
class Run:
    """The folder of a run."""

    path: Path

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    def recipe(self) -> dict[str, Any]:
        """What is trained here: ``{"recipe": …, "inputs": {role: identity}}``.

        Raises:
            RunError: not a run folder.
        """
        if not (self.path / "recipe.json").is_file():
            raise RunError(f"{self.path} is not a run: it has no recipe.json; distill.train makes one")
        return _parsed(self.path / "recipe.json")

    def claim(self, recipe: Mapping[str, Any], inputs: Mapping[str, str]) -> None:
        """Make the folder this run's, or find that it already is.

        Raises:
            RunError: the folder belongs to another run, or holds something that is no run.
        """
        wanted = json.loads(json.dumps({"recipe": dict(recipe), "inputs": dict(inputs)}))
        if (self.path / "recipe.json").exists():
            if (changed := first_difference(self.recipe(), wanted)) is not None:
                raise RunError(f"{self.path} holds another run ({changed}): choose another --out")
            return
        if self.path.exists() and any(not path.name.startswith(".") for path in self.path.iterdir()):
            raise RunError(f"{self.path} holds something that is no run: choose another --out")
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.path / "recipe.json", wanted)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep the folder to this process inside the block; the system lets go of it should the process die.

        Raises:
            RunError: another process is training here.
        """
        lock = filelock.FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            raise RunError(
                f"another process is training {self.path} right now: wait for it, or choose another --out"
            ) from None
        try:
            yield
        finally:
            lock.release()

    def checkpoints(self) -> list[Checkpoint]:
        """Complete checkpoints, oldest first."""
        found = []
        for path in sorted(self.path.glob("checkpoints/step_*")):
            if (path / CHECKPOINT).is_file():
                facts = _parsed(path / CHECKPOINT)
                found.append(Checkpoint(path, int(facts["step"]), facts))
        return found

    def newest(self) -> Checkpoint | None:
        found = self.checkpoints()
        return found[-1] if found else None

    def checkpoint(self, step: int) -> Checkpoint:
        """The complete checkpoint of a step.

        Raises:
            RunError: there is none; says which there are.
        """
        found = {checkpoint.step: checkpoint for checkpoint in self.checkpoints()}
        if step not in found:
            have = ", ".join(map(str, found)) or "none"
            raise RunError(f"{self.path} has no checkpoint of step {step}: it has {have}")
        return found[step]

    def save(self, state: State, step: int, keep: int, **facts: Any) -> Checkpoint:
        """Write a checkpoint whole or not at all, then drop all but the newest ``keep``."""
        path = self.path / "checkpoints" / f"step_{step:08d}"
        staging = path.with_name(f".{path.name}.partial")
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        save_file(state.weights, staging / WEIGHTS)
        save_file(state.moments, staging / MOMENTS)
        facts |= {"step": step, "optimizer_steps": state.optimizer_steps, "scaler": state.scaler}
        facts["files"] = {name: file_sha256(staging / name) for name in (WEIGHTS, MOMENTS)}
        write_json(staging / CHECKPOINT, facts)
        # Only a damaged checkpoint can stand here: a sound one would have been resumed from.
        shutil.rmtree(path, ignore_errors=True)
        staging.rename(path)
        for old in self.checkpoints()[:-keep]:
            shutil.rmtree(old.path)
        return Checkpoint(path, step, facts)


def _parsed(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RunError(f"{path} cannot be read ({error}): it was cut or changed, delete {path.parent}") from None
    return found
