"""``stillhouse completion SHELL`` prints a script that completes commands, options, recipes and stages.

The script holds all words, so that completing starts no Python. Making it imports every stage: keep it in a file.
"""

import argparse
import contextlib
import io
import re
from collections.abc import Sequence

from cluster.artifacts import registry
from cluster.console import catalogue, cli
from cluster.console.catalogue import CatalogueEntry

_BASH = """\
_stillhouse() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} previous=${{COMP_WORDS[COMP_CWORD-1]}} words=""
    if [[ $COMP_CWORD == 1 ]]; then
        words="{commands}"
    elif [[ $previous != --* || $current == -* ]]; then
        case ${{COMP_WORDS[1]}} in
{cases}
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o default -F _stillhouse stillhouse
"""
_ZSH = "#compdef stillhouse\nautoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n"


def main(arguments: Sequence[str], prog: str) -> None:
    """Print the completion script of a shell."""
    description = "Print a completion script. Save it where your shell loads completions from."
    parser = argparse.ArgumentParser(prog=prog, description=description)
    parser.add_argument("shell", choices=["bash", "zsh", "fish"])
    shell = parser.parse_args(arguments).shell
    print(script(shell), end="")


def script(shell: str) -> str:
    """The script for ``bash``, ``zsh`` or ``fish``."""
    entries = {entry.word: entry for _, group in cli.groups() for entry in group}
    words = {word: " ".join(words_of(entry)) for word, entry in entries.items()}
    if shell == "fish":
        lines = []
        for word, entry in entries.items():
            summary = entry.summary.replace("'", "\\'")
            lines.append(f"complete -c stillhouse -n __fish_use_subcommand -f -a {word} -d '{summary}'")
            lines.append(f"complete -c stillhouse -n '__fish_seen_subcommand_from {word}' -a '{words[word]}'")
        return "\n".join(lines) + "\n"
    cases = "\n".join(f'            {word}) words="{found}" ;;' for word, found in words.items())
    return (_ZSH if shell == "zsh" else "") + _BASH.format(commands=" ".join(entries), cases=cases)


def words_of(entry: CatalogueEntry) -> list[str]:
    """What may follow a command: recipes, stages or subcommands, then options."""
    recipes = [name for known in catalogue.ENTRIES.values() for name in known.recipes]
    help_text = _help(entry.word)
    values = {
        "recipes": [],
        "show": [*recipes, *(known.word for known in catalogue.ENTRIES.values())],
        "completion": ["bash", "zsh", "fish"],
        "distill.plan": [*catalogue.ENTRIES["distill.launch"].recipes],
        # argparse indents subcommands by four spaces.
        "cluster.jobs": [*re.findall(r"^    ([a-z]+) ", help_text, re.MULTILINE), *registry.entries()],
    }
    default = ["default"] if "'default'" in help_text else []
    return [
        *values.get(entry.name, entry.recipes),
        *default,
        *dict.fromkeys(re.findall(r"(?<![\w-])--[a-z][\w-]*", help_text)),
    ]


def _help(word: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as shown, contextlib.suppress(SystemExit):
        cli.main([word, "--help"])
    return shown.getvalue()
