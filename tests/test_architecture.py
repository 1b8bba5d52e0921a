"""What the shape of the project promises: a star of packages, one door to each heavy library, names that say which."""

import ast
import functools
import importlib.metadata
import importlib.util
import re
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("cluster", "distill", "eval", "deploy")

DOORS = {
    "deepspeed": ("distill/engine.py",),
    "ray": (
        "cluster/jobs.py",
        "cluster/job_crew.py",
        "cluster/job_nodes.py",
        "cluster/job_queue.py",
        "cluster/ray_cluster.py",
        "cluster/pool.py",
        "distill/deaths.py",
        "distill/places.py",
        "distill/workers.py",
    ),
    "onnxruntime": ("deploy/", "cluster/runtimes.py"),
    "prometheus_client": ("cluster/telemetry.py",),
    "grafana_foundation_sdk": ("deploy/panels.py",),
}
"""Library to the only files and folders that may import it."""

FORBIDDEN_NAMES = re.compile(r"(^|_)(utils?|helpers?|common|base|managers?|misc)(_|$)")


@functools.cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def _modules(*packages: str) -> list[Path]:
    return sorted(path for package in packages or PACKAGES for path in (ROOT / package).rglob("*.py"))


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _imported(path: Path) -> Iterator[str]:
    """Dotted names a module imports, wherever it does so."""
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{_name(path)}: line {node.lineno}: write the package's name"
            yield node.module or ""


