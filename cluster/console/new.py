"""``stillhouse new FILE`` writes a recipe to change: a shipped one with every key explained."""

import argparse
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from cluster.artifacts import recipe
from cluster.artifacts.errors import StageError
from cluster.artifacts.help_format import HelpFormatter
from cluster.artifacts.names import word_of
from cluster.artifacts.recipe_errors import nearest
from cluster.console import catalogue, recipes

OWN_TEXT = "own-text"


def main(arguments: Sequence[str], prog: str) -> None:
    """Write a recipe, and print its path and the commands that take it."""
    parser = argparse.ArgumentParser(
        prog=prog,
        formatter_class=HelpFormatter,
        description="Write a recipe with every key explained, to change it; nothing is overwritten.",
        epilog="example: stillhouse new my.toml --recipe gpu-16gb",
    )
    parser.add_argument(
        "file", metavar="FILE", help="file to write, .toml is added where it is missing; example: my.toml"
    )
    text = f"recipe that ships, as stillhouse recipes lists them (default: {OWN_TEXT}); example: gpu-24gb"
    parser.add_argument("--recipe", metavar="NAME", default=OWN_TEXT, help=text)
    options = parser.parse_args(arguments)
    path = _path(options.file)
    known = [name for entry in catalogue.ENTRIES.values() for name in entry.recipes]
    if options.recipe not in known:
        near = nearest(options.recipe.partition("#")[0], known)
        hint = f"did you mean {near}?" if near else "stillhouse recipes lists those that ship"
        raise StageError(f"--recipe {options.recipe}: no recipe of this name ships: {hint}")
    content = "\n".join(lines(options.recipe, path)) + "\n"
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(content)
    except FileExistsError:
        raise StageError(f"{path} exists and is never overwritten: choose another name") from None
    print(path)


def _path(text: str) -> Path:
    """The file to write.

    Raises:
        StageError: it has no name, or no folder to be in.
    """
    path, stem = Path(text), text.removesuffix(".toml")
    if not stem or stem.endswith(("/", ".")) or path.name.startswith("-"):
        raise StageError(f"{text or 'an empty name'} is no name of a file: write for example my.toml")
    if not path.parent.is_dir():
        raise StageError(f"{path}: there is no folder {path.parent}: make it first")
    return path if path.name.endswith(".toml") else path.with_name(f"{path.name}.toml")


def lines(name: str, path: Path) -> Iterator[str]:
    """The recipe of this name: its header, how to run it from ``path``, and its keys with their documentation."""
    command = recipes.reader(name)
    file, out = shlex.quote(str(path)), shlex.quote(path.stem)
    text = recipe.find(name).read_text(encoding="utf-8")
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        yield line
    yield "#"
    if command == "distill.launch":
        yield f"#   stillhouse plan {file}    says what it takes on this machine"
        yield f"#   stillhouse launch {file} --out {out}    runs all stages, to {out}/report"
    else:
        yield f"#   stillhouse {word_of(command)} {file} --help"
    yield "#"
    yield "# stillhouse recipes keys lists what else can be written: stillhouse recipes keys train.placement"
    yield from recipes.explain(recipes.read(command, name), only=recipe.read_values(name))
