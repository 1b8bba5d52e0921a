"""README and docs: every command parses, the main ones run on tiny data, every link leads somewhere."""

import argparse
import importlib.util
import re
import shlex
import tomllib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import tiny
from train_processes import toml

from cluster.artifacts import artifact, recipe, registry
from cluster.artifacts.recipe import Recipe
from cluster.console import cli, recipes
from distill.config import Distillation
from distill.launch.pipeline_recipe import Pipeline

ROOT = next(folder for folder in Path(__file__).resolve().parents if (folder / "pyproject.toml").is_file())
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGES = ("cluster", "distill", "eval", "deploy")
PAGES = {
    path.relative_to(ROOT).as_posix(): path
    for path in (*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("k8s/**/*.md")))
}
COMMAND = re.compile(
    rf"(?:stillhouse|(?:python3?|torchrun)(?: -\S+| \d+)*? -m (?:{'|'.join((*PACKAGES, 'k8s'))})(?:\.\w+)+)(?:\s.*|$)"
)
PLACEHOLDER = re.compile(r"[A-Z]+")


class ParsedError(Exception):
    """Leaves a command with the options of its command line, before it does anything."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options


def code(text: str) -> Iterator[str]:
    """The lines of the code blocks, continued lines joined, then the pieces of inline code."""
    blocks = "".join(line for line in text.splitlines(keepends=True) if line.startswith("    "))
    yield from re.sub(r"\s*\\\n\s*", " ", blocks).splitlines()
    prose = re.sub(r"^    .*\n", "", text, flags=re.MULTILINE)
    yield from (" ".join(piece.split()) for piece in re.findall(r"`([^`]+)`", prose))


def commands(text: str, optional: bool = True) -> Iterator[list[str]]:
    """The words of every Stillhouse command in a page."""
    for line in code(text):
        for part in re.split(r" && | -- ", re.sub(r"(^|\s)#\s.*", "", line)):
            if found := COMMAND.match(part.strip()):
                yield words(found[0], optional)


def words(line: str, optional: bool) -> list[str]:
    """Words of a documented command line, without ``…``; ``[--option VALUE]`` counts where ``optional`` does."""
    found, inside = [], False
    for word in shlex.split(line):
        inside = inside or word.startswith("[-")
        if word != "…" and (optional or not inside):
            found.append(word.lstrip("[").rstrip("]") if inside else word)
        inside = inside and not word.endswith("]")
    return found


def stage_named(word: str) -> str | None:
    """Name of the stage that ``stillhouse WORD`` runs."""
    return next((name for name in registry.entries() if name.partition(".")[2].replace("_", "-") == word), None)


def parse(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace | None:
    """Options of a ``stillhouse`` command, read by its own parser. A command that has no parser runs."""
    parse_args = argparse.ArgumentParser.parse_args

    def leave(parser: argparse.ArgumentParser, *given: Any, **named: Any) -> None:
        raise ParsedError(parse_args(parser, *given, **named))

    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", leave)
        try:
            cli.main(arguments)
        except ParsedError as parsed:
            return parsed.options
        except SystemExit as ended:
            if ended.code:
                raise AssertionError(f"stillhouse {' '.join(arguments)} does not parse") from None
    return None


def check(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The command exists, its options exist, and the shipped recipe that it names loads with its ``--set`` values."""
    if command[0] != "stillhouse":
        module = command[command.index("-m") + 1]
        runnable = importlib.util.find_spec(f"{module}.__main__") if _is_package(module) else _find(module)
        assert runnable, f"python -m {module} does not run"
        if module not in (*registry.entries(), *PROJECT["project"]["entry-points"]["stillhouse.commands"]):
            return
        command = ["stillhouse", module.partition(".")[2].replace("_", "-"), *command[command.index("-m") + 2 :]]
    arguments = command[1:]
    if len(arguments) == 1:
        arguments.append("--help")
    options = parse(arguments, monkeypatch)
    named = getattr(options, "recipe", getattr(options, "pipeline", None))
    if named and re.fullmatch(r"[a-z][a-z0-9-]*(#[\w.]+)?", named):
        _load(arguments, named, getattr(options, "set", []))


def _find(module: str) -> object:
    return importlib.util.find_spec(module)


def _is_package(module: str) -> bool:
    spec = importlib.util.find_spec(module)
    return spec is not None and spec.submodule_search_locations is not None


def _load(arguments: list[str], named: str, settings: list[str]) -> Recipe:
    if arguments[0] == "show":
        return recipes.read(recipes.reader(named), named, settings)
    stage = arguments[2] if arguments[:2] == ["jobs", "submit"] else stage_named(arguments[0])
    if stage is None:
        return recipe.load(Pipeline if "corpus" in recipe.read_values(named) else Distillation, named, settings)
    return recipes.read(stage, named, settings)


