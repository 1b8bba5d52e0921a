"""A run folder, which grows while a model trains.

::

    run/
      config.json …             configuration and tokenizer of the trained model, for transformers
      recipe.json               recipe and identities of the inputs; training refuses any others
      metrics.jsonl             one line per step and per validation
      checkpoints/
        step_00000500/          see :mod:`distill.checkpointing.checkpoint`
"""

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock

from cluster.artifacts.artifact import first_difference
from cluster.storage.filesystem import write_json
from cluster.telemetry.progress import say
from distill.checkpointing.checkpoint import Checkpoint, find, prune, write
from distill.config import Placement
from distill.engine.deepspeed_engine import TrainingState

CHECKPOINTS = "checkpoints"


class RunError(ValueError):
    """The folder is not this run, or cannot be read."""


@dataclass(frozen=True)
class Run:
    """The folder of a run."""

    path: Path

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    def recipe(self) -> dict[str, Any]:
        """Contents of ``recipe.json``: ``{"recipe": …, "inputs": {role: identity}}``.

        Raises:
            RunError: not a run folder, or damaged.
        """
        path = self.path / "recipe.json"
        if not path.is_file():
            raise RunError(f"{self.path} is not a run: it has no recipe.json; stillhouse train makes one")
        try:
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise RunError(
                f"{path} cannot be read ({error}): it is damaged; put back a copy of it, or train into another --out, "
                "because the checkpoints beside it cannot be used without it"
            ) from None
        return found

    def claim(self, recipe: Mapping[str, Any], inputs: Mapping[str, str]) -> None:
        """Write ``recipe.json``, or check that the folder already belongs to this run.

        Raises:
            RunError: the folder belongs to another run, or is not a run folder.
        """
        wanted = json.loads(json.dumps({"recipe": dict(recipe), "inputs": dict(inputs)}))
        if (self.path / "recipe.json").exists():
            if (changed := first_difference(self.recipe(), wanted)) is not None:
                raise RunError(f"{self.path} holds another run ({changed}): choose another --out")
            return
        if self.path.exists() and any(not path.name.startswith(".") for path in self.path.iterdir()):
            raise RunError(f"{self.path} holds files that are not a run: choose another --out")
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.path / "recipe.json", wanted)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Lock the folder inside the block. The system releases the lock if the process dies.

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
        """Complete checkpoints, oldest first; :meth:`Checkpoint.damage` checks their files."""
        return find(self.path / CHECKPOINTS)

    def newest(self) -> Checkpoint | None:
        found = self.checkpoints()
        return found[-1] if found else None

    def checkpoint(self, step: int) -> Checkpoint:
        """The checkpoint of a step.

        Raises:
            RunError: there is none; lists the existing ones.
        """
        found = {checkpoint.step: checkpoint for checkpoint in self.checkpoints()}
        if step not in found:
            have = ", ".join(map(str, found)) or "none"
            raise RunError(f"{self.path} has no checkpoint of step {step}: it has {have}")
        return found[step]

    def newest_intact(self) -> Checkpoint | None:
        """The newest checkpoint with undamaged files. Sets newer, damaged ones aside and logs that.

        Only the process that :meth:`held` the folder may call this.

        Raises:
            RunError: every checkpoint is damaged; none is set aside then.
        """
        damaged: list[tuple[Checkpoint, str]] = []
        for checkpoint in reversed(self.checkpoints()):
            if (damage := checkpoint.damage()) is None:
                for worse, reason in damaged:
                    say(f"{reason}: set aside as {worse.set_aside().name}, resuming from step {checkpoint.step}")
                return checkpoint
            damaged.append((checkpoint, damage))
        if not damaged:
            return None
        steps = ", ".join(str(checkpoint.step) for checkpoint, _ in reversed(damaged))
        raise RunError(
            f"every checkpoint of {self.path} is damaged (steps {steps}; {damaged[0][1]}): restore intact ones, or "
            f"delete {self.path / CHECKPOINTS} to start again at step 0"
        )

    def save(self, state: TrainingState, step: int, placement: Placement, **facts: Any) -> Checkpoint:
        """Write a checkpoint atomically, then delete those that ``placement`` does not keep.

        Raises:
            OSError: the disk is full or fails; the other checkpoints stay as they were.
        """
        made = write(self.path / CHECKPOINTS, state, step, **facts)
        prune(self.path / CHECKPOINTS, placement.keep_checkpoints, placement.keep_every)
        return made
