"""The ``stillhouse`` command: its listing, its recipes, ``show`` and shell completion."""

import argparse
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, get_args

import paths
import pytest

from cluster.artifacts import cli as artifacts_cli
from cluster.artifacts import recipe, registry
from cluster.artifacts.errors import StageError
from cluster.artifacts.names import word_of
from cluster.artifacts.recipe import Recipe
from cluster.console import catalogue, cli, completion, recipes

PROJECT = tomllib.loads((paths.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SHIPPED = {path.stem for path in paths.ROOT.glob("*/recipes/*.toml")}
LOADED = [name for name in SHIPPED if recipes.reader(name) in ("cluster.corpus", "eval.provenance", "deploy.web_page")]


def test_the_catalogue_is_what_is_registered() -> None:
    points = PROJECT["entry-points"]
    assert {*catalogue.ENTRIES} == {*points[cli.STAGES], *points[cli.COMMANDS]}
    assert {name for entry in catalogue.ENTRIES.values() for name in entry.recipes} == SHIPPED
    assert {*points[recipes.SCHEMAS]} <= {*points[cli.COMMANDS]}


def test_the_listing_fits_a_terminal_and_follows_the_pipeline() -> None:
    lines = cli.listing().splitlines()
    assert max(map(len, lines)) < 100
    words = re.findall(r"^  ([\w-]+) ", "\n".join(lines), re.MULTILINE)
    order = ["corpus", "tokens", "inspect", "teacher", "train", "export", "launch", "plan"]
    assert [word for word in words if word in order] == order
    assert {"new", "recipes", "show", "completion"} <= {*words}


def test_the_listing_imports_no_heavy_library() -> None:
    code = "import sys\nfrom cluster.console import cli\ncli.main(['--help'])\nprint(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "usage: stillhouse" in done.stdout
    assert {"torch", "ray", "pydantic", "fsspec", "numpy"} & {*done.stderr.split()} == set()


def test_python_m_runs_a_command() -> None:
    done = subprocess.run([sys.executable, "-m", "cluster.console", "jobs", "--help"], capture_output=True, text=True)
    assert done.stdout.startswith("usage: stillhouse jobs")
    assert done.returncode == 0


def test_an_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    for word in ("trian", "--foo"):
        with pytest.raises(SystemExit, match="2"):
            cli.main([word, "RECIPE"])
        assert capsys.readouterr().err.startswith(f"error: no command {word}: ")
    with pytest.raises(SystemExit):
        cli.main(["trian"])
    assert "did you mean train?" in capsys.readouterr().err
    for word, hint in (
        ("demo", "demo is a recipe of launch: write stillhouse launch demo"),
        ("distil.train", "did you mean distill.train?"),
        ("", "no command (an empty word)"),
    ):
        with pytest.raises(StageError, match=re.escape(hint)):
            cli.find(word)
    assert cli.find("onnx-export").name == cli.find("deploy.onnx_export").name == "deploy.onnx_export"


@pytest.mark.parametrize("words", [["help"], ["--help"], ["-h"], []])
def test_help_is_the_listing(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["stillhouse"])
    cli.main(words)
    assert capsys.readouterr().out == cli.listing() + "\n"


def test_the_version_is_that_of_the_project(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["--version"])
    assert capsys.readouterr().out == f"stillhouse {PROJECT['version']}\n"


def test_a_reader_may_close_the_pipe() -> None:
    """Ends as other programs do, whatever part of the output was read."""
    command = [sys.executable, "-m", "cluster.console", "show", "installed-docs"]
    read, write = os.pipe()
    with subprocess.Popen(command, stdout=write, stderr=subprocess.PIPE, text=True) as process:
        os.close(write)
        os.close(read)
        _, printed = process.communicate()
    assert (process.returncode, printed) == (128 + signal.SIGPIPE, "")


def test_every_recipe_says_its_purpose(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["recipes"])
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines} == SHIPPED
    assert max(map(len, lines)) <= 130
    assert [name for name in SHIPPED if len(recipes.purpose(name)) < 15] == []


@pytest.mark.parametrize("name", sorted(LOADED))
def test_what_show_prints_is_the_recipe(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["show", name])
    (tmp_path / "shown.toml").write_text(capsys.readouterr().out, encoding="utf-8")
    command = recipes.reader(name)
    assert recipes.read(command, str(tmp_path / "shown.toml")) == recipes.read(command, name)


def test_show_documents_values_and_marks_what_differs(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["show", "demo#corpus", "--set", "max_bad_share=0.5"])
    text = capsys.readouterr().out
    assert "# demo#corpus: cluster.corpus" in text
    assert "max_bad_share = 0.5  # default: 0.01" in text
    assert "[[sources]]" in text
    assert 'kind = "installed-docs"  # no default' in text
    assert re.search(r"# auto: one per CPU.*\n(# .*\n)*actors = \"auto\"\n", text)
    assert "# metrics_port is not set" in text


def test_show_needs_to_know_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.toml").write_text("labels = 3\n", encoding="utf-8")
    with pytest.raises(StageError, match=r"show .*mine\.toml tokens"):
        recipes.reader(str(tmp_path / "mine.toml"))
    cli.main(["show", str(tmp_path / "mine.toml"), "provenance"])
    assert "labels = 3" in capsys.readouterr().out
    (tmp_path / "mine#2.toml").write_text("labels = 4\n", encoding="utf-8")
    cli.main(["show", str(tmp_path / "mine#2.toml"), "provenance"])
    assert "labels = 4" in capsys.readouterr().out
    cli.main(["show", "default", "provenance"])
    assert "passages_per_label = " in capsys.readouterr().out
    with pytest.raises(StageError, match="no recipe"):
        recipes.read("cluster.jobs", "default")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["train"], "train is a command, not a recipe: write stillhouse show demo#train\n"),
        (["corpus"], "write stillhouse show installed-docs\n"),
        (["quantize"], "write stillhouse show int8\n"),
        (["sensitivity"], "write stillhouse show default sensitivity\n"),
        (["default"], "which command reads default? For example: stillhouse show default tokens\n"),
        (["distillbert"], "recipe distillbert is neither a file nor one that ships: did you mean distilbert?"),
        (["distillbert", "launch"], "did you mean distilbert?"),
        (["demo", "train"], "demo is a recipe of launch, not of train: write demo#train for its table"),
        (["onnx", "train"], "onnx is a recipe of onnx-export, not of train\n"),
        (["demo", "latency"], "not of latency: write demo#suite.exports.latency for its table"),
        (["own-text", "onnx-export"], "own-text is a recipe of launch, not of onnx-export\n"),
        (["demo#trian"], "no table [trian]; did you mean train?"),
        (["demo#suite.finetune"], 'task is missing and has no default: write task = "rte"'),
    ],
)
def test_show_says_what_to_write_instead(words: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="1"):
        cli.main(["show", *words])
    assert line in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(catalogue.ENTRIES))
