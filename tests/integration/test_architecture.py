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

import paths
import pytest

from cluster.artifacts import registry
from cluster.console import cli

ROOT = paths.ROOT
PACKAGES = ("cluster", "distill", "eval", "deploy")

LAYERS: dict[str, list[set[str]]] = {
    "cluster": [
        {"telemetry"},
        {"storage"},
        {"artifacts"},
        {"actors", "readers", "serving"},
        {"corpus"},
        {"tokens"},
        {"models"},
        {"jobs"},
        {"inspect"},
        {"console"},
    ],
    "distill": [
        {"follow"},
        {"config"},
        {"modeling", "data"},
        {"cost_model", "engine"},
        {"checkpointing"},
        {"train"},
        {"launch"},
        {"plan"},
    ],
    "eval": [
        {"tasks", "results"},
        {"finetune", "benchmark", "highlights"},
        {"mobile", "probe"},
        {"report"},
        {"hub"},
        {"suite"},
    ],
    "deploy": [{"conversion"}, {"targets"}, {"web_page"}, {"predict", "verify_image"}, {"ask"}],
}
"""Folders and modules of a package, lowest first: each imports only what is below it."""

MOST_MODULES = 13
"""In a folder, without ``__init__`` and ``__main__``."""

DOORS = {
    "deepspeed": ("distill/engine/",),
    "ray": ("cluster/actors/", "cluster/jobs/", "distill/launch/"),
    "onnxruntime": ("deploy/", "cluster/models/runtimes.py"),
    "prometheus_client": ("cluster/telemetry/",),
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


def _folder(dotted: str) -> str:
    """The folder, or the module beside the folders, that a dotted name of ours is in."""
    return dotted.split(".")[1]


def _folder_imports(package: str) -> Iterator[tuple[str, str, str]]:
    """Importing folder, imported folder, and where, inside a package."""
    for path in _modules(package):
        if path.parent == ROOT / package and path.stem == "__init__":
            continue
        source = _folder(path.relative_to(ROOT).with_suffix("").as_posix().replace("/", "."))
        for name in _imported(path):
            if name.startswith(f"{package}.") and _folder(name) != source:
                yield source, _folder(name), f"{_name(path)} imports {name}"


@pytest.mark.parametrize("package", PACKAGES)
def test_folders_import_only_lower_layers(package: str) -> None:
    rank = {folder: number for number, layer in enumerate(LAYERS[package]) for folder in layer}
    wrong = [where for source, target, where in _folder_imports(package) if rank[target] >= rank[source]]
    assert wrong == []
    present = {path.stem for path in (ROOT / package).glob("*.py")} - {"__init__"}
    present |= {path.parent.name for path in (ROOT / package).glob("*/*.py")}
    assert present == set(rank), "every folder has its layer"


@pytest.mark.parametrize("package", [*PACKAGES, "k8s"])
def test_a_folder_is_small(package: str) -> None:
    sizes = Counter(path.parent for path in _modules(package) if path.stem not in ("__init__", "__main__"))
    assert {_name(folder): size for folder, size in sizes.items() if size > MOST_MODULES} == {}


@pytest.mark.parametrize("package", [*PACKAGES, "k8s"])
def test_public_class_names_are_unique_within_a_package(package: str) -> None:
    homes: dict[str, list[str]] = {}
    for path in _modules(package):
        for node in _tree(path).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes.setdefault(node.name, []).append(_name(path))
    assert {name: places for name, places in homes.items() if len(places) > 1} == {}


@pytest.mark.parametrize("library", DOORS)
def test_a_heavy_library_has_its_doors_and_no_others(library: str) -> None:
    using = [_name(path) for path in _modules() if library in {name.partition(".")[0] for name in _imported(path)}]
    assert [name for name in using if not name.startswith(DOORS[library])] == []
    unused = [door for door in DOORS[library] if not any(name.startswith(door) for name in using)]
    assert unused == [], "doors nobody uses"


def test_nothing_imports_the_tests() -> None:
    tests = {path.stem for path in (ROOT / "tests").rglob("*.py") if "unit" not in path.parts}
    assert [_name(path) for path in _modules() if tests & {*_imported(path)}] == []


def test_eval_is_never_rebound() -> None:
    """``import eval.x`` would replace the builtin ``eval``."""
    wrong = [
        f"{_name(path)}: line {node.lineno}"
        for path in [*_modules(), *(ROOT / "tests").rglob("*.py")]
        for node in ast.walk(_tree(path))
        if isinstance(node, ast.Import) and any(f"{alias.name}.".startswith("eval.") for alias in node.names)
    ]
    assert wrong == []


def test_module_names_say_what_the_module_is() -> None:
    modules = _modules(*PACKAGES, "k8s")
    assert [_name(path) for path in modules if FORBIDDEN_NAMES.search(path.stem)] == []
    assert [_name(path) for path in modules if FORBIDDEN_NAMES.search(path.parent.name)] == []


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


def test_no_test_module_hides_one_of_python_or_of_a_dependency() -> None:
    """Two folders of tests are on the path; our packages are reached by their own names alone."""
    on_path = [*(ROOT / "tests" / "support").glob("*.py"), *(ROOT / "tests" / "benchmarks").glob("*.py")]
    ours = {path.stem for path in on_path}
    dependencies = _dependencies()
    assert {"torch", "deepspeed", "ray", "sklearn"} <= dependencies
    assert sorted(ours & (sys.stdlib_module_names | dependencies)) == []
    assert sorted({*PACKAGES} & (sys.stdlib_module_names | dependencies)) == []


@pytest.mark.parametrize("path", [path for path in _modules(*PACKAGES, "k8s") if path.stem != "__main__"], ids=_name)
def test_a_module_says_what_it_is_for(path: Path) -> None:
    docstring = ast.get_docstring(_tree(path))
    assert docstring, "no docstring"
    assert docstring.partition("\n")[0].rstrip().endswith((".", ":", "?")), "its first line is no sentence"


def test_nothing_unsafe_is_ever_loaded() -> None:
    wrong = []
    for path in [*_modules(), *(ROOT / "tests").rglob("*.py")]:
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


def test_every_stage_is_registered_under_its_name() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    registered = project["entry-points"][registry.GROUP]
    modules = {path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".") for path in _stages()}
    assert {place.removesuffix(":STAGE") for place in registered.values()} == modules
    installed = {name: entry.value for name, entry in registry.entries().items() if name in registered}
    assert installed == registered, "make install again"
    assert [name for name in registered if registry.find(name).name != name] == []


