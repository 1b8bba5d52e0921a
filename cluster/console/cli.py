"""The ``stillhouse`` command: ``stillhouse COMMAND …`` runs a stage or another command, ``stillhouse`` lists them all.

Listing must answer at once, so this module imports nothing but the catalogue: a command imports what it needs.
"""

import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import EntryPoint, entry_points, version

from cluster.artifacts.names import find_name, word_of
from cluster.console import catalogue
from cluster.console.catalogue import CatalogueEntry

STAGES, COMMANDS = "stillhouse.stages", "stillhouse.commands"
"""Groups of entry points: a :class:`~cluster.artifacts.stage.Stage`, and a function ``main(arguments, prog)``."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command that the arguments name, by default those of ``sys.argv``.

    Exits 2 if there is no such command, else as the command does.
    """
    word, *others = [*(sys.argv[1:] if arguments is None else arguments)] or ["help"]
    if word in ("-h", "--help", "help"):
        print(listing())
        return
    if word == "--version":
        print(f"stillhouse {version('stillhouse')}")
        return
    prog = f"stillhouse {word}"
    if word in [entry.word for entry in catalogue.OWN]:
        from cluster.artifacts.errors import errors_for_people
        from cluster.console import completion, new, recipes

        own = {"new": new.main, "recipes": recipes.list_recipes, "show": recipes.show, "completion": completion.main}
        with errors_for_people():
            own[word](others, prog)
        return
    # Not at the top: these modules import pydantic and fsspec, which takes longer than the listing.
    from cluster.artifacts import cli
    from cluster.artifacts.errors import StageError

    try:
        entry = find(word)
    except StageError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    if entry.group == STAGES:
        cli.main(entry.name, others, prog)
    else:
        entry.load()(others, prog)


def listing() -> str:
    """Every command on a line, in groups."""
    lines = ["usage: stillhouse COMMAND …", "", "stillhouse COMMAND --help explains a command."]
    for title, entries in groups():
        lines += ["", title, *(f"  {entry.word:18} {entry.summary}" for entry in entries)]
    return "\n".join(lines)


def groups() -> Iterator[tuple[str, Sequence[CatalogueEntry]]]:
    """Titles and commands, in the order of the listing; last what other distributions register."""
    yield from catalogue.GROUPS.items()
    yield "Help", catalogue.OWN
    if others := [CatalogueEntry(name, f"see {name}") for name in installed() if name not in catalogue.ENTRIES]:
        yield "From other distributions", others


def installed() -> dict[str, EntryPoint]:
    """Entry points of the installed stages and commands by name."""
    return {entry.name: entry for group in (STAGES, COMMANDS) for entry in entry_points(group=group)}


def find(word: str) -> EntryPoint:
    """The stage or command that a word means: ``onnx-export``, or its whole name ``deploy.onnx_export``.

    Raises:
        StageError: no such command.
    """
    known = installed()
    if name := find_name(word, known):
        return known[name]
    import difflib

    from cluster.artifacts.errors import StageError

    if entry := shipped().get(word):
        raise StageError(f"{word} is a recipe of {entry.word}: write stillhouse {entry.word} {word}")
    names = known if "." in word else [*map(word_of, known), *(entry.word for entry in catalogue.OWN)]
    near = difflib.get_close_matches(word, names, n=1)
    hint = f"did you mean {near[0]}?" if near else "stillhouse lists all commands"
    raise StageError(f"no command {word or '(an empty word)'}: {hint}")


def shipped() -> dict[str, CatalogueEntry]:
    """The commands of the shipped recipes that are not called as their command, by name of the recipe."""
    return {name: entry for entry in catalogue.ENTRIES.values() for name in entry.recipes if name != entry.word}