def test_every_value_of_a_recipe_is_documented(name: str) -> None:
    """A table alone may do with the documentation of its class."""
    undocumented = {
        f"{owner.__name__}.{value}"
        for owner in recipe_classes(name)
        for value, field in owner.model_fields.items()
        if not field.description and not (isinstance(field.annotation, type) and issubclass(field.annotation, Recipe))
    }
    assert undocumented == set()


def recipe_classes(name: str) -> set[type[Recipe]]:
    """The recipe class of a stage or command with the classes of its tables; empty if it reads no recipe."""
    schemas = [entry.load() for entry in entry_points(group=recipes.SCHEMAS, name=name)]
    waiting: list[Any] = [registry.find(name).recipe] if name in registry.entries() else schemas
    found: set[Any] = set()
    while waiting:
        kind = waiting.pop()
        waiting += get_args(kind)
        if isinstance(kind, type) and issubclass(kind, Recipe) and kind not in found:
            found.add(kind)
            waiting += [field.annotation for field in kind.model_fields.values()]
    return found


def complete(script: Path, *words: str) -> list[str]:
    """What bash offers for the last of these words."""
    command = f"""
        source {script}
        complete -p stillhouse >&2
        COMP_WORDS=({" ".join(word or "''" for word in words)})
        COMP_CWORD={len(words) - 1}
        _stillhouse
        echo "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert done.stderr == "complete -o default -F _stillhouse stillhouse\n"
    return done.stdout.split()


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """A catalogue of commands whose modules import fast, and none that the tests register."""
    known, names = cli.installed(), ("cluster.corpus", "cluster.jobs", "eval.provenance")
    monkeypatch.setattr(catalogue, "GROUPS", {"Some": tuple(catalogue.ENTRIES[name] for name in names)})
    monkeypatch.setattr(cli, "installed", lambda: {name: found for name, found in known.items() if "." in name})


@pytest.mark.usefixtures("few")
def test_bash_completes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["completion", "bash"])
    script = tmp_path / "stillhouse.bash"
    script.write_text(capsys.readouterr().out, encoding="utf-8")
    assert complete(script, "stillhouse", "") == [
        *("corpus", "jobs", "provenance"),
        *("new", "recipes", "show", "completion"),
    ]
    assert complete(script, "stillhouse", "pro") == ["provenance"]
    assert complete(script, "stillhouse", "corpus", "") == ["installed-docs", "default", "--out", "--set", "--help"]
    assert complete(script, "stillhouse", "corpus", "installed-docs", "--o") == ["--out"]
    assert complete(script, "stillhouse", "corpus", "installed-docs", "--out", "in") == [], "files follow --out"
    assert complete(script, "stillhouse", "show", "int8-") == ["int8-static"]
    assert complete(script, "stillhouse", "jobs", "su") == ["submit"]
    assert complete(script, "stillhouse", "jobs", "submit", "eval.pro") == ["eval.provenance"]
    assert complete(script, "stillhouse", "jobs", "submit", "pro") == ["provenance"]
    assert complete(script, "stillhouse", "jobs", "list", "--") == ["--ledger", "--all", "--user", "--json", "--help"]
    for word in ("provenance", "eval.provenance"):
        assert complete(script, "stillhouse", "jobs", "submit", word, "--co") == ["--corpus"]
        assert complete(script, "stillhouse", "jobs", "submit", word, "provenance", "--ga") == []
        assert complete(script, "stillhouse", "jobs", "submit", word, "provenance", "--gp") == ["--gpus"]


@pytest.mark.usefixtures("few")
def test_zsh_and_fish_have_the_same_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert completion.script("zsh").endswith(completion.script("bash"))
    fish = completion.script("fish").splitlines()
    assert "complete -c stillhouse -n '__fish_seen_subcommand_from completion' -a 'bash zsh fish --help'" in fish
    (following,) = [line for line in fish if "-n '__fish_seen_subcommand_from jobs; and not " in line]
    assert " start submit " in following
    (listed,) = [line for line in fish if "from jobs; and __fish_seen_subcommand_from list'" in line]
    assert "--user" in listed
    assert capsys.readouterr().out == ""


ZSH = """
autoload -U +X compinit && compinit -u
source {script}
words=({words}) CURRENT={count}
COMP_WORDS=({words}) COMP_CWORD=$((CURRENT - 1))
compgen -F _stillhouse -- {last}
"""
"""As zsh's bashcompinit calls the function; zsh itself then selects by the prefix."""


