"""What transformers would bring into our processes without being asked."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture
def torchao(tmp_path: Path) -> Path:
    """An installed torchao that says when it is imported."""
    (tmp_path / "torchao").mkdir()
    (tmp_path / "torchao" / "__init__.py").write_text("print('torchao was imported')\n")
    about = tmp_path / "torchao-99.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: torchao\nVersion: 99.0\n")
    return tmp_path


def _printed(code: str, site: Path) -> str:
    path = os.pathsep.join((str(site), str(Path(__file__).parents[1])))
    done = subprocess.run(
        (sys.executable, "-c", code), env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=True
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize("package", ["cluster", "distill", "eval", "deploy"])
def test_a_model_comes_without_torchao(torchao, package):
    code = f"from {package} import __doc__\nfrom transformers import BertForMaskedLM\nprint(BertForMaskedLM.__name__)"
    assert _printed(code, torchao) == "BertForMaskedLM\n"


def test_who_asks_for_torchao_still_has_it(torchao):
    code = "from cluster import __doc__\nfrom transformers import BertForMaskedLM\nimport torchao"
    assert _printed(code, torchao) == "torchao was imported\n"
