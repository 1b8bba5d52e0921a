"""The command line of a stage."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from cluster.artifacts.errors import errors_for_people
from cluster.artifacts.registry import find
from cluster.artifacts.stage import FOLDER, R, Stage, execute, name_inputs, rank
from cluster.storage import filesystem
from cluster.storage.filesystem import Location


def main(name: str, arguments: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run a stage from the command line: prints the artifact's path; exits 1 on errors to correct, 2 on usage."""
    stage = find(name)
    options = parser_for(stage, prog or f"python -m {name}").parse_args(arguments)
    with errors_for_people():
        execute(stage, *stage_call(stage, options))
    if rank() == 0:
        print(options.out)


def stage_call(stage: Stage[R], options: argparse.Namespace) -> tuple[R, dict[str, Location], Location]:
    """Recipe, inputs and ``out`` of the stage call on a command line.

    Raises:
        RecipeError: the recipe cannot be read.
        ArtifactError, StageError: as :func:`~cluster.artifacts.stage.name_inputs`.
        StorageError: a URL that cannot be understood.
    """
    inputs: dict[str, Location] = {}
    for role, accepts in stage.inputs.items():
        if (given := getattr(options, role)) is not None:
            inputs |= name_inputs(role, accepts, [filesystem.location(text) for text in given])
    recipe = stage.load("default" if stage.subject else options.recipe, options.set)
    return recipe, inputs, filesystem.location(options.out)


def parser_for(stage: Stage[R], prog: str) -> argparse.ArgumentParser:
    """The command-line grammar of a stage."""
    summary = (sys.modules[stage.run.__module__].__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog=prog, description=summary)
    if stage.subject:
        metavar = stage.subject.upper()
        parser.add_argument(stage.subject, metavar=metavar, nargs=1, help="directory to work on")
    else:
        parser.add_argument("recipe", metavar="RECIPE", help="TOML file, FILE#table, a shipped recipe, or 'default'")
    for role, accepts in stage.inputs.items():
        if role != stage.subject:
            help_text = " or ".join("any folder" if kind == FOLDER else f"{kind} artifact" for kind in accepts.kinds)
            many: dict[str, Any] = {"nargs": "+" if accepts.keyed_by else 1, "action": "extend"}
            parser.add_argument(f"--{role}", metavar="DIR", required=not accepts.optional, help=help_text, **many)
    parser.add_argument("--out", metavar="DIR", required=True, help=f"where the {stage.produces} will be")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="override a recipe value")
    return parser