@pytest.mark.usefixtures("few")
@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_zsh_completes(tmp_path: Path) -> None:
    script = tmp_path / "_stillhouse"
    script.write_text(completion.script("zsh"), encoding="utf-8")

    def offered(*words: str) -> list[str]:
        code = ZSH.format(script=script, words=" ".join(words), count=len(words), last=words[-1])
        done = subprocess.run(["zsh", "-f", "-c", code], capture_output=True, text=True, check=True)
        assert done.stderr == ""
        return done.stdout.split()

    assert "provenance" in offered("stillhouse", "pro")
    assert "submit" in offered("stillhouse", "jobs", "su")
    assert offered("stillhouse", "jobs", "list", "--") == ["--ledger", "--all", "--user", "--json", "--help"]
    assert "--corpus" in offered("stillhouse", "jobs", "submit", "provenance", "--co")
    assert offered("stillhouse", "corpus", "installed-docs", "--out", "in") == []


@pytest.mark.usefixtures("few")
@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")
def test_fish_completes(tmp_path: Path) -> None:
    script = tmp_path / "stillhouse.fish"
    script.write_text(completion.script("fish"), encoding="utf-8")

    def offered(line: str) -> list[str]:
        code = f"source {script}; complete -C'{line}'"
        done = subprocess.run(["fish", "-N", "-c", code], capture_output=True, text=True, check=True)
        return [found.partition("\t")[0] for found in done.stdout.splitlines()]

    assert offered("stillhouse pro") == ["provenance"]
    assert offered("stillhouse jobs su") == ["submit"]
    assert "--user" in offered("stillhouse jobs list --")
    assert offered("stillhouse jobs submit provenance --co") == ["--corpus"]