def of_recipes() -> Iterator[tuple[str, str]]:
    """Commands in the comments of the shipped recipes, and the recipe's file."""
    for path in sorted(ROOT.glob("*/recipes/*.toml")):
        for line in re.findall(
            r"^#(?:.*:)? +((?:stillhouse|python -m) .*--out \S+)", path.read_text("utf-8"), re.MULTILINE
        ):
            yield shlex.join(words(line, optional=True)), path.relative_to(ROOT).as_posix()


COMMANDS = {shlex.join(command): page for page, path in PAGES.items() for command in commands(path.read_text("utf-8"))}
COMMANDS |= dict(of_recipes())


def test_commands_are_found_as_documentation_writes_them() -> None:
    line = "stillhouse latency latency --student DIR … [--teacher DIR … --pairs STSB] --set 'a=[1]' --out DIR"
    assert words(line, optional=False)[3:] == ["--student", "DIR", "--set", "a=[1]", "--out", "DIR"]
    assert words(line, optional=True)[5:9] == ["--teacher", "DIR", "--pairs", "STSB"]
    page = "    ray job submit -- python -m distill.launch a#b \\\n      --out A   # b\n\nand `stillhouse\njobs list`\n"
    expected = [["python", "-m", "distill.launch", "a#b", "--out", "A"], ["stillhouse", "jobs", "list"]]
    assert [*commands(page)] == expected


def test_the_docs_mention_every_stage() -> None:
    text = "".join(path.read_text("utf-8") for path in PAGES.values())
    mentioned = {word for command in COMMANDS for word in shlex.split(command)[1:2]} | {
        *re.findall(r"`([\w-]+)`", text)
    }
    points = PROJECT["project"]["entry-points"]
    names = [*points["stillhouse.stages"], *points["stillhouse.commands"]]
    assert {name.partition(".")[2].replace("_", "-") for name in names} - mentioned == set()


