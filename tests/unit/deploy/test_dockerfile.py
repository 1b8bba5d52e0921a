"""The Dockerfile: lint, pins that agree with the project's, and the check that runs during the build."""

import functools
import re
import subprocess
import tomllib
from pathlib import Path

import paths
import programs
import pytest

from cluster.artifacts.errors import StageError
from deploy import verify_image

ROOT = paths.ROOT
DOCKERFILE = ROOT / "deploy" / "Dockerfile"


@functools.cache
def _text() -> str:
    return DOCKERFILE.read_text(encoding="utf-8")


@functools.cache
def _pins() -> dict[str, str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    named = [*project["project"]["dependencies"], *project["build-system"]["requires"]]
    locked = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    found = [re.sub(r"\[.*\]", "", line).split("==") for line in [*locked, *named] if "==" in line]
    return {name.lower(): version for name, version in found}


def _hadolint(path: Path) -> subprocess.CompletedProcess[str]:
    command = [programs.installed_program("hadolint"), "--no-color", str(path)]
    return subprocess.run(command, capture_output=True, text=True)


def test_hadolint_finds_nothing(tmp_path: Path) -> None:
    clean = _hadolint(DOCKERFILE)
    assert clean.stdout + clean.stderr == ""
    planted = tmp_path / "Dockerfile"
    planted.write_text(_text().replace("USER 1000:1000", "RUN apt-get install curl"), encoding="utf-8")
    assert "DL3008" in _hadolint(planted).stdout


def test_every_base_image_has_a_fixed_tag() -> None:
    bases = dict(re.findall(r"^ARG (\w+_IMAGE)=(\S+)$", _text(), re.MULTILINE))
    assert set(bases) == {"PYTHON_IMAGE", "RUNTIME_IMAGE", "CUDA_V100_IMAGE", "CUDA_MODERN_IMAGE"}
    assert [image for image in bases.values() if not re.search(r":\d+\.\d+\.\d+", image)] == []
    used = re.findall(r"^FROM (\S+)", _text(), re.MULTILINE)
    assert [name for name in used if name.strip("${}") not in bases and name != "toolchain-${HARDWARE}"] == []
    built, run = (bases[name].removeprefix("python:").partition("-")[0] for name in ("PYTHON_IMAGE", "RUNTIME_IMAGE"))
    assert built == run, "libraries are compiled for the Python that runs them"


def test_there_is_a_toolchain_for_each_hardware() -> None:
    assert set(re.findall(r"AS toolchain-(\w+)", _text())) == {"v100", "modern", "cpu"}
    (v100,) = re.findall(r"AS toolchain-v100\n(.*?)\n\n", _text(), re.DOTALL)
    for wanted in ("cuda-12.6", "+cu126", "TORCH_CUDA_ARCH_LIST=7.0", "ARCHITECTURES=sm_70", "DS_BUILD_FUSED_ADAM=1"):
        assert wanted in v100


def test_versions_are_those_of_the_project() -> None:
    pinned = re.findall(r"\b([a-z][a-z-]+)==(\d[\w.]*)", _text().replace('"torch==${TORCH}"', ""))
    assert {name for name, _ in pinned} >= {"deepspeed", "setuptools", "ninja"}
    assert [(name, version) for name, version in pinned if _pins()[name] != version] == []
    assert set(re.findall(r"TORCH=([\d.]+)\+", _text())) == {_pins()["torch"]}


def test_the_image_runs_without_root_and_copies_the_packages() -> None:
    assert re.findall(r"^USER (.*)$", _text(), re.MULTILINE) == ["1000:1000"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["packages"]["find"]["include"]
    for package in (pattern.removesuffix("*") for pattern in patterns):
        assert f"COPY {package} {package}\n" in _text()
        assert f"!{package}\n" in (ROOT / ".dockerignore").read_text(encoding="utf-8")


def test_the_image_has_the_programs_that_the_code_calls() -> None:
    (installed,) = re.findall(r"apt-get install --yes --no-install-recommends (.+) \\\n", _text())
    assert {name.partition("=")[0] for name in installed.split()} >= {"adb", "gcc", "g++"}


def test_an_image_without_the_kernels_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    verify_image.check(torch.__version__, [])
    with pytest.raises(StageError, match=r"not 2.13.0\+cu999"):
        verify_image.check("2.13.0+cu999", [])
    with pytest.raises(SystemExit, match="1"):
        verify_image.main(["--version", torch.__version__, "--architectures", "sm_1"])
    assert "torch has no kernels for sm_1 (it has" in capsys.readouterr().err


def test_kernels_are_read_from_the_list_of_the_toolkit() -> None:
    listing = "ELF file    1: fused_adam_op.1.sm_70.cubin\nELF file    2: fused_adam_op.2.sm_90a.cubin\n"
    assert verify_image.compiled_for(listing) == ["sm_70", "sm_90a"]
    assert verify_image.compiled_for("") == []
