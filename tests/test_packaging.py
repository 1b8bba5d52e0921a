"""The built wheel works outside the checkout: every stage starts, every recipe and template is in it."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's content, unpacked as pip would."""
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


def test_recipes_and_templates_are_in_the_wheel(installed: Path) -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "*/recipes/*", "*/templates/*"], cwd=ROOT, capture_output=True, text=True
    )
    wanted = [name for name in tracked.stdout.split() if not name.startswith("tests/")]
    assert len(wanted) > 8
    assert [name for name in wanted if not (installed / name).is_file()] == []


@pytest.mark.parametrize("module", ["cluster.corpus", "distill.launch", "eval.report", "deploy.quantize"])
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
