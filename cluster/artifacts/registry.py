"""The installed stages by name: entry points of the group ``stillhouse.stages``.

``pyproject.toml`` registers ours; other packages can register more. Looking up a name imports that stage's module only.
Packages run each other's stages through :func:`execute`, and never import each other.
"""

import difflib
import functools
import importlib.metadata
from collections.abc import Mapping
from importlib.metadata import EntryPoint
from typing import Any

from cluster.artifacts import stage
from cluster.artifacts.artifact import Artifact
from cluster.artifacts.errors import StageError
from cluster.artifacts.names import find_name, word_of
from cluster.artifacts.stage import Stage
from cluster.storage.filesystem import Location

GROUP = "stillhouse.stages"


@functools.cache
def entries() -> dict[str, EntryPoint]:
    """Entry points of the installed stages by stage name, in the order of their registration."""
    return {entry.name: entry for entry in importlib.metadata.entry_points(group=GROUP)}


def find(word: str) -> Stage[Any]:
    """The stage of this name, or word; only here, where Python code meets a name, is the class of its recipe unknown.

    Raises:
        StageError: no stage of this name is installed.
    """
    if (name := find_name(word, entries())) is None:
        near = difflib.get_close_matches(word, [*entries(), *map(word_of, entries())], n=1)
        hint = f"did you mean {near[0]}?" if near else "stillhouse lists all stages"
        raise StageError(f"no stage {word}: {hint}")
    found: Stage[Any] = entries()[name].load()
    assert found.name == name, f"{entries()[name].value} calls itself {found.name}"
    return found


def execute(name: str, values: Mapping[str, Any], inputs: Mapping[str, Location], out: Location) -> Artifact | None:
    """Run the stage of this name with the recipe that ``values`` describe.

    Raises:
        StageError, RecipeError: as :func:`find`, :meth:`~cluster.artifacts.stage.Stage.read` and
            :func:`~cluster.artifacts.stage.execute`.
    """
    found = find(name)
    return stage.execute(found, found.read(values, name), inputs, out)