@pytest.mark.parametrize(
    ("command", "page"),
    sorted(COMMANDS.items()),
)
def test_a_documented_command_parses(command: str, page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check(shlex.split(command), monkeypatch)


@pytest.mark.parametrize(
    "command",
    [
        "stillhouse trian RECIPE --out DIR",
        "stillhouse corpus RECIPE --where DIR",
        "stillhouse finetune finetune --set epoch=3 --model DIR --data DIR --out DIR",
        "stillhouse launch dmeo --out DIR",
        "python -m cluster." + "corpse RECIPE --out DIR",  # in two parts: modules that are mentioned anywhere exist
    ],
)
def test_a_documented_command_that_does_not_exist_is_found(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises((AssertionError, ValueError)):
        check(shlex.split(command), monkeypatch)


def test_other_commands_in_the_docs_exist() -> None:
    lines = [line for path in PAGES.values() for line in code(path.read_text("utf-8"))]
    targets = {target for line in lines for target in re.findall(r"(?:^|\s)make ([a-z-]+)", line)}
    rules = {*re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)}
    assert {"demo", "test"} <= targets <= rules
    extras = {extra for line in lines for extra in re.findall(r"'\.\[([\w,]+)\]'", line)}
    assert extras <= {*PROJECT["project"]["optional-dependencies"]}
    files = {file for line in lines for file in re.findall(r"pip install .*-r (\S+)", line)}
    assert [file for file in files if not (ROOT / file).is_file()] == []


def anchors(text: str) -> set[str]:
    """Anchors of the headings of a page, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = PAGES[page].read_text("utf-8")
    wrong = []
    for link in re.findall(r"\]\(\s*([^)\s]+)\s*\)", text):
        if re.match(r"https?://", link):
            continue
        place, _, anchor = link.partition("#")
        target = (PAGES[page].parent / place).resolve() if place else PAGES[page]
        if not target.exists() or (anchor and anchor not in anchors(target.read_text("utf-8"))):
            wrong.append(link)
    assert wrong == []


@pytest.mark.parametrize("page", PAGES)
def test_files_that_a_page_names_exist(page: str) -> None:
    names = [piece for piece in code(PAGES[page].read_text("utf-8")) if re.fullmatch(r"[\w./-]+", piece)]
    folders = tuple(f"{folder}/" for folder in (*PACKAGES, "k8s", "docs", "tests"))
    known = {path.name for folder in folders for path in (ROOT / folder).rglob("*.py")}
    absent = [piece for piece in names if piece.startswith(folders) and not (ROOT / piece).exists()]
    assert absent + [piece for piece in names if re.fullmatch(r"\w+\.py", piece) and piece not in known] == []


def test_the_readme_is_short_and_its_tree_is_that_of_the_code() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    assert len(text.splitlines()) <= 160
    assert [line for line in text.splitlines() if len(line) > 120] == []
    tree = text.partition("## Where things are")[2].partition("## Install")[0]
    named, package = set(), ""
    for line in tree.splitlines():
        if found := re.match(r"    (\w+)/ ", line):
            package = found[1]
        elif found := re.match(r"      ((?:\w+/ +)+)", line):
            named |= {f"{package}/{folder}" for folder in re.findall(r"\w+", found[1])}
    there = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).iterdir()
        if (path / "__init__.py").is_file()
    }
    assert named - {"deploy/browser"} == there


@pytest.mark.usefixtures("ray_of_three_cpus")
def test_the_stages_of_the_readme_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From text to an answer, by the command lines of the README."""
    teacher = tiny.bert_teacher(tmp_path / "bert")
    texts = [tiny.corpus(tmp_path / name, documents=60, seed=seed) for seed, name in enumerate(("river", "hill"))]
    sources = [{"kind": "jsonl", "name": text.name, "path": str(text)} for text in texts]
    placement = {"rows_per_device": 4, "log_every": 1, "save_every": 2, "validate_every": 2}
    recipes: dict[str, dict[str, Any]] = {
        "corpus": {"sources": sources},
        "tokens": {"seq_len": 32, "heldout": 0.2, "tokenizer": {"kind": "pretrained", "name": str(teacher)}},
        "teacher": {"source": str(teacher)},
        "train": {"steps": 2, "rows_per_step": 4, "validation_rows": 4, "placement": placement},
        "provenance": {"labels": 2, "passages_per_label": 10, "words": 8},
        "finetune": {"task": "provenance", "epochs": 1, "batch": 8},
        "latency": {"lengths": [8], "threads": [1], "repeats": 5, "warmup": 1},
    }
    documented: dict[str, list[str]] = {}
    stages = (ROOT / "README.md").read_text("utf-8").partition("\n## Stages\n")[2]
    for command in commands(stages, optional=False):
        documented.setdefault(" ".join(command[1:2]), command[1:])
    capsys.readouterr()

    def do(word: str, **values: Path | str) -> str:
        """Run a command of the README; ``values`` replace the words in capitals and the values of options."""
        command, *line = documented[word]
        if word in recipes:
            line[0] = str(tmp_path / f"{word}.toml")
            Path(line[0]).write_text(toml(recipes[word]), encoding="utf-8")
        names = [last.removeprefix("--") if last.startswith("--") else given for last, given in pairwise(["", *line])]
        filled = [str(values.get(name, given)) for name, given in zip(names, line, strict=True)]
        assert not any(PLACEHOLDER.fullmatch(given) for given in filled), filled
        cli.main([command, *filled])
        return capsys.readouterr().out

    out = tmp_path / "out"
    student, tuned, data = out / "students/student", out / "finetune/student/provenance", out / "datasets/provenance"
    do("corpus", out=out / "corpus")
    do("tokens", corpus=out / "corpus", out=out / "tokens")
    assert "tokens" in do("inspect", DIR=out / "tokens")
    do("teacher", out=out / "teacher")
    do("train", tokens=out / "tokens", teacher=out / "teacher", out=out / "runs/student")
    do("export", RUN=out / "runs/student", out=student)
    do("provenance", corpus=out / "corpus", out=data)
    for name, model in (("teacher", out / "teacher"), ("student", student)):
        do("finetune", model=model, data=data, out=out / "finetune" / name / "provenance")
    do("onnx-export", model=tuned, out=out / "exports/student/onnx")
    do("quantize", export=out / "exports/student/onnx", model=tuned, out=out / "exports/student/int8")
    do("latency", student=tuned, out=out / "latency")
    do("report", RESULTS=out, out=out / "report")
    do("card", REPORT=out / "report", student=student)
    assert "model-index" in (student / "README.md").read_text("utf-8")
    assert do("predict", EXPORT=out / "exports/student/int8", text="The river.").strip()
    kinds = {
        path.parent.relative_to(out).as_posix(): artifact.read(path.parent).kind
        for path in out.rglob(artifact.MANIFEST)
    }
    assert kinds == {
        "corpus": "corpus",
        "tokens": "tokens",
        "teacher": "teacher",
        "students/student": "student",
        "datasets/provenance": "dataset",
        "finetune/teacher/provenance": "finetune",
        "finetune/student/provenance": "finetune",
        "exports/student/onnx": "export",
        "exports/student/int8": "export",
        "latency": "benchmark",
        "report": "report",
    }
    assert "GPU" in do("plan", PIPELINE="distilbert")


def test_the_command_lists_recipes_and_explains_them(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["recipes"])
    assert "real-text" in capsys.readouterr().out
    cli.main(["show", "finetune"])
    assert "second_step" in capsys.readouterr().out
