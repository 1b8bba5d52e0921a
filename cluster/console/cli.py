"""``stillhouse COMMAND …`` runs a stage or another command; ``stillhouse`` lists them."""

import ast
import importlib.metadata
import importlib.util
import sys
from collections.abc import Mapping
from importlib.metadata import EntryPoint
from pathlib import Path

from cluster.artifacts import cli, registry
from cluster.artifacts.errors import StageError, errors_for_people

COMMANDS = "stillhouse.commands"


def main() -> None:
    """Run the command that ``sys.argv`` names."""
    name, *arguments = sys.argv[1:] or [""]
    stages, others = registry.entries(), _others()
    if name in ("", "-h", "--help"):
        print(listing({**stages, **others}))
        return
    with errors_for_people():
        full = _full(name, [*stages, *others])
    prog = f"stillhouse {name}"
    if full in stages:
        cli.main(full, arguments, prog)
    else:
        sys.argv = [prog, *arguments]
        others[full].load()()


def listing(commands: Mapping[str, EntryPoint]) -> str:
    """Every command on a line, below the summary of its package."""
    lines = ["usage: stillhouse COMMAND … (stillhouse COMMAND --help says more)"]
    for package in dict.fromkeys(name.partition(".")[0] for name in commands):
        lines += ["", _summary(package)]
        found = [name for name in commands if name.startswith(f"{package}.")]
        lines += [f"  {short(name):18} {_summary(commands[name].module)}" for name in found]
    return "\n".join(lines)


def short(name: str) -> str:
    """The word that calls a stage: the last part of its name, with hyphens."""
    return name.rpartition(".")[2].replace("_", "-")


def _full(word: str, names: list[str]) -> str:
    for name in names:
        if word.replace("_", "-") in (short(name), name.replace("_", "-")):
            return name
    raise StageError(f"no command {word}: stillhouse lists them all")


def _others() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in importlib.metadata.entry_points(group=COMMANDS)}


def _summary(module: str) -> str:
    """First line of a module's docstring, without importing what the module needs."""
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    return (ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))) or "").partition("\n")[0]