def _files() -> list[Path]:
    """Files of the checkout that git keeps or would keep; all of them where there is no git."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")
    except (OSError, subprocess.CalledProcessError):
        found = [path for package in (*PACKAGES, "tests", "k8s") for path in (ROOT / package).rglob("*")]
        found += [path for path in ROOT.iterdir() if not path.name.startswith(".")]
        return [path for path in found if path.is_file() and "__pycache__" not in path.parts]
    return [ROOT / name for name in listed if name and (ROOT / name).is_file()]


def _texts() -> Iterator[tuple[Path, str]]:
    for path in _files():
        try:
            yield path, path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_are_a_star_around_cluster(package: str) -> None:
    allowed = {package, "cluster"}
    wrong = [
        f"{_name(path)} imports {name}"
        for path in _modules(package)
        for name in _imported(path)
        if name.partition(".")[0] in PACKAGES and name.partition(".")[0] not in allowed
    ]
    assert wrong == []


@pytest.mark.parametrize("library", DOORS)
def test_a_heavy_library_has_its_doors_and_no_others(library: str) -> None:
    using = [_name(path) for path in _modules() if library in {name.partition(".")[0] for name in _imported(path)}]
    assert [name for name in using if not name.startswith(DOORS[library])] == []
    unused = [door for door in DOORS[library] if not any(name.startswith(door) for name in using)]
    assert unused == [], "doors nobody uses"


def test_nothing_imports_the_tests() -> None:
    tests = {path.stem for path in (ROOT / "tests").glob("*.py")}
    assert [_name(path) for path in _modules() if tests & {*_imported(path)}] == []


def test_eval_is_never_rebound() -> None:
    """``import eval.x`` would replace the builtin ``eval``."""
    wrong = [
        f"{_name(path)}: line {node.lineno}"
        for path in [*_modules(), *(ROOT / "tests").glob("*.py")]
        for node in ast.walk(_tree(path))
        if isinstance(node, ast.Import) and any(f"{alias.name}.".startswith("eval.") for alias in node.names)
    ]
    assert wrong == []


def test_module_names_are_unique_and_of_one_thing() -> None:
    names = Counter(path.stem for path in _modules() if path.stem != "__init__")
    assert [name for name, count in names.items() if count > 1] == []
    assert [name for name in names if FORBIDDEN_NAMES.search(name)] == []


def _dependencies() -> set[str]:
    """Top-level modules of the distributions that pyproject.toml asks for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = {
        re.split(r"[^\w.-]", requirement, maxsplit=1)[0].lower().replace("_", "-")
        for requirement in [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    }
    return {
        module
        for module, distributions in importlib.metadata.packages_distributions().items()
        if wanted & {name.lower().replace("_", "-") for name in distributions}
    }


def test_no_module_hides_one_of_python_or_of_a_dependency() -> None:
    ours = {path.stem for path in [*_modules(), *(ROOT / "tests").glob("*.py")]} - {"__init__"}
    dependencies = _dependencies()
    assert {"torch", "deepspeed", "ray", "sklearn"} <= dependencies
    ours -= {"inspect"}  # `python -m cluster.inspect`: reached as a part of cluster alone, which is never on the path
    assert sorted(ours & (sys.stdlib_module_names | dependencies)) == []


@pytest.mark.parametrize("path", _modules(), ids=_name)
def test_a_module_says_what_it_is_for(path: Path) -> None:
    docstring = ast.get_docstring(_tree(path))
    assert docstring, "no docstring"
    assert docstring.partition("\n")[0].rstrip().endswith((".", ":", "?")), "its first line is no sentence"


def test_nothing_unsafe_is_ever_loaded() -> None:
    wrong = []
    for path in [*_modules(), *(ROOT / "tests").glob("*.py")]:
        for node in ast.walk(_tree(path)):
            if isinstance(node, ast.Attribute) and ast.unparse(node) in ("torch.load", "yaml.load", "yaml.unsafe_load"):
                wrong.append(f"{_name(path)}: line {node.lineno}: {ast.unparse(node)}")
            if isinstance(node, ast.keyword) and node.arg == "trust_remote_code" and ast.unparse(node.value) != "False":
                wrong.append(f"{_name(path)}: line {node.value.lineno}: trust_remote_code")
        pickles = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"} & {*_imported(path)}
        if path.name != "bench_tokens.py":  # measures what writing a pickle takes
            wrong += [f"{_name(path)}: imports {name}" for name in pickles]
    assert wrong == []


def _stages() -> list[Path]:
    def names_a_stage(node: ast.stmt) -> bool:
        return isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["STAGE"]

    return [path for path in _modules() if any(names_a_stage(node) for node in _tree(path).body)]


def test_every_stage_ends_with_its_command_line() -> None:
    stages = _stages()
    assert {"cluster/corpus.py", "distill/train.py", "eval/report.py", "deploy/quantize.py"} <= {*map(_name, stages)}
    ending = "if __name__ == '__main__':\n    stage.main(STAGE)"
    assert [_name(path) for path in stages if ast.unparse(_tree(path).body[-1]) != ending] == []


def test_every_command_that_is_mentioned_exists() -> None:
    """In the README, in docstrings, recipes, manifests and the Makefile alike."""
    command = re.compile(r"(?:python3?|torchrun)\b[^\n`]*? -m\s+((?:cluster|distill|eval|deploy)(?:\.\w+)+)")
    mentioned = {(name, _name(path)) for path, text in _texts() for name in command.findall(text)}
    assert {name for name, _ in mentioned} >= {"cluster.corpus", "distill.launch", "distill.train"}
    assert sorted(where for where in mentioned if importlib.util.find_spec(where[0]) is None) == []


def test_no_file_knows_the_machine_it_was_written_on() -> None:
    machine = re.compile(r"(?<![\w.$}-])/(?:work|root|home/\w+|Users/\w+)/")
    wrong = [
        f"{_name(path)}: line {number}: {line.strip()[:80]}"
        for path, text in _texts()
        if path != Path(__file__)
        for number, line in enumerate(text.splitlines(), 1)
        if machine.search(line)
    ]
    assert wrong == []


def test_the_packages_are_what_is_installed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert tuple(project["tool"]["setuptools"]["packages"]) == PACKAGES
    assert project["tool"]["mypy"]["packages"] == [*PACKAGES]
    folders = {path.parent for path in _modules()}
    assert folders == {ROOT / package for package in PACKAGES}, "a folder inside a package would not be installed"