class GrammarError(Exception):
    """Leaves a command with its parser, before it reads its arguments."""


def parsers(word: str, monkeypatch: pytest.MonkeyPatch) -> list[argparse.ArgumentParser]:
    """The parser of a command, and those of its subcommands."""
    kept: list[argparse.ArgumentParser] = []

    def leave(parser: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        kept.append(parser)
        raise GrammarError

    with monkeypatch.context() as patch, contextlib.suppress(GrammarError):
        patch.setattr(argparse.ArgumentParser, "parse_args", leave)
        cli.main([word])
    (parser,) = kept
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            kept += action.choices.values()
    return kept


@pytest.mark.parametrize("word", [entry.word for entry in (*catalogue.ENTRIES.values(), *catalogue.OWN)])
def test_help_gives_meaning_default_and_an_example(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every option of every command; switches need no example."""
    whole, *_ = found = parsers(word, monkeypatch)
    assert re.match(rf"examples?: stillhouse {word} ", whole.epilog or ""), whole.epilog
    assert word in ("jobs", *cli_words(whole.epilog or "")), "the example is of this command"
    assert (whole.epilog or "") in whole.format_help(), "the example can be copied"
    assert "``" not in whole.format_help()
    for parser in found:
        for action in parser._actions:
            if (
                isinstance(action, argparse._HelpAction | argparse._SubParsersAction)
                or action.help == argparse.SUPPRESS
            ):
                continue
            text, name = action.help or "", (*action.option_strings, action.dest)[0]
            where = f"{parser.prog} {name}: {text}"
            assert len(re.sub(r"[(;].*", "", text).split()) >= 2, f"{where}: no meaning"
            assert "example: " in text or action.nargs == 0 or isinstance(action, argparse.BooleanOptionalAction), where
            assert "(default: " in text or action.required or not action.option_strings, f"{where}: no default"


def cli_words(example: str) -> list[str]:
    return example.partition(": ")[2].split()


@pytest.mark.parametrize("word", [word_of(name) for name in registry.entries() if name in catalogue.ENTRIES])
def test_the_example_of_a_stage_is_a_command_line(word: str) -> None:
    stage = registry.find(word)
    parser = artifacts_cli.parser_for(stage, f"stillhouse {word}")
    options = parser.parse_args(cli_words(parser.epilog or "")[2:])
    if stage.subject:
        return
    made = stage.load(options.recipe, options.set)
    (example,) = [action.help.rpartition("--set ")[2] for action in parser._actions if action.dest == "set"]
    if example != "key=value":
        stage.load(options.recipe, [*options.set, example])
    if word == "teacher":
        assert (options.tokens is not None) == (made.train is not None), "rows are for a teacher that trains"


def test_the_examples_of_stages_follow_each_other() -> None:
    def made(word: str) -> str:
        return cli_words(artifacts_cli.parser_for(registry.find(word), word).epilog or "")[-1]

    assert made("train") == "out/runs/student"
    assert made("export") == "out/students/student"
    assert made("onnx-export") == "out/exports/student/onnx"
    assert made("quantize") == "out/exports/student/int8"


def test_new_writes_a_recipe_that_means_the_shipped_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("own-text", "gpu-16gb", "provenance", "demo"):
        cli.main(["new", f"my-{name}", "--recipe", name])
        path = Path(f"my-{name}.toml")
        assert capsys.readouterr().out == f"{path}\n"
        command = recipes.reader(name)
        assert recipes.read(command, str(path)) == recipes.read(command, name)
        lines = path.read_text(encoding="utf-8").splitlines()
        assert max(map(len, lines)) <= 120
        for number, line in enumerate(lines):
            # An ablation is explained where the first begins.
            if re.match(r"[\w\[]", line) and name != "demo":
                assert lines[number - 1].startswith("# "), f"{line} is explained"


def test_new_overwrites_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "my.toml").write_text("mine", encoding="utf-8")
    with pytest.raises(SystemExit, match="1"):
        cli.main(["new", str(tmp_path / "my.toml")])
    assert "exists and is never overwritten: choose another name" in capsys.readouterr().err
    assert (tmp_path / "my.toml").read_text(encoding="utf-8") == "mine"
    with pytest.raises(SystemExit, match="1"):
        cli.main(["new", str(tmp_path / "other.toml"), "--recipe", "own-txt"])
    assert "did you mean own-text?" in capsys.readouterr().err
    assert not (tmp_path / "other.toml").exists()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([""], "an empty name is no name of a file"),
        (["."], ". is no name of a file"),
        ([".."], ".. is no name of a file"),
        (["sub/"], "sub/ is no name of a file"),
        ([".toml"], ".toml is no name of a file"),
        (["-"], "- is no name of a file"),
        (["sub/my.toml"], "sub/my.toml: there is no folder sub: make it first"),
        (["my.toml", "--recipe", "demo#train"], "no recipe of this name ships: did you mean demo?"),
        (["my.toml", "--recipe", "default"], "stillhouse recipes lists those that ship"),
    ],
)
def test_new_refuses_what_it_cannot_write(
    words: list[str], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="1"):
        cli.main(["new", *words])
    assert line in capsys.readouterr().err
    assert [*tmp_path.iterdir()] == []


def test_the_commands_in_a_new_recipe_can_be_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cli.main(["new", "my text"])
    written = Path("my text.toml").read_text(encoding="utf-8")
    assert "stillhouse launch 'my text.toml' --out 'my text' " in written


@pytest.mark.parametrize(
    ("words", "instead"),
    [
        (["show", "own-text"], "write stillhouse show own-text"),
        (["show"], "write stillhouse show demo"),
        (["demo"], "write stillhouse show demo"),
        (["list", "demo"], "write stillhouse show demo"),
        (["kes", "train"], "write stillhouse recipes keys train"),
        (["train.loss"], "write stillhouse recipes keys train.loss"),
    ],
)
def test_recipes_says_what_to_write_instead(words: list[str], instead: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["recipes", *words])
    assert capsys.readouterr().err.endswith(f"error: {instead}\n")


def test_own_text_is_ten_lines() -> None:
    lines = recipe.find("own-text").read_text(encoding="utf-8").splitlines()
    assert len([line for line in lines if line and not line.startswith("#")]) <= 10


def test_the_keys_of_a_table_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    def printed(*words: str) -> str:
        cli.main(["recipes", "keys", *words])
        return capsys.readouterr().out

    tables = ["corpus", "tokens", "teacher", "train", "ablations", "suite", "added_ablations", "cpus", "stillhouse"]
    assert re.findall(r"^(\w+) ", printed(), re.MULTILINE) == tables
    assert printed("launch") == printed()
    loss = printed("train.loss")
    assert re.search(r"^soft +5\.0 +Weight of the KL divergence", loss, re.MULTILINE)
    assert re.search(r"^loss +\[train\.loss\] +Weights and settings of the loss", printed("train"), re.MULTILINE)
    assert re.search(r"^source +\(not set\) +A BERT or RoBERTa", printed("teacher"), re.MULTILINE)
    sources = printed("corpus.sources")
    assert "corpus.sources: Plain UTF-8 files" in sources
    assert 'documents               "file"' in sources
    assert 'kind                    "text"' in sources
    assert "``" not in sources
    assert printed("corpus.sources.0") == sources.replace("corpus.sources:", "corpus.sources.0:")
    assert printed("train.loss.temperature").startswith("temperature             2.0  Softens")
    assert 'workers                 "auto" or [train.placement.workers]' in printed("train.placement")
    for path, same in (
        ("suite.finetune", "finetune"),
        ("suite.tasks.rte", "finetune"),
        ("suite.exports.latency", "latency"),
        ("ablations.no-soft", "train"),
    ):
        assert printed(path).split() == printed(same).replace(f"[{same}.", f"[{path}.").split()
    for path, hint in (
        ("train.los", "did you mean train.loss?"),
        ("trian", "no table trian: did you mean train?"),
        ("finetune.sed", "did you mean finetune.seeds?"),
        ("train.", "no table train.; known here: train.loss, "),
        ("demo", "demo is a recipe, not a table: write stillhouse show demo"),
        ("plan", "plan reads no recipe of its own"),
        ("", "no table (an empty word)"),
    ):
        with pytest.raises(SystemExit, match="1"):
            cli.main(["recipes", "keys", path])
        assert hint in capsys.readouterr().err


def test_the_script_has_every_command() -> None:
    script = completion.script("bash")
    for entry in (*catalogue.ENTRIES.values(), *catalogue.OWN):
        assert re.search(rf'^ +"{entry.word}"\) words=.*--help', script, re.MULTILINE), entry.word
