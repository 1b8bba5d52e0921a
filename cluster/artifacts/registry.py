"""The installed stages by name: entry points of the group ``stillhouse.stages``.

``pyproject.toml`` registers ours; a package of somebody else's can register more. Looking a name up imports only that
stage's module.
"""

import difflib
import functools
import importlib.metadata
from importlib.metadata import EntryPoint
from typing import Any

from cluster.artifacts.errors import StageError
from cluster.artifacts.stage import Stage

GROUP = "stillhouse.stages"


@functools.cache
def entries() -> dict[str, EntryPoint]:
    """Entry points of the installed stages by stage name, in the order of their registration."""
    return {entry.name: entry for entry in importlib.metadata.entry_points(group=GROUP)}


def find(name: str) -> Stage[Any]:
    """The stage of this name.

    Raises:
        StageError: no stage of this name is installed.
    """
    if (entry := entries().get(name)) is None:
        near = difflib.get_close_matches(name, entries(), n=1)
        hint = f"did you mean {near[0]}?" if near else "stillhouse lists all stages"
        raise StageError(f"no stage {name}: {hint}")
    stage: Stage[Any] = entry.load()
    assert stage.name == name, f"{entry.value} calls itself {stage.name}"
    return stage
