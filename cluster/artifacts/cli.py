"""The command line of a stage."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from cluster.artifacts import artifact
from cluster.artifacts.errors import errors_for_people
from cluster.artifacts.help_format import HelpFormatter
from cluster.artifacts.names import word_of
from cluster.artifacts.recipe import Recipe
from cluster.artifacts.registry import find
from cluster.artifacts.stage import FOLDER, R, Role, Stage, execute, name_inputs, rank
from cluster.storage import filesystem
from cluster.storage.filesystem import Location

RECIPE_HELP = "TOML file, one table of it, a recipe that ships, or 'default' for all defaults; example: "
SET_HELP = "override a value of the recipe, repeatable (default: as written); example: --set "
_ROLES = {
    "corpus": ("documents that stillhouse corpus made", "out/corpus"),
    "tokens": ("rows that stillhouse tokens made", "out/tokens"),
    "tokenizer": ("folder with a tokenizer", "models/bert-base-uncased"),
    "teacher": ("the model to learn from, or to compare with", "out/teacher"),
    "student": ("the distilled model", "out/students/student"),
    "model": ("folder of a model: config.json, safetensors, tokenizer", "out/students/student"),
    "export": ("export of a model to another format", "out/exports/student/onnx"),
    "data": ("folder with the files of a task", "glue/rte"),
    "run": ("folder of a training run", "out/runs/student"),
    "results": ("folder of results, as launch and suite make it", "out"),
    "pairs": ("folder with STS-B, whose pairs are timed", "glue/stsb"),
    "questions": ("folder with SQuAD, whose questions are timed", "squad"),
    "page": ("page that stillhouse web-page made", "out/pages/browser"),
    "libraries": ("folder that make browser fills", "build/browser"),
    "bert_base": ("folder with BERT-base's tokenizer, and its weights if there are any", "models/bert-base-uncased"),
    "distilbert": ("the same of DistilBERT", "models/distilbert-base-uncased"),
    "roberta_base": ("the same of RoBERTa-base", "models/roberta-base"),
    "distilroberta": ("the same of DistilRoBERTa", "models/distilroberta-base"),
    "binary": ("folder of the programs that a phone runs", "build/android"),
}
"""Meaning and example of the inputs; for others the kinds of artifact must do."""


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
    parser = argparse.ArgumentParser(
        prog=prog, formatter_class=HelpFormatter, description=summary, epilog=f"example: {_example(stage, prog)}"
    )
    if stage.subject:
        metavar = stage.subject.upper()
        parser.add_argument(
            stage.subject, metavar=metavar, nargs=1, help=_help(stage.subject, stage.inputs[stage.subject])
        )
    else:
        parser.add_argument("recipe", metavar="RECIPE", help=RECIPE_HELP + stage.example.split()[0])
    for role, accepts in stage.inputs.items():
        if role != stage.subject:
            many: dict[str, Any] = {"nargs": "+" if accepts.keyed_by else 1, "action": "extend", "dest": role}
            spelled, required = f"--{role.replace('_', '-')}", not accepts.optional
            parser.add_argument(spelled, metavar="DIR", required=required, help=_help(role, accepts), **many)
            if spelled != f"--{role}":
                parser.add_argument(f"--{role}", help=argparse.SUPPRESS, **many)
    kept = "where the result will be, a folder or URL; a complete one is kept"
    grows = "folder of the results; run again, it continues there"
    out = f"{grows if stage.grows else kept}; example: {_place(stage)}"
    parser.add_argument("--out", metavar="DIR", required=True, help=out)
    parser.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], help=SET_HELP + _setting(stage.recipe)
    )
    return parser


def _help(role: str, accepts: Role) -> str:
    kinds = " or ".join("any folder" if kind == FOLDER else artifact.named(kind) for kind in accepts.kinds)
    meaning, example = _ROLES.get(role, (f"{role.replace('_', ' ')}: {kinds}", f"models/{role.replace('_', '-')}"))
    default = " (default: none)" if accepts.optional else ""
    several = f"; several if they differ in {accepts.keyed_by}" if accepts.keyed_by else ""
    return f"{meaning}{several}{default}; example: {example}"


def _example(stage: Stage[R], prog: str) -> str:
    """A command line with what the stage requires."""
    words = [prog, _ROLES[stage.subject][1] if stage.subject in _ROLES else stage.subject or stage.example]
    given = stage.example.split()
    for role, accepts in stage.inputs.items():
        if not accepts.optional and role != stage.subject and f"--{role}" not in given:
            words += [f"--{role.replace('_', '-')}", _ROLES[role][1] if role in _ROLES else f"models/{role}"]
    return " ".join([*words, "--out", _place(stage)])


def _setting(recipe: type[Recipe]) -> str:
    """``key=value`` of the first key with a plain default."""
    plain = {name: field.default for name, field in recipe.model_fields.items()}
    found = next(((name, value) for name, value in plain.items() if isinstance(value, str | int | float)), None)
    if found is None:
        return "key=value"
    value = str(found[1]).lower() if isinstance(found[1], bool) else found[1]
    return f"{found[0]}={value}"


def _place(stage: Stage[R]) -> str:
    """Where a pipeline would put the artifact, which the examples of later stages read."""
    if stage.produces == "suite":
        return "out"
    if stage.produces in ("run", "student"):
        return _ROLES[stage.produces][1]
    given = stage.example.split()[0]
    if stage.produces == "export" and {"model", "export"} & stage.inputs.keys() and given != "default":
        return f"out/exports/student/{given}"
    return f"out/{word_of(stage.name)}"