def test_a_command_has_two_lines() -> None:
    mains = [path for path in _modules() if path.stem == "__main__"]
    assert [_name(path) for path in mains if len(_tree(path).body) != 2] == []


def test_every_command_that_is_mentioned_exists() -> None:
    """In the README, in docstrings, recipes, manifests and the Makefile alike."""
    command = re.compile(r"(?:python3?|torchrun)\b[^\n`]*? -m\s+((?:cluster|distill|eval|deploy)(?:\.\w+)+)")
    mentioned = {(name, _name(path)) for path, text in _texts() for name in command.findall(text)}
    assert {name for name, _ in mentioned} >= {"cluster.corpus", "distill.launch", "distill.train"}
    assert sorted(where for where in mentioned if importlib.util.find_spec(where[0]) is None) == []
    known = {entry.word for _, group in cli.groups() for entry in group} | {*cli.installed()}
    no_commands = {"lists", "installs", "pro", "service", "trian"}
    word = re.compile(r"(?<![\w./-])stillhouse ([a-z][\w.-]*)")
    typed = {(name.rstrip("."), _name(path)) for path, text in _texts() for name in word.findall(text)}
    assert sorted(where for where in typed if where[0] not in known | no_commands) == []


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
    assert project["tool"]["setuptools"]["packages"]["find"]["include"] == [f"{package}*" for package in PACKAGES]
    assert project["tool"]["mypy"]["packages"] == [*PACKAGES, "k8s.monitoring.source"]
    folders = {path.parent for path in _modules()}
    assert [_name(folder) for folder in folders if not (folder / "__init__.py").is_file()] == []
