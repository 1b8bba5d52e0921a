"""Inputs for the tests of training."""

from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def folder(training_folder: Path) -> Path:
    """A folder with the artifacts ``tokens`` and ``teacher``, and the teacher's model folder ``bert``."""
    return training_folder
