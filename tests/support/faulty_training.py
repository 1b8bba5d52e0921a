"""``distill.train`` in which the last worker fails at step 7; the variable ``FAULT`` is ``kill`` or ``bug``."""

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.artifacts import stage
from distill.config import Distillation
from distill.train import graceful_stop, loop


def run(recipe: Distillation, inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
    """Train until the fault; without checkpoints before it, every attempt takes the same steps."""
    agreed = graceful_stop.GracefulStop.agreed
    steps = iter(range(1, 100))

    def faulty(self: graceful_stop.GracefulStop) -> graceful_stop.StopReason | None:
        if next(steps) == 7 and int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1:
            if os.environ["FAULT"] == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise RuntimeError("a bug of step seven")
        return agreed(self)

    graceful_stop.GracefulStop.agreed = faulty  # type: ignore[method-assign]
    return loop.run(recipe, inputs, out)


STAGE = stage.Stage(
    name="faulty_training",
    run=run,
    recipe=Distillation,
    inputs={"tokens": stage.Role(("tokens",)), "teacher": stage.Role(("teacher",))},
    produces="run",
    grows=True,
)
