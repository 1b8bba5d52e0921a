"""The built wheel works outside the checkout: every stage starts, and it has every recipe, template and teacher."""

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import paths
import pytest

from cluster.artifacts import errors, registry
from cluster.models import runtimes

ROOT = paths.ROOT
BRITISH = re.compile(
    r"\b(?:[Tt]okenis(?:es|ed|er|ing|ation)|(?:[Qq]uanti|[Nn]ormali|[Ii]nitiali|[Ss]ummari|[Oo]rgani)s(?:e[sdr]?|ing|ation)"
    r"|[Oo]ptimis(?:e[sdr]?|ing|ation)|[Uu]tilisation|(?:[Nn]eighb|[Bb]ehavi|[Ff]av)our\w*|[Ll]icences|Licence"
    r"|[Dd]ev sets?)\b"
)
"""Other spellings than ours. The recipe key ``licence`` and JSON keys such as ``tokenise`` belong to formats."""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(source)], check=True)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--wheel-dir", str(folder), str(source)], check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(folder / "site")
    return folder / "site"


def test_only_the_four_packages_are_in_the_wheel(installed: Path) -> None:
    folders = {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")}
    assert folders == {"cluster", "distill", "eval", "deploy"}


def test_recipes_templates_and_teachers_are_in_the_wheel(installed: Path) -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "*/recipes/*", "*/templates/*", "*/teachers/*"], cwd=ROOT, capture_output=True, text=True
    )
    wanted = [name for name in tracked.stdout.split() if not name.startswith("tests/")]
    assert len(wanted) > 8
    assert [name for name in wanted if not (installed / name).is_file()] == []


@pytest.mark.parametrize("module", ["cluster.corpus", "distill.launch", "eval.report", "deploy.web_page"])
def test_a_stage_starts_outside_the_checkout(installed: Path, tmp_path: Path, module: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    where = f"import {module.partition('.')[0]} as package; print(package.__file__)"
    found = subprocess.run(
        [sys.executable, "-c", where], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert found.stdout.startswith(str(installed))
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert f"usage: python -m {module}" in done.stdout


def _pins(lines: list[str]) -> dict[str, str]:
    """Versions by normalized distribution name."""
    found = (re.match(r"([\w.-]+)(?:\[.*\])?==(\S+)", line) for line in lines)
    return {re.sub(r"[-_.]+", "-", each[1]).lower(): each[2] for each in found if each}


def test_requirements_and_lock_file_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    locked = _pins((ROOT / "requirements.lock").read_text().splitlines())
    asked = [*project["dependencies"], *(each for extra in project["optional-dependencies"].values() for each in extra)]
    assert len(_pins(asked)) == len({re.split(r"[=<>\[]", each)[0] for each in asked}), "all are pinned"
    # pip freeze leaves setuptools out, no tested installation has Google's store, and trackio needs an older Pillow.
    left_out = ("setuptools", "gcsfs", "trackio")
    wanted = {name: version for name, version in _pins(asked).items() if name not in left_out}
    assert {name: locked.get(name) for name in wanted} == wanted
    converter = _pins((ROOT / "deploy" / "litert_converter.txt").read_text().splitlines())
    assert {name: locked[name] for name in converter if name in locked} == {
        name: version for name, version in converter.items() if name in locked
    }


def _extras() -> dict[str, dict[str, str]]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return {name: _pins(asked) for name, asked in project["optional-dependencies"].items()}


@pytest.mark.parametrize("runtime", runtimes.RUNTIMES)
def test_every_runtime_is_in_an_extra(runtime: str) -> None:
    distribution, extra = runtimes.RUNTIMES[runtime].distribution, runtimes.RUNTIMES[runtime].extra
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert distribution in (_pins(project["dependencies"]) if extra is None else _extras()[extra])


def _missing(target: str) -> str | None:
    """Error message for a missing toolchain."""
    toolchain = registry.find(f"deploy.{target}_export").toolchain
    assert toolchain is not None
    try:
        toolchain()
    except errors.StageError as error:
        return str(error)
    return None


@pytest.mark.parametrize("target", ["openvino", "executorch", "litert"])
def test_the_error_for_a_missing_toolchain_names_the_extra_that_installs_it(target: str) -> None:
    if (said := _missing(target)) is None:
        pytest.skip("it is installed")
    told = re.fullmatch(r"(\S+) is not installed: pip install 'stillhouse\[(\w+)\]'", said)
    assert told is not None, said
    assert told[1] in _extras()[told[2]]


def test_texts_have_one_spelling() -> None:
    """Ours is American, as in the names of the libraries, and says "development set"."""
    folders = ("cluster", "distill", "eval", "deploy", "docs", "k8s")
    found = {path for folder in folders for path in (ROOT / folder).rglob("*.*")} | {*ROOT.glob("*.md")}
    kinds = {".py", ".toml", ".md", ".html", ".js", ".css", ".yaml"}
    texts = {path: path.read_text(encoding="utf-8") for path in found if path.suffix in kinds}
    assert {path.name: words for path, text in texts.items() if (words := BRITISH.findall(text))} == {}
    assert BRITISH.findall("dev sets, quantised by a Licence") == ["dev sets", "quantised", "Licence"]
