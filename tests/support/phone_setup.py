"""Set-up for tests of the phone benchmark: question-answering exports, their page, and a fake phone."""

import functools
import os
import shutil
import stat
import sys
from pathlib import Path
from typing import Any

import chromium
import models_with_heads
import paths
import pytest

from cluster.artifacts import artifact, registry, stage
from eval.mobile.page_server import ResultInbox
from eval.mobile.result_schema import read

ROOT = paths.ROOT
LIBRARIES = ROOT / "build" / "browser"
POSITIONS = 64
PLAN = {"lengths": [48], "warmup": 1, "repeats": 4, "threads": [1, 2]}

needs_libraries = pytest.mark.skipif(
    not (LIBRARIES / "libraries.json").is_file(),
    reason="the page's libraries are not here: python -m deploy.web_page.libraries --out build/browser",
)
needs_chromium = pytest.mark.skipif(
    chromium.PROGRAM is None, reason="no Chromium here (on Debian: apt-get install chromium)"
)


def exports(root: Path) -> dict[str, Path]:
    """Int8 exports of a student and a teacher that answer questions, with random weights."""
    return {"student": _export(root, "student", "distilbert", 1), "teacher": _export(root, "teacher", "bert", 2)}


def _export(root: Path, role: str, family: str, layers: int) -> Path:
    model = models_with_heads.model_folder(root / f"{role}-model", family, "question-answering", layers=layers)
    export, quantize = registry.find("deploy.onnx_export"), registry.find("deploy.quantize")
    whole = stage.execute(export, export.recipe(), {"model": model}, root / f"{role}-onnx")
    loose = quantize.read({"tolerance": {"relative": 1.0, "agreement": 0.0}})
    assert whole is not None
    stage.execute(quantize, loose, {"model": model, "export": whole.path}, root / role)
    return root / role


def page(root: Path, given: dict[str, Path], libraries: Path = LIBRARIES, **changes: Any) -> artifact.Artifact:
    """The page for these exports, with several parts for each model."""
    maker = registry.find("deploy.web_page")
    recipe = maker.read({"part_bytes": 20_000, "teacher": {"title": "BERT-base"}, **changes})
    made = stage.execute(maker, recipe, {**given, "libraries": libraries}, root / "page")
    assert made is not None
    return made


def result_inbox(made: artifact.Artifact, plan: dict[str, Any] | None = None) -> ResultInbox:
    """A result inbox like that of the benchmark's stage."""
    asked = plan or PLAN
    version = made.facts["version"]
    accept = functools.partial(read, page=version, plan=asked, models=[model["role"] for model in made.facts["models"]])
    return ResultInbox(made, {"job": "pocket", "plan": asked, "version": version}, accept)


def fake_adb(root: Path, serial: str = "R5CT30ABCDE") -> Path:
    """An ``adb`` program with one phone attached, whose storage is ``root / "phone"`` (fake_adb.py)."""
    program = root / "adb"
    shutil.copyfile(Path(__file__).with_name("fake_adb.py"), root / "fake_adb.py")
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "{root}/fake_adb.py" "{root}/phone" "{serial}" "$@"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    os.makedirs(root / "phone" / "data" / "local" / "tmp")
    return program
