"""A stage for tests. Its recipe decides whether it succeeds, refuses its input, fails with a bug or dies."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveInt

from cluster.artifacts import cli, errors, stage
from cluster.artifacts.recipe import Recipe


class Placement(Recipe):
    """Threads and micro-batch size."""

    threads: PositiveInt = 1
    rows: PositiveInt = 8
    """Rows of a micro-batch."""


class Toy(Recipe):
    """What the stage does after writing its text."""

    text: str = "toy"
    share: float = Field(0.5, gt=0, lt=1)
    behavior: Literal["work", "refuse", "bug", "interrupt", "wait", "outage"] = "work"
    deaths: int = Field(0, ge=0)
    """The first ``deaths`` attempts kill their process."""
    meeting: str = ""
    """A named pipe. The stage waits until another run opens the other ``side``."""
    side: Literal["r", "w"] = "r"
    room: PositiveInt = 8
    """Largest micro-batch, in rows; more raise MemoryError."""
    child: str = ""
    """File for the process id of a child process that the stage starts and leaves running."""
    gate: str = ""
    """A file that the stage waits for before it ends."""
    tally: str = ""
    """A file to which the stage appends its text when it succeeds."""
    placement: Placement = Placement()


def run(recipe: Toy, inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
    """Write ``text.txt``. The facts have the number of attempts, and start and end of this one."""
    started = time.monotonic()
    with (out / "attempts.txt").open("a") as attempts:
        attempts.write("x")
    attempt = (out / "attempts.txt").stat().st_size
    (out / "text.txt").write_text(recipe.text)
    print(f"the toy says {recipe.text}")
    if attempt <= recipe.deaths:
        os.kill(os.getpid(), signal.SIGKILL)
    if recipe.placement.rows > recipe.room:
        raise MemoryError(f"no room for {recipe.placement.rows} rows")
    if recipe.child:
        _start_child(Path(recipe.child))
    _behave(recipe.behavior)
    if recipe.meeting:
        Path(recipe.meeting).open(recipe.side).close()  # opens when both sides do
    while recipe.gate and not Path(recipe.gate).exists():
        time.sleep(0.02)
    if recipe.tally:
        with Path(recipe.tally).open("a") as tally:
            tally.write(f"{recipe.text}\n")
    facts = {"attempts": attempt, "rows": recipe.placement.rows, "threads": os.environ.get("OMP_NUM_THREADS")}
    return {**facts, "started": started, "ended": time.monotonic()}


def _start_child(note: Path) -> None:
    child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    note.with_suffix(".tmp").write_text(str(child.pid))
    note.with_suffix(".tmp").replace(note)


def halved(recipe: Toy) -> Toy | None:
    rows = recipe.placement.rows // 2
    return recipe.model_copy(update={"placement": Placement(rows=rows)}) if rows else None


def _behave(behavior: str) -> None:
    match behavior:
        case "refuse":
            raise errors.StageError("the toy refuses:\nwrite behavior = work")
        case "outage":
            try:
                raise ConnectionResetError("reset by peer")
            except OSError as error:
                raise errors.StageError(f"the store does not answer: {error}") from None
        case "bug":
            raise RuntimeError("a bug in the toy")
        case "interrupt":
            signal.raise_signal(signal.SIGINT)
        case "wait":
            print("waiting", flush=True)
            sys.stdin.readline()


STAGE = stage.Stage(
    name="toy_stage",
    run=run,
    recipe=Toy,
    inputs={"corpus": stage.Role(("corpus", "dataset")), "folder": stage.Role((stage.FOLDER,), optional=True)},
    produces="dataset",
    halved=halved,
)

if __name__ == "__main__":
    cli.main("toy_stage")
