"""``stillhouse completion SHELL`` prints a script that completes commands, options, recipes and stages.

The script holds all words, so that completing starts no Python. Making it imports every stage: keep it in a file.
"""

import argparse
import contextlib
import io
import re
from collections.abc import Sequence

from cluster.artifacts import registry
from cluster.artifacts.help_format import HelpFormatter
from cluster.console import catalogue, cli

_BASH = """\
_stillhouse() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} previous=${{COMP_WORDS[COMP_CWORD-1]}} words="" count
    for count in 3 2 1 0; do
        [[ $count -lt $COMP_CWORD ]] || continue
        case "${{COMP_WORDS[*]:1:$count}}" in
{cases}
            *) continue ;;
        esac
        break
    done
    [[ $previous != --* || $current == -* ]] || words=""
    COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o default -F _stillhouse stillhouse
"""
_ZSH = "#compdef stillhouse\nautoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n"


def main(arguments: Sequence[str], prog: str) -> None:
    """Print the completion script of a shell."""
    description = "Print a completion script. Save it where your shell loads completions from."
    epilog = f"example: {prog} bash > ~/.local/share/bash-completion/completions/stillhouse"
    parser = argparse.ArgumentParser(prog=prog, formatter_class=HelpFormatter, description=description, epilog=epilog)
    parser.add_argument("shell", choices=["bash", "zsh", "fish"], help="shell that reads the script; example: bash")
    shell = parser.parse_args(arguments).shell
    print(script(shell), end="")


def script(shell: str) -> str:
    """The script for ``bash``, ``zsh`` or ``fish``."""
    known = words()
    if shell != "fish":
        cases = "\n".join(
            f'            "{" ".join(start)}") words="{" ".join(found)}" ;;' for start, found in known.items()
        )
        return (_ZSH if shell == "zsh" else "") + _BASH.format(cases=cases)
    lines = []
    for _, group in cli.groups():
        for entry in group:
            summary = entry.summary.replace("'", "\\'")
            lines.append(f"complete -c stillhouse -n __fish_use_subcommand -f -a {entry.word} -d '{summary}'")
    for start, found in known.items():
        following = [word for word in found if (*start, word) in known]
        seen = [f"__fish_seen_subcommand_from {word}" for word in start]
        seen += [f"not __fish_seen_subcommand_from {' '.join(following)}"] if following else []
        if start:
            lines.append(f"complete -c stillhouse -n '{'; and '.join(seen)}' -a '{' '.join(found)}'")
    return "\n".join(lines) + "\n"


def words() -> dict[tuple[str, ...], list[str]]:
    """What may follow the words typed so far: commands, then recipes, stages and subcommands, then options."""
    entries = [entry for _, group in cli.groups() for entry in group]
    every = catalogue.ENTRIES.values()
    found: dict[tuple[str, ...], list[str]] = {(): [entry.word for entry in entries]}
    for entry in entries:
        known = {
            "show": [*(name for each in every for name in each.recipes), *(each.word for each in every)],
            "completion": ["bash", "zsh", "fish"],
            "distill.plan": [*catalogue.ENTRIES["distill.launch"].recipes],
        }
        found[entry.word,] = _with_options([*known.get(entry.name, entry.recipes)], entry.word)
    # argparse indents subcommands by four spaces.
    for name in re.findall(r"^    ([a-z]+) ", _help("jobs"), re.MULTILINE):
        found["jobs",] += [name]
        found["jobs", name] = _with_options([], "jobs", name)
    for entry in entries:
        if entry.name not in registry.entries():
            continue
        following = _with_options([*entry.recipes], "jobs", "submit", entry.name)
        for word in (entry.word, entry.name):
            found["jobs", "submit"] += [word]
            found["jobs", "submit", word] = following
    return found


def _with_options(first: list[str], *command: str) -> list[str]:
    help_text = _help(*command)
    default = ["default"] if "'default'" in help_text else []
    return [*first, *default, *dict.fromkeys(re.findall(r"(?<![\w-])--[a-z][\w-]*", help_text))]


def _help(*command: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as shown, contextlib.suppress(SystemExit):
        cli.main([*command, "--help"])
    return shown.getvalue()
